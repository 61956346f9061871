"""What is kept for a while: logs, work files of what failed, and models that were moved away when they were done."""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from qconvd.config import Config
from qconvd.departures import DONE
from qconvd.ledger import Ledger
from qconvd.recovery import sweep

log = logging.getLogger(__name__)
LOOK_SECONDS = 3600.0


class Retention:
    """Removes what `keep` says is old, at the start, when the configuration is read, and every hour."""

    def __init__(self, ledger: Ledger, clock: Callable[[], float] = time.time) -> None:
        self._ledger = ledger
        self._clock = clock
        self._due = 0.0

    def configure(self) -> None:
        """Look again at once."""
        self._due = 0.0

    def tick(self, config: Config) -> None:
        if (now := time.monotonic()) < self._due:
            return
        self._due = now + LOOK_SECONDS
        keep = config.keep
        if keep.work is not None:
            sweep(self._ledger, config.output, self._clock() - keep.work)
        if keep.logs is not None:
            self._remove(self._logs(config.state), self._clock() - keep.logs)
        if keep.moved is not None:
            for done in (watch.folder / DONE for watch in config.folders):
                # Who may write to a watched folder could have other folders emptied by a link of this name.
                if not done.is_symlink():
                    self._remove(_entries(done), self._clock() - keep.moved)

    def _logs(self, state: Path) -> Iterator[Path]:
        """Logs of tasks that have ended, and of jobs, which are written when they have."""
        going = {str(task.id) for task in self._ledger.tasks("queued", "running")}
        return (path for path in _entries(state / "logs") if path.suffix == ".log" and path.stem not in going)

    def _remove(self, paths: Iterator[Path], before: float) -> None:
        for path in list(paths):
            try:
                # The time of the last change of the entry itself: a move sets it, while a model's own times are older.
                if path.lstat().st_ctime >= before:
                    continue
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink()
            except OSError as error:
                log.warning("%s is old but cannot be removed: %s", path, os.strerror(error.errno or 0),
                            extra={"action": "keep.failed", "path": path})  # fmt: skip
            else:
                log.info("%s was kept for long enough and is removed", path,
                         extra={"action": "keep.removed", "path": path})  # fmt: skip


def _entries(folder: Path) -> Iterator[Path]:
    try:
        yield from sorted(folder.iterdir())
    except OSError:
        return
