"""What is to be done beside writing files: commands of systemd, shown to a person or run."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from qconvd.errors import QconvdError
from qconvd.service.access import access
from qconvd.service.files import UNIT

if TYPE_CHECKING:
    from qconvd.config import Config

OWN = tuple(Path(f"/var/{kind}/qconvd") for kind in ("lib", "cache", "log"))
"""Folders that the unit lets systemd make."""
BOOTED = Path("/run/systemd/system")
Command = tuple[str, ...]


def to_start(config: Config, *, user: bool) -> list[Command]:
    """The commands that start what was installed, in their order."""
    if user:
        return _started("systemctl", "--user")
    commands: list[Command] = [
        ("systemd-sysusers", "qconvd.conf"),
        ("systemd-tmpfiles", "--create", "qconvd.conf"),
        ("sysctl", "--quiet", "--load", "/etc/sysctl.d/60-qconvd.conf"),
    ]
    if missing := [str(p) for p in access(config).written if not p.exists() and not any(p.is_relative_to(o) for o in OWN)]:
        commands.append(("install", "-d", "-o", "qconvd", "-g", "qconvd", *missing))
    return [*commands, *_started("systemctl")]


def _started(*manager: str) -> list[Command]:
    # One that runs sees the folders of a new drop-in only after a restart.
    return [(*manager, "daemon-reload"), (*manager, "enable", UNIT), (*manager, "restart", UNIT)]


def to_stop(*, user: bool) -> list[Command]:
    """The commands that end a service whose files are gone."""
    manager = ("systemctl", "--user") if user else ("systemctl",)
    return [(*manager, "stop", UNIT), (*manager, "daemon-reload")]


def shown(commands: Sequence[Command]) -> str:
    """As a person types them."""
    return "\n".join(f"  {shlex.join(command)}" for command in commands)


def check_booted() -> None:
    """Raise `QconvdError` where systemd does not run: what sd_booted(3) looks at."""
    if not BOOTED.is_dir():
        raise QconvdError("systemd does not run this machine, so nothing can be started", fix="leave out --now")


def run(commands: Sequence[Command]) -> None:
    """Run the commands; each says itself what is wrong. Raises `QconvdError` for the first that fails."""
    for command in commands:
        try:
            code = subprocess.run(command, check=False).returncode
        except OSError as error:
            raise QconvdError(f"cannot be run: {error.strerror}", where=command[0], fix="run the rest by hand") from error
        if code:
            raise QconvdError(f"`{shlex.join(command)}` failed (exit code {code})", fix=f"`journalctl -u {UNIT}` may say more")
