"""When a candidate may be taken: complete by its own bytes, and unchanged for `settle` seconds between two looks.

That a copy is over is not something the kernel tells. Completeness is read from the model itself (intake.py); settling covers
what bytes cannot say: a side file that is still to come, a copy that rewrites its first block last.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

from qconvd.intake import Look

LOCAL_SECONDS = 2.0
POLLED_SECONDS = 30.0
TELL_AGAIN = 60.0
"""Seconds between two sentences about one candidate that differ in their figures only: a copy grows many times a second."""
_FIGURES = re.compile(r"[\d.,]+ ?(?:[KMGT]?i?B\b)?|'[^']*'")

Verdict: TypeAlias = Literal["settling", "waiting", "refused", "take", "nothing"]


@dataclass
class Candidate:
    """What is known of one path in a watched folder. Times are of the monotonic clock."""

    path: Path
    look: Look
    since: float
    """When this fingerprint was first seen."""
    verdict: Verdict = "settling"
    due: float | None = None
    """When to look again though nobody reports a change; None leaves it to the next scan."""
    told: dict[str, tuple[float, str]] = field(default_factory=dict)
    """What was said of it: for each reason without its figures, when it was last told and in which words."""

    @property
    def reason(self) -> str:
        """Why it is not taken, as a sentence for a person; empty if it is."""
        match self.verdict:
            case "settling":
                return "it is still changing"
            case "waiting" | "refused":
                return self.look.reason
        return ""

    def worth_telling(self, now: float) -> bool:
        """Whether its reason is new, or has new figures and was not told for a while; if so, it counts as told now."""
        kind = f"{self.verdict} {_FIGURES.sub('', self.reason)}"
        when, words = self.told.get(kind, (-math.inf, ""))
        if words == self.reason or now - when < TELL_AGAIN:
            return False
        self.told[kind] = now, self.reason
        return True


class Settling:
    """The candidates of all watched folders. Looks go in, verdicts come out; it opens no file."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.candidates: dict[Path, Candidate] = {}
        self._clock = clock

    def observe(self, path: Path, look: Look, settle: float) -> Candidate:
        """Weigh one look at `path`. The verdict `take` comes once per fingerprint: afterwards the ledger knows the model."""
        now = self._clock()
        known = self.candidates.get(path)
        if known is None or known.look.fingerprint != look.fingerprint:
            known = self.candidates[path] = Candidate(path, look, since=now, told=known.told if known else {})
        known.look = look
        quiet = now - known.since >= settle
        known.due = None if quiet else known.since + settle
        if look.state == "not-a-model":
            known.verdict, known.due = "nothing", None
        elif look.state == "incomplete":
            known.verdict = "waiting"
        elif not quiet:
            # A refusal must settle, too: half of a config.json may read as a bad one.
            known.verdict = "settling"
        else:
            known.verdict = "take" if look.state == "complete" else "refused"
        return known

    def due(self) -> list[Path]:
        """Candidates to look at now."""
        now = self._clock()
        return [c.path for c in self.candidates.values() if c.due is not None and c.due <= now]

    def next_due(self) -> float | None:
        """Seconds until a candidate is due; None if none will be."""
        times = [c.due for c in self.candidates.values() if c.due is not None]
        return max(0.0, min(times) - self._clock()) if times else None

    def arriving(self, folder: Path) -> list[Path]:
        """Candidates of a folder that are not complete, or not long enough."""
        return [
            c.path for c in self.candidates.values() if c.verdict in ("settling", "waiting") and c.path.is_relative_to(folder)
        ]

    def forget(self, paths: Collection[Path]) -> list[Candidate]:
        """Drop candidates that are no longer there; returns what was known of them."""
        return [self.candidates.pop(path) for path in paths if path in self.candidates]
