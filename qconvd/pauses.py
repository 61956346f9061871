"""When nobody asked for it and still nothing new is started: in quiet hours, and while a disk is nearly full."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from qconvd.config import Config
from qconvd.ledger import Ledger
from qconvd.ledger.control import Cause
from qconvd.quantities import write_size
from qconvd.scheduler import free_space

log = logging.getLogger(__name__)
LOOK_SECONDS = 5.0
"""How often the clock and the disks are looked at."""


class Pauses:
    """Writes into the ledger what holds new tasks back, when it begins and when it is over."""

    def __init__(
        self,
        ledger: Ledger,
        clock: Callable[[], time.struct_time] = time.localtime,
        free: Callable[[Path], int] = lambda folder: free_space(folder)[0],
    ) -> None:
        self._ledger = ledger
        self._clock = clock
        self._free = free
        self._due = 0.0
        self.intake = True
        """Whether models may be taken in: not while a disk is nearly full."""

    def configure(self) -> None:
        """Look again at once: the limits may be others."""
        self._due = 0.0

    def tick(self, config: Config) -> None:
        if (now := time.monotonic()) < self._due:
            return
        self._due = now + LOOK_SECONDS
        held = {pause.cause: pause.reason for pause in self._ledger.pauses()}
        self._hold("quiet hours", quiet(config.limits.quiet_hours, self._clock()), held)
        self._hold("disk", self._full(config, paused="disk" in held), held)

    def _hold(self, cause: Cause, reason: str, held: dict[Cause, str]) -> None:
        if cause == "disk":
            self.intake = not reason
        if reason and held.get(cause) != reason:
            self._ledger.pause(cause, reason)
            log.warning("paused (%s): %s", cause, reason, extra={"action": "daemon.paused", "pause": cause})
        elif not reason and cause in held:
            self._ledger.resume(cause)
            log.info("goes on: no longer paused (%s)", cause, extra={"action": "daemon.resumed", "pause": cause})

    def _full(self, config: Config, *, paused: bool) -> str:
        """Which disk is nearly full, in words without a number that changes. Once paused, the higher mark counts."""
        disk = config.limits.disk
        if disk is None:
            return ""
        mark = disk.enough if paused else disk.low
        short = [folder for folder in (config.output, config.state) if self._free(folder) < mark]
        if not short:
            return ""
        return (f"less than {write_size(disk.low)} (limits.disk.low) was free for {short[0]}; "
                f"it goes on when {write_size(disk.enough)} are free")  # fmt: skip


def quiet(hours: Iterable[tuple[int, int]], now: time.struct_time) -> str:
    """The quiet hours that it is now, as `22:00-07:00`; empty if none. Minutes since midnight; they may go beyond it."""
    minute = 60 * now.tm_hour + now.tm_min
    for start, end in hours:
        if start <= minute < end or (end < start and (minute >= start or minute < end)):
            return f"{_time(start)}-{_time(end)}"
    return ""


def _time(minute: int) -> str:
    return f"{minute // 60:02d}:{minute % 60:02d}"
