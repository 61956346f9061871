"""A job's own log: what the ledger knows of it, in order, with the times and the logs of its tasks.

The ledger has all of it, so nothing is written while a job goes on. When it comes to rest, the log is written to a file, too:
it can be read, searched and sent without qconvd, and stays when `qconvd ledger prune` lets the ledger forget.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path

from qconvd.ledger import Event, Job, Ledger, Task
from qconvd.logs.text import one_line, sentence

log = logging.getLogger(__name__)
AT_REST = ("done", "failed", "cancelled", "superseded")
FOLDER = "logs"
"""Below the state folder: `<task>.log` is what the worker of a task wrote, `job-<job>.log` a job's own."""


def path_of(state: Path, job: int) -> Path:
    """Where a job's log is, once it has come to rest."""
    return state / FOLDER / f"job-{job}.log"


def change(ledger: Ledger, event: Event) -> str:
    """A change of a target in words, with its time."""
    from qconvd.announcements import sentence as words

    assert event.target is not None
    return f"{stamp(event)} {one_line(ledger.target(event.target).label)} {sentence(words(event)[1])}"


def title(ledger: Ledger, task: Task) -> str:
    """A task in words."""
    return f"{task.kind} {one_line(', '.join(ledger.target(t).label for t in task.targets))}"


def stamp(event: Event) -> str:
    """The local time of an event."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event.at))


def lines(ledger: Ledger, job: Job) -> Iterator[str]:
    """The log of a job; what its workers wrote is named, not repeated."""
    yield one_line(f"job {job.id}: {job.source.name} by the recipe {job.recipe}, from {job.source.locator}")
    for event in ledger.history_of([t.id for t in job.targets]):
        if event.target is not None:
            yield change(ledger, event)
        elif event.task is not None and event.to_state == "running":
            what = title(ledger, ledger.task(event.task))
            yield f"{stamp(event)} task {event.task} ({what}) started; what it wrote: {event.task}.log"
        elif event.task is not None and event.from_state == "running":
            how = f": {sentence(event.reason)}" if event.reason else ""
            yield f"{stamp(event)} task {event.task} ended: {event.to_state}{how}"


class JobLogs:
    """Writes the log of each job that comes to rest."""

    def __init__(self, ledger: Ledger, state: Path) -> None:
        self._ledger, self._state = ledger, state
        self._seen: tuple[object, ...] = ()
        for draft in (state / FOLDER).glob(".job-*.log.new"):
            draft.unlink()
        # What came to rest since the last was written, perhaps before a crash; of a state folder without any, from now on.
        written = [p.stat().st_mtime for p in (state / FOLDER).glob("job-*.log")]
        after = ("WHERE at < ?", (max(written),)) if written else ("", ())
        self._last = int(ledger.rows(f"SELECT coalesce(max(id), 0) FROM event {after[0]}", after[1])[0][0])

    def tick(self) -> None:
        if self._seen == (mark := self._ledger.mark()):
            return
        self._seen = mark
        events = self._ledger.history(since=self._last)
        self._last = events[-1].id if events else self._last
        ended = list(dict.fromkeys(e.target for e in events if e.target is not None and e.to_state in AT_REST))
        with self._ledger.snapshot():  # somebody may prune it meanwhile
            for number in self._ledger.job_numbers(ended):
                job = self._ledger.job(number)
                if not any(t.pending for t in job.targets):
                    self._write(job)

    def _write(self, job: Job) -> None:
        path = path_of(self._state, job.id)
        try:
            path.parent.mkdir(exist_ok=True)
            # Whole or not at all, but not worth waiting for the disk: the ledger has all of it.
            draft = path.with_name(f".{path.name}.new")
            draft.write_text("".join(f"{line}\n" for line in lines(self._ledger, job)))
            draft.replace(path)
        except OSError as error:
            log.warning("the log of job %d cannot be written: %s", job.id, os.strerror(error.errno or 0),
                        extra={"action": "job.no_log", "jobs": [job.id], "path": path})  # fmt: skip
