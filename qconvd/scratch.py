"""The temporary state of one `qconvd convert`: gone when it ends, and if it was killed, when the next one begins.

A file `alive` in the folder is locked as long as the command runs, whatever kills it. So a folder with one that nobody
holds was left behind. One that is kept on purpose, for the log of a crash in it, has none.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from qconvd.executors.local import locked

PREFIX = "qconvd-"
ALIVE = "alive"


@dataclass
class Scratch:
    """The folder; with `keep` it stays."""

    path: Path
    keep: bool = False


@contextmanager
def scratch() -> Iterator[Scratch]:
    """A folder on a local disk for the ledger and the workers' specs and logs, and an end to what was left behind."""
    sweep(Path(tempfile.gettempdir()))
    made = Scratch(Path(tempfile.mkdtemp(prefix=PREFIX)))
    draft = made.path / f".{ALIVE}"
    descriptor = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        # It gets its name when it is locked, so that nobody finds it unlocked.
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        draft.rename(made.path / ALIVE)
        yield made
    finally:
        if made.keep:
            (made.path / ALIVE).unlink()
        else:
            shutil.rmtree(made.path, ignore_errors=True)
        os.close(descriptor)


def sweep(folder: Path) -> list[Path]:
    """Remove what commands of this user left behind when they were killed, once their last worker has ended; returns it."""
    removed = []
    for path in sorted(folder.glob(f"{PREFIX}*")):
        try:
            ours = path.is_dir() and not path.is_symlink() and path.stat().st_uid == os.getuid() and (path / ALIVE).is_file()
        except OSError:
            continue
        if ours and not locked(path / ALIVE) and not any(locked(a) for a in path.glob(f"tasks/*/{ALIVE}")):
            shutil.rmtree(path, ignore_errors=True)
            removed.append(path)
    return removed
