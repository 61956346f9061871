"""Which folders the service of a config has to reach, and how: the rest of the machine it need not see."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qconvd.config import Config

HOMES = (Path("/home"), Path("/root"), Path("/run/user"))
"""What ProtectHome takes away."""
RUN = Path("/run/qconvd")
"""What systemd makes for the service while it runs."""
TEMPORARY = (Path("/tmp"), Path("/var/tmp"))
"""What PrivateTmp takes away."""


@dataclass(frozen=True)
class Access:
    """Absolute folders, each in one of the two and in none of its own kind that is above it."""

    written: tuple[Path, ...]
    read: tuple[Path, ...]

    @property
    def hidden(self) -> Access:
        """What the service cannot see unless it is mounted for it."""
        return Access(tuple(filter(_hidden, self.written)), tuple(filter(_hidden, self.read)))

    @property
    def plain(self) -> Access:
        """What it sees like everybody else."""
        return Access(*(tuple(p for p in paths if not _hidden(p)) for paths in (self.written, self.read)))


def access(config: Config, program: Iterable[Path] = ()) -> Access:
    """What the config's folders are used for. `program` is where the interpreter and qconvd itself are."""
    from qconvd.config import UNIX

    written = [config.output, config.state]
    read = [config.path.parent, *filter(_hidden, program)]
    for watch in config.folders:
        (read if watch.after == "keep" else written).append(watch.folder)
    if config.hub.cache is not None:
        written.append(config.hub.cache)
    listen = config.web.listen or ""
    if listen.startswith(UNIX) and not (socket := Path(listen.removeprefix(UNIX))).is_relative_to(RUN):
        written.append(socket.parent)
    files = [config.hub.token_file, config.hub.webhook_secret_file, config.web.token_file]
    for entry in config.notify:
        if entry.webhook is not None:
            files += [entry.webhook.url_file, entry.webhook.token_file, entry.webhook.template]
    for recipe in config.recipes.values():
        files.append(recipe.card)
        written += [d.folder for d in recipe.publish if d.folder is not None]
        for target in recipe.targets:
            options = target.options
            files += _paths(options if isinstance(options, Mapping) else options.model_dump(mode="json"))
    # The folder, not the file: an editor puts a new file in the place of the old one, and a bind mount would show that.
    read += [file if file.is_dir() else file.parent for file in files if file is not None]
    outer = _outermost(written)
    return Access(outer, tuple(p for p in _outermost(read) if p not in outer))


def program() -> list[Path]:
    """Where this interpreter, its libraries and qconvd with its plugins are."""
    places = [Path(sys.prefix), Path(sys.base_prefix), Path(os.path.realpath(sys.base_prefix))]
    return [*places, *(Path(p) for p in sys.path if os.path.isabs(p) and Path(p).exists())]  # noqa: PTH117


def at_home(path: Path) -> bool:
    """Whether a folder lies in somebody's home."""
    return any(path.is_relative_to(home) for home in HOMES)


def _hidden(path: Path) -> bool:
    return at_home(path) or any(path.is_relative_to(folder) for folder in TEMPORARY)


def _outermost(paths: Iterable[Path]) -> tuple[Path, ...]:
    """Also where links lead; without repetitions, and without what lies in another one of them."""
    found = sorted({p for path in paths for p in (path, Path(os.path.realpath(path)))})
    return tuple(p for p in found if not any(p != other and p.is_relative_to(other) for other in found))


def _paths(options: Any) -> Iterator[Path]:
    """Files and folders that a target's options name, wherever they stand in them."""
    if isinstance(options, str) and options.startswith("/") and "\n" not in options:
        yield Path(options)
    elif isinstance(options, Mapping):
        for value in options.values():
            yield from _paths(value)
    elif isinstance(options, list | tuple):
        for value in options:
            yield from _paths(value)
