"""What a crash may leave in the output folder, and what is cleared away: at the start, and whenever a task has ended.

A source that did not hold still is a crash of a kind, too: `second_chance` and `withdraw`.

Tasks need no recovery of their own: their handles stand in the ledger, a worker that lives is found by its lock, one that is
gone is `lost` and its targets are queued again, with the same work folder and journal. A commit that was cut short is taken
up by the verify task that began it.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
from pathlib import Path

from qconvd.calibration_folders import PREFIX, remove_unneeded
from qconvd.errors import QconvdError
from qconvd.ledger import Ledger, Target

log = logging.getLogger(__name__)


def work_folder(output: Path, target: str) -> Path:
    """Where a target is worked on: on the output's own filesystem, out of every watcher's sight."""
    return output / ".qconvd" / "work" / target


def sweep(ledger: Ledger, output: Path, failed_before: float = 0.0) -> list[Path]:
    """Remove work folders that no target goes on from; returns them. One that a worker still holds stays for the next time.

    What failed before that time (seconds since 1970) is not waited for any more: a retry begins anew.
    """
    busy = {id for task in ledger.tasks("running") for id in task.targets}
    removed = []
    root = output / ".qconvd" / "work"
    for folder in _folders(root):
        if folder.name.startswith(PREFIX):
            continue
        if folder.name in busy or _goes_on(_target(ledger, folder.name), failed_before) or _held(folder):
            continue
        shutil.rmtree(folder, ignore_errors=True)
        removed.append(folder)
    removed += remove_unneeded(root)
    for folder in removed:
        log.info("%s belonged to nothing and was removed", folder, extra={"action": "work.swept", "folder": folder})
    return removed


def second_chance(ledger: Ledger, source: int) -> list[str]:
    """Try again what failed because somebody wrote to the source while it was read; to be called when it is at rest again.

    What such a source looks like to a reader is any damage at all, so everything that was said of its bytes counts.
    """
    return ledger.retry(_unread(ledger, source), "the model is at rest again")


def withdraw(ledger: Ledger, source: int) -> list[str]:
    """Let go of what failed only because the source was removed while it was read: nobody waits for it any more.

    To be called when the source is gone. If it comes back, it is wanted anew.
    """
    gone = ledger.source(source)
    return ledger.supersede(_unread(ledger, source), gone.reason) if gone.state == "gone" else []


def _unread(ledger: Ledger, source: int) -> list[str]:
    """Targets that failed for what a reader found in the place of the model."""
    reading = ("BadCheckpoint", "Incomplete", "NotAModel")
    return [t.id for t in ledger.targets("failed", source=source) if t.error.get("error") in reading]


def _goes_on(target: Target | None, failed_before: float) -> bool:
    """Whether the journal in the work folder is still worth something.

    A failure that was no refusal (a crash, a full disk's kill) may be retried and resumes; a refusal would only repeat itself.
    """
    if target is None or target.pending:
        return target is not None
    return target.state == "failed" and not target.error and target.changed_at >= failed_before


def _target(ledger: Ledger, id: str) -> Target | None:
    try:
        return ledger.target(id)
    except QconvdError:
        return None


def _held(folder: Path) -> bool:
    try:
        descriptor = os.open(folder / "lock", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _folders(root: Path) -> list[Path]:
    try:
        return sorted(p for p in root.iterdir() if p.is_dir())
    except OSError:
        return []
