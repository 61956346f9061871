"""What a daemon notes of itself in its state folder: the config file that it was started with, so that it is found though the
file is wrong by now, and where it listens.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from qconvd import __version__
from qconvd.executors.runner import record
from qconvd.located_yaml import parse

NAME = "daemon.json"
ADDRESS = "listening.json"
DEFAULT = "./state"
SIZE_LIMIT = 1 << 20


def note_config(state: Path, config: Path) -> None:
    """Note that a daemon was started on this state folder with this file, which was right then."""
    if _noted(state / NAME) != (about := {"config": str(config)}):
        record(state / NAME, about)


def note_address(state: Path, address: str) -> None:
    """Note that this process listens at an address (`host:port` or `unix:/path`), or at none if that is empty.

    It is worth nothing after a crash, so it is never synced. Raises OSError if the folder cannot be written.
    """
    path = state / ADDRESS
    if not address:
        path.unlink(missing_ok=True)
        return
    draft = path.with_name(f".{ADDRESS}.new")
    draft.write_text(json.dumps({"pid": os.getpid(), "address": address, "version": __version__}))
    draft.replace(path)


def address_of(state: Path, daemon: int) -> str:
    """Where the daemon with this process id listens, if it is of our version; otherwise empty."""
    noted = _noted(state / ADDRESS)
    found = noted.get("address")
    return found if isinstance(found, str) and (noted.get("pid"), noted.get("version")) == (daemon, __version__) else ""


def state_of(config: Path) -> Path | None:
    """The state folder of the daemon that was started with this file, though the file is wrong in whatever way.

    Only what stands at `state:` is read, as far as it can be. A folder counts if its daemon noted this very file, so a wrong
    guess finds nothing.
    """
    for value in dict.fromkeys((*_said(config), DEFAULT)):
        try:
            state = config.absolute().parent / Path(value).expanduser()
        except RuntimeError:
            continue  # the home folder of somebody who is not there
        noted = _noted(state / NAME).get("config")
        if isinstance(noted, str) and os.path.realpath(noted) == os.path.realpath(config):
            return state
    return None


def _said(config: Path) -> list[str]:
    """What the file says at `state:`, as YAML or, if it is none, as a line of text."""
    try:
        with config.open("rb") as file:
            text = file.read(SIZE_LIMIT).decode("utf-8", errors="replace")
    except OSError:
        return []
    data = parse(text).data
    if isinstance(data, dict):
        return [data["state"]] if isinstance(data.get("state"), str) else []
    lines = re.findall(r"^state:[ \t]*(\S.*)$", text, re.MULTILINE)
    values = [parse(line).data for line in lines]
    return [value for value in values if isinstance(value, str)]


def _noted(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            data = json.loads(file.read(SIZE_LIMIT))
    except (OSError, ValueError, RecursionError):
        return {}  # also a path with a null byte
    return data if isinstance(data, dict) else {}
