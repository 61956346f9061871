"""Which jobs the last changes of state brought to their end, and what became of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from qconvd.ledger import Event, Job, Ledger, Target

JobEnding: TypeAlias = Literal["done", "failed", "cancelled", "confirm"]
ENDS = ("done", "failed", "cancelled")
BEGAN_FROM = ("", *ENDS)
"""States that a target leaves when it is begun, or begun anew."""
UNDER_WAY = ("waiting", "planned", "converting", "verifying", "ready", "publishing")


@dataclass(frozen=True)
class JobEnd:
    """A job none of whose targets goes on by itself. `confirm`: what is made waits for `qconvd publish`.

    `seconds` is how long it took since it was begun, or begun anew.
    """

    job: Job
    targets: tuple[Target, ...]
    ending: JobEnding
    at: float
    seconds: float

    @property
    def made(self) -> tuple[Target, ...]:
        """Targets whose artifacts are there."""
        return tuple(t for t in self.targets if t.state in ("done", "ready"))

    @property
    def failed(self) -> tuple[Target, ...]:
        return tuple(t for t in self.targets if t.state == "failed")


def ended(ledger: Ledger, events: Iterable[Event]) -> list[JobEnd]:
    """The jobs that came to their end by these changes, each once, with the state that they are in now.

    A change of a target says that its job may be over; whether it is, the ledger says. So a job whose last target was taken
    back by a recipe is over as well, and one that was begun anew meanwhile is not.
    """
    touched: dict[int, set[str]] = {}
    for event in events:
        over = event.to_state in (*ENDS, "ready") or (event.to_state == "superseded" and event.from_state in UNDER_WAY)
        if event.source is not None and event.target is not None and over:
            touched.setdefault(event.source, set()).add(event.target)
    found = []
    for source, targets in touched.items():
        if ledger.source(source).state == "replaced":
            continue  # the version that took its place has a job of its own
        for job in ledger.jobs_of(source):
            if targets & {t.id for t in job.targets} and (end := _end(ledger, job)) is not None:
                found.append(end)
    return found


def _end(ledger: Ledger, job: Job) -> JobEnd | None:
    targets = tuple(t for t in job.targets if t.state != "superseded")
    states = {t.state for t in targets}
    if not targets or not states <= {*ENDS, "ready"}:
        return None
    publications = [p for t in targets if t.state == "ready" for p in ledger.publications(target=t.id)]
    waits = {p.state for p in publications}
    if waits & {"open", "publishing"} or ("ready" in states and not publications):
        return None
    ending: JobEnding = (
        "failed" if "failed" in states
        else "confirm" if "awaiting" in waits
        else "cancelled" if "cancelled" in states
        else "done"
    )  # fmt: skip
    began, at = _span([_lasted(ledger.history(target=t.id), t) for t in targets])
    return JobEnd(job, targets, ending, at, max(0.0, at - began))


def _lasted(history: Sequence[Event], target: Target) -> tuple[float, float]:
    """When a target was begun, the last time, and when it came to its end."""
    began = next((e.at for e in reversed(history) if e.from_state in BEGAN_FROM), target.created_at)
    return began, max(began, target.changed_at)


def _span(lasted: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """From when to when the last round went: what was made before one target was tried again does not count."""
    ordered = sorted(lasted, key=lambda one: one[1], reverse=True)
    began, at = ordered[0]
    for start, end in ordered[1:]:
        if end < began:
            break
        began = min(began, start)
    return began, at
