"""What a daemon sees that is no job: models that are not complete, that nobody wants, and folders that cannot be read.

It is in the daemon's memory and, for whoever asks from another process, in a file beside the ledger.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

NAME = "sightings.json"
AWAITED = ("arriving", "incomplete", "refused")
"""What becomes a job by itself, when it is all there and may be had."""
Kind = Literal["arriving", "incomplete", "refused", "unwanted", "unreadable"]


@dataclass(frozen=True, slots=True)
class Sighting:
    """One path and why nothing is made of it: it still changes, misses something, the Hub refuses it, no recipe takes it, it
    cannot be read.
    """

    kind: Kind
    path: str
    name: str
    reason: str
    fix: str = ""
    recipes: tuple[str, ...] = ()
    """What is to be made of it when it is complete."""


class SightingsBoard:
    """Keeps the file true. It is worth nothing after a crash, so it is never synced."""

    def __init__(self, state: Path) -> None:
        self._path = state / NAME
        self._seen: object = None
        self._written: tuple[Sighting, ...] | None = None

    def tick(self, seen: object, look: Callable[[], Iterable[Sighting]]) -> None:
        """Write the file if there is something new; `look` is called when `seen` is not what it was."""
        if seen == self._seen:
            return
        self._seen = seen
        if (now := tuple(look())) != self._written:
            draft = self._path.with_name(f".{NAME}.new")
            draft.write_text(json.dumps([asdict(s) for s in now]))
            draft.replace(self._path)
            self._written = now


def read_sightings(state: Path) -> list[Sighting]:
    """What the daemon of this state folder last saw; nothing if it never ran."""
    try:
        data = json.loads((state / NAME).read_bytes())
        return [Sighting(**{**fields, "recipes": tuple(fields["recipes"])}) for fields in data]
    except (OSError, ValueError, TypeError, KeyError):
        return []
