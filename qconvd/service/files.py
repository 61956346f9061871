"""Which files make the service, and where they belong; written and removed here, and nothing that is somebody else's."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import qconvd
from qconvd.errors import QconvdError
from qconvd.service.drop_in import drop_in

if TYPE_CHECKING:
    from qconvd.config import Config

MARK = "# Installed by `qconvd service install`; `qconvd service uninstall` removes it.\n"
UNIT = "qconvd.service"
SYSTEM_FILES = ("sysusers.d/qconvd.conf", "tmpfiles.d/qconvd.conf", "sysctl.d/60-qconvd.conf")
"""What belongs below /etc beside the unit."""


@dataclass(frozen=True)
class File:
    """A file of the service: where it belongs, and what it holds."""

    path: Path
    text: str


def packaged(name: str) -> str:
    """A file of `systemd/` as it came with qconvd: from the wheel, or from the source tree of an editable install."""
    package = Path(qconvd.__file__).parent
    for folder in (package / "systemd", package.parent / "systemd"):
        if (folder / name).is_file():
            return (folder / name).read_text(encoding="utf-8")
    raise QconvdError(
        "this installation of qconvd has no units for systemd", where=str(package / "systemd"), fix="install the wheel again"
    )


def files(config: Config, *, user: bool, root: Path = Path("/")) -> list[File]:
    """Everything that `install` writes for a config."""
    place = folder(user=user, root=root)
    more = place / f"{UNIT}.d"
    found = [File(place / UNIT, packaged(f"user/{UNIT}" if user else UNIT)),
             File(more / "10-config.conf", drop_in(config, user=user))]  # fmt: skip
    if not user:
        if config.devices.cuda == "none":
            found.append(File(more / "20-no-gpu.conf", packaged("drop-ins/no-gpu.conf")))
        found += [File(root / "etc" / name, packaged(name)) for name in SYSTEM_FILES]
    return [File(file.path, MARK + file.text) for file in found]


def start_of(config: Path) -> str:
    """The command that starts the daemon of a config file: its service's if one is installed, otherwise `qconvd run`."""
    for user, manager in ((False, "systemctl"), (True, "systemctl --user")):
        try:
            drop_in = (folder(user=user) / f"{UNIT}.d" / "10-config.conf").read_text(encoding="utf-8")
        except (OSError, ValueError):
            continue
        if f"# For {config}. " in drop_in:
            return f"{manager} start {UNIT.removesuffix('.service')}"
    return "qconvd run"


def folder(*, user: bool, root: Path = Path("/")) -> Path:
    """Where units belong: those of an administrator, or of this user."""
    if not user:
        return root / "etc" / "systemd" / "system"
    home = os.environ.get("XDG_CONFIG_HOME") or Path("~/.config").expanduser()
    return root / str(home).lstrip("/") / "systemd" / "user" if root != Path("/") else Path(home) / "systemd" / "user"


def write(wanted: Iterable[File]) -> None:
    """Put the files into place. Raises `QconvdError` if one is there that is not ours; then none is written."""
    wanted = list(wanted)
    for file in wanted:
        if os.path.lexists(file.path) and not _ours(file.path):
            raise QconvdError(
                "is there already, and `qconvd service install` did not write it",
                where=str(file.path),
                fix="move it away; what you want to change goes into a drop-in of your own (`systemctl edit qconvd`)",
            )
    for file in wanted:
        try:
            file.path.parent.mkdir(parents=True, exist_ok=True)
            draft = file.path.with_name(f".{file.path.name}.new")
            draft.write_text(file.text, encoding="utf-8")
            draft.replace(file.path)
        except OSError as error:
            raise QconvdError(f"cannot be written: {os.strerror(error.errno or 0)}", where=str(file.path)) from error


def remove(*, user: bool, root: Path = Path("/")) -> list[Path]:
    """Take away what `install` wrote, whatever config that was for; returns it. Drop-ins of others stay."""
    place = folder(user=user, root=root)
    more = place / f"{UNIT}.d"
    known = [place / UNIT, *sorted(more.glob("*.conf")), *([] if user else [root / "etc" / name for name in SYSTEM_FILES])]
    removed = [path for path in known if _ours(path)]
    enabled = place / ("default.target.wants" if user else "multi-user.target.wants") / UNIT
    try:
        for path in removed:
            path.unlink()
        if removed and enabled.is_symlink() and not enabled.exists():
            enabled.unlink()
            removed.append(enabled)
        if more.is_dir() and not any(more.iterdir()):
            more.rmdir()
    except OSError as error:
        raise QconvdError(f"cannot be removed: {os.strerror(error.errno or 0)}", where=str(error.filename)) from error
    return removed


def _ours(path: Path) -> bool:
    try:
        return path.read_text(encoding="utf-8", errors="replace").startswith(MARK)
    except OSError:
        return False
