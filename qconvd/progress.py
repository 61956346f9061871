"""How far running conversions are: kept in memory, and beside the ledger for whoever asks from another process."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qconvd.quantities import show_duration, show_size

NAME = "progress.json"
GAP = 0.5
"""Seconds between two writes of the file."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Bytes of one target that are encoded, of how many, and in how many seconds; `unit` is the last one done.

    `resumed` of them were made before these seconds: by an earlier run, or layer by layer while the model was calibrated.
    """

    done: int
    total: int
    seconds: float
    unit: str = ""
    resumed: int = 0
    doing: str = ""
    """What it is at, if that is no encoding and takes long: `compiling Q4_0 (once)`, `calibrating layer 3 of 30, 40 %`."""

    @classmethod
    def of(cls, event: Mapping[str, Any]) -> Progress:
        """What a `progress` or `preparing` event says. Raises KeyError, TypeError or ValueError if it makes no sense."""
        if event.get("event") == "preparing":
            return cls(0, 0, 0.0, doing=str(event["doing"]))
        return cls(
            int(event["done"]),
            int(event["total"]),
            float(event.get("seconds", 0)),
            str(event.get("unit", "")),
            int(event.get("resumed", 0)),
            str(event.get("doing", "")),
        )

    @property
    def rate(self) -> float:
        """Bytes per second in this run."""
        return max(0, self.done - self.resumed) / self.seconds if self.seconds > 0 else 0.0

    @property
    def left(self) -> float | None:
        """Seconds that are left at this rate; None while nothing is known."""
        return (self.total - self.done) / self.rate if self.rate else None

    @property
    def told(self) -> str:
        """For people: `43 % of 256.6 MiB, 12.0 MiB/s, 10s left`."""
        if self.doing:
            return self.doing
        left = f", {show_duration(self.left)} left" if self.left is not None else ""
        return f"{100 * self.done // max(1, self.total)} % of {show_size(self.total)}, {show_size(self.rate)}/s{left}"


class ProgressBoard:
    """The progress of every running target, by target id. It is worth nothing after a crash, so it is never synced."""

    def __init__(self, state: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self.targets: dict[str, Progress] = {}
        self._path = state / NAME
        self._clock = clock
        self._written_at = 0.0
        self._dirty = True

    def hear(self, events: Iterable[Mapping[str, Any]]) -> None:
        """Take what a worker says of itself; what is no progress, or makes no sense, is passed over."""
        for event in events:
            if event.get("event") not in ("progress", "preparing"):
                continue
            try:
                progress = Progress.of(event)
            except (KeyError, TypeError, ValueError):
                continue
            self.targets[str(event.get("target", ""))] = progress
            self._dirty = True

    def keep(self, running: Collection[str]) -> None:
        """Forget the targets that no worker is at any more."""
        for target in [t for t in self.targets if t not in running]:
            del self.targets[target]
            self._dirty = True

    def tick(self) -> None:
        """Write the file if there is something new and the last time was long enough ago."""
        if self._dirty and (self._clock() - self._written_at >= GAP or not self.targets):
            self._written_at, self._dirty = self._clock(), False
            draft = self._path.with_name(f".{NAME}.new")
            draft.write_text(json.dumps({target: asdict(p) for target, p in self.targets.items()}))
            draft.replace(self._path)


def read_progress(state: Path) -> dict[str, Progress]:
    """The progress that the daemon of this state folder last wrote; empty if there is none."""
    try:
        data = json.loads((state / NAME).read_bytes())
        return {target: Progress(**fields) for target, fields in data.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}
