"""Where the daemon listens: an address with a port, or a socket with a path."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import stat
from pathlib import Path

from qconvd.config import UNIX
from qconvd.errors import QconvdError

BACKLOG = 512
FIX = "choose another `web.listen`, or stop what listens there; `web: {listen: off}` does without"


def bound(where: str) -> socket.socket:
    """A listening socket at `address:port` or `unix:/path`. Raises `QconvdError` if the system does not let it."""
    try:
        return _unix(Path(where.removeprefix(UNIX))) if where.startswith(UNIX) else _tcp(where)
    except OSError as error:
        raise QconvdError(f"cannot listen: {error.strerror or error}", where=where, fix=FIX) from error


def shown(listening: socket.socket) -> str:
    """Where a socket listens, as `listen` has it, with the port that the system chose for 0."""
    name = listening.getsockname()
    if listening.family == socket.AF_UNIX:
        return f"{UNIX}{name}"
    host, port = str(name[0]), int(name[1])
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def only_here(where: str) -> bool:
    """Whether nobody from another machine reaches an address."""
    if where.startswith(UNIX):
        return True
    host = where.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    return False


def released(listening: socket.socket, address: str) -> None:
    """Close a socket that was listening at this address, and take its path away, if it has one."""
    listening.close()
    if address.startswith(UNIX):
        with contextlib.suppress(OSError):
            Path(address.removeprefix(UNIX)).unlink()


def _tcp(where: str) -> socket.socket:
    host, _, port = where.rpartition(":")
    host = host.strip("[]")
    listening = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        # A daemon that is started again finds its port free, though connections of the last one are still in TIME_WAIT.
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, int(port)))
        listening.listen(BACKLOG)
    except OSError:
        listening.close()
        raise
    return listening


def _unix(path: Path) -> socket.socket:
    """A socket that the daemon's user and group may open. One that a killed daemon has left is replaced."""
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if _left_behind(path):
            path.unlink()
        before = os.umask(0o117)
        try:
            listening.bind(str(path))
        finally:
            os.umask(before)
        listening.listen(BACKLOG)
    except OSError:
        listening.close()
        raise
    return listening


def _left_behind(path: Path) -> bool:
    """Whether a socket lies at a path at which nobody listens."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            return False
    except OSError:
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return True
        except OSError:
            return False
    return False
