"""What the status page shows, as plain data for its templates."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from qconvd.errors import QconvdError
from qconvd.ledger import Job, Target, Task
from qconvd.progress import Progress, read_progress
from qconvd.web.reading import Reader
from qconvd.web.site import Site

QUEUE = 30
"""Jobs of the queue that are shown."""
HISTORY = 40
STAGES = ("plan", "fetch", "convert", "verify", "publish")
STAGE_WORDS = {"plan": "planning", "fetch": "fetching", "convert": "converting", "verify": "verifying", "publish": "publishing"}
DAY = 86400.0


@dataclass(frozen=True)
class Row:
    """A target with the job that it is shown under."""

    target: Target
    job: Job
    reason: str
    fix: str = ""
    progress: Progress | None = None
    error: float | None = None
    """Relative RMS error of the artifact; None where there is no artifact, or nothing was measured."""
    nbytes: int = 0


@dataclass(frozen=True)
class Run:
    """A task that a worker is at."""

    task: Task
    job: Job
    rows: list[Row]
    stages: list[tuple[str, str]]
    """Each stage with `done`, `now` or `next`."""

    @property
    def word(self) -> str:
        """What it does: `converting`."""
        return STAGE_WORDS[self.task.kind]


@dataclass(frozen=True)
class Waiting:
    """A job with targets that wait, and why."""

    job: Job
    reasons: list[tuple[str, str]]
    """The targets' names and what they wait for."""
    since: float


class Overview:
    """Gathers what is shown. Errors of finished artifacts are read once from their manifests and remembered."""

    def __init__(self, site: Site, reader: Reader) -> None:
        self._site = site
        self._reader = reader
        self._errors: dict[tuple[str, float], float | None] = {}

    def summary(self) -> dict[str, Any]:
        """The figures at the top of the page."""
        states = self._reader.job_states()
        since = time.time() - DAY
        made = self._reader.ledger.rows(
            "SELECT count(*) AS n, coalesce(sum(json_extract(artifact, '$.nbytes')), 0) AS bytes FROM target"
            " WHERE state = 'done' AND changed_at > ?", (since,),
        )[0]  # fmt: skip
        pending = sum(n for state, n in states.items() if state not in ("done", "failed", "cancelled"))
        working = len({run.job.id for run in self.running()})
        return {
            "trouble": self._site.unready(), "pauses": self._reader.ledger.pauses(),
            "unreached": self._reader.ledger.notifiers_in_trouble(),
            "working": working, "waiting": max(0, pending - working),
            "done": states["done"], "failed": states["failed"], "jobs": states.total(),
            "rate": self._reader.bytes_per_second(), "made": made["n"], "made_bytes": made["bytes"],
        }  # fmt: skip

    def running(self) -> list[Run]:
        """What workers are at."""
        ledger = self._reader.ledger
        progress = read_progress(self._site.state)
        with ledger.snapshot():
            tasks = ledger.tasks("running")
            return [run for t in tasks if (run := self._run(t, progress)) is not None]

    def queue(self) -> tuple[list[Waiting], int]:
        """Jobs with targets that wait, the oldest first, and how many more there are."""
        ledger = self._reader.ledger
        with ledger.snapshot():
            busy = {id for t in ledger.tasks("running") for id in t.targets}
            # By number, so in the order in which they are taken; only as many as are shown are read whole.
            numbers = [r["id"] for r in ledger.rows(
                "SELECT DISTINCT job_number.id FROM target JOIN wanted ON wanted.target = target.id JOIN job_number"
                " ON job_number.source = target.source AND job_number.recipe = wanted.recipe"
                " WHERE target.state IN ('waiting', 'planned', 'verifying', 'ready') ORDER BY job_number.id"
            )]  # fmt: skip
            found = [w for n in numbers[: QUEUE + len(busy)] if (w := _waiting(ledger.job(n), busy)) is not None]
        return found[:QUEUE], max(0, len(numbers) - QUEUE) if len(found) >= QUEUE else 0

    def history(self) -> list[list[Row]]:
        """What ended last: done, failed or cancelled. Targets of a job that came to nothing for one reason are one entry."""
        ledger = self._reader.ledger
        with ledger.snapshot():
            ids = [r["id"] for r in ledger.rows(
                "SELECT id FROM target WHERE state IN ('done', 'failed', 'cancelled')"
                " ORDER BY changed_at DESC, rowid DESC LIMIT ?",
                (HISTORY,),
            )]  # fmt: skip
            targets = [ledger.target(id) for id in ids]
            jobs = {source: ledger.jobs_of(source) for source in {t.source for t in targets}}
        rows = [(t, job) for t in targets if (job := _job_of(t, jobs[t.source])) is not None]
        entries: dict[object, list[Row]] = {}
        for row in (self.row(t, job) for t, job in rows):
            key: object = row.target.id if row.target.state == "done" else (row.job.id, row.target.state, row.reason)
            entries.setdefault(key, []).insert(0, row)  # in the order in which they were wanted
        return list(entries.values())

    def row(self, target: Target, job: Job, progress: Progress | None = None) -> Row:
        """A target as it is shown."""
        told = target.told(job.source)
        nbytes = int((target.artifact or target.plan).get("nbytes", 0))
        reason = "" if told == target.state else told
        return Row(target, job, reason, str(target.error.get("fix", "")), progress, self.error(target), nbytes)

    def error(self, target: Target) -> float | None:
        """How far an artifact is from its source."""
        key = target.id, target.changed_at
        if key not in self._errors:
            if len(self._errors) > 50 * HISTORY:
                self._errors.clear()
            self._errors[key] = self._look_up(target)
        return self._errors[key]

    def _look_up(self, target: Target) -> float | None:
        try:
            manifest = self._reader.manifest(target)
        except QconvdError:
            return None  # removed by hand: its page says so
        value = manifest.errors.get("relative_rms") if manifest else None
        return float(value) if isinstance(value, int | float) else None

    def _run(self, task: Task, progress: dict[str, Progress]) -> Run | None:
        targets = [self._reader.ledger.target(id) for id in task.targets]
        job = _job_of(targets[0], self._reader.ledger.jobs_of(task.source)) if targets else None
        if job is None:
            return None
        return Run(task, job, [self.row(t, job, progress.get(t.id)) for t in targets], list(_stages(task.kind, job)))


def _job_of(target: Target, jobs: list[Job]) -> Job | None:
    return next((job for job in jobs if job.recipe in target.recipes), None)


def _waiting(job: Job, busy: set[str]) -> Waiting | None:
    waiting = [t for t in job.targets if t.state in ("waiting", "planned", "verifying", "ready") and t.id not in busy]
    if not waiting:
        return None
    reasons: dict[str, list[str]] = {}
    for target in waiting:
        reasons.setdefault(target.told(job.source), []).append(target.label)
    return Waiting(job, [(", ".join(labels), why) for why, labels in reasons.items()], min(t.changed_at for t in waiting))


def _stages(now: str, job: Job) -> Iterator[tuple[str, str]]:
    """The stages that a job passes through: nothing is fetched that is here, nothing published that is not to be."""
    remote = job.source.locator.startswith("hub:")
    shown = [s for s in STAGES if s == now or (s != "publish" and (s != "fetch" or remote))]
    place = shown.index(now)
    for number, stage in enumerate(shown):
        yield stage, "done" if number < place else "now" if number == place else "next"
