"""One daemon per state folder: a lock that the kernel lets go of when its holder dies, however it dies."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qconvd.engine.durable import make_folders
from qconvd.errors import QconvdError

TRIES = 10


@contextmanager
def state_lock(state: Path) -> Iterator[None]:
    """Hold `<state>/lock` with our process id inside.

    Raises `QconvdError` if another daemon holds it, naming its process id and the folder, or if the folder cannot be written.
    """
    path = state / "lock"
    try:
        make_folders(state)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise QconvdError(
            f"the state folder cannot be written: {os.strerror(error.errno or 0)}",
            where=str(state),
            fix="give the user that runs qconvd write permission, or set `state:` to another folder",
        ) from error
    try:
        _take(descriptor, state)
        yield
    finally:
        # The file stays: removing it would let two daemons lock two files of one name.
        os.close(descriptor)


def holder(state: Path) -> int | None:
    """The process id of the daemon that runs on this state folder, or None."""
    try:
        descriptor = os.open(state / "lock", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _pid(descriptor)
    else:
        return None
    finally:
        os.close(descriptor)


def _take(descriptor: int, state: Path) -> None:
    # `holder` takes the lock for a moment to see whether it is free: a daemon holds it for longer than all these tries.
    for attempt in range(TRIES):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError as error:
            if attempt == TRIES - 1:
                pid = _pid(descriptor)
                raise QconvdError(
                    f"another qconvd daemon{f' (process {pid})' if pid else ''} works on this state folder",
                    where=str(state),
                    fix="stop that one, or give this one a `state:` folder of its own",
                ) from error
        time.sleep(0.02)
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)


def _pid(descriptor: int) -> int | None:
    text = os.pread(descriptor, 32, 0).strip()
    return int(text) if text.isdigit() else None
