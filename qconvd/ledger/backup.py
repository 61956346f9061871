"""A copy of the ledger, as of one moment, while the daemon goes on."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

from qconvd.engine.durable import sync_file, sync_folder
from qconvd.errors import QconvdError
from qconvd.ledger.ledger import Ledger


def backup(ledger: Ledger, path: Path) -> int:
    """Copy the ledger to a file, whole or not at all; returns the copy's bytes. A file that is there is replaced.

    SQLite's own backup, in one step: it reads like everybody else and stops no writer. The copy is one file without a
    write-ahead log, is checked, and is on disk when this returns. Raises `QconvdError`.
    """
    if path.exists() and path.samefile(ledger.path):
        raise QconvdError("is the ledger itself", where=str(path), fix="name another file")
    draft = path.with_name(f".{path.name}.new")
    try:
        draft.unlink(missing_ok=True)
        os.close(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        _copy(ledger, draft)
        sync_file(draft)
        draft.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise QconvdError(f"cannot be written: {os.strerror(error.errno or 0)}", where=str(path)) from error
    except sqlite3.Error as error:
        raise QconvdError(
            f"the ledger cannot be copied: {error}", where=str(path), fix="look at the disk's free space"
        ) from error
    finally:
        draft.unlink(missing_ok=True)
    return path.stat().st_size


def _copy(ledger: Ledger, draft: Path) -> None:
    copy = sqlite3.connect(draft, isolation_level=None)
    try:
        ledger.copy_to(copy)
        copy.execute("PRAGMA journal_mode = DELETE")
        verdict = copy.execute("PRAGMA integrity_check(1)").fetchone()[0]
    finally:
        copy.close()
    if verdict != "ok":
        raise QconvdError(f"the ledger is damaged, and so would its copy be: {verdict}", where=str(ledger.path))
