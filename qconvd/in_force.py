"""Which config file a daemon was started with, noted in its state folder: so it is found though the file is wrong by now."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from qconvd.executors.runner import record
from qconvd.located_yaml import parse

NAME = "daemon.json"
DEFAULT = "./state"
SIZE_LIMIT = 1 << 20


def note_config(state: Path, config: Path) -> None:
    """Note that a daemon was started on this state folder with this file, which was right then."""
    if _noted(state) != (about := {"config": str(config)}):
        record(state / NAME, about)


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
        noted = _noted(state).get("config")
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


def _noted(state: Path) -> dict[str, Any]:
    try:
        data = json.loads((state / NAME).read_bytes())
    except (OSError, ValueError):
        return {}  # also a path with a null byte
    return data if isinstance(data, dict) else {}
