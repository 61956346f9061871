"""Answers that only look: from the ledger as it is, the files that the daemon writes beside it, and the machine."""

from __future__ import annotations

import os
import shutil
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from qconvd.config import Config, WatchHub
from qconvd.destinations import places
from qconvd.devices import Devices
from qconvd.documents.jobs import job_data, job_details
from qconvd.documents.log import log_piece
from qconvd.documents.status import bytes_per_second, job_states, refused_data, seen_data, status_data
from qconvd.engine.manifest import Manifest, read_manifest
from qconvd.errors import QconvdError
from qconvd.executors.base import MARK
from qconvd.hub.tokens import redacted
from qconvd.ledger import Ledger, Target
from qconvd.progress import read_progress
from qconvd.sightings import Sighting, read_sightings
from qconvd.web import answers
from qconvd.web.site import Site

LOG_BYTES = 1 << 18
"""How much of the end of a log is read."""
DEVICES_SECONDS = 5.0
"""How long what is known of the machine counts: asking a GPU's driver is not free."""


class Reader:
    """Answers from one ledger. Methods are called from several threads."""

    def __init__(self, site: Site, ledger: Ledger) -> None:
        self._site = site
        self.ledger = ledger
        self._devices: tuple[float, answers.Devices] | None = None
        self._job_states: tuple[object, Counter[str]] | None = None

    @property
    def config(self) -> Config:
        """The configuration in force."""
        assert self._site.config is not None
        return self._site.config

    def status(self) -> answers.Status:
        """The daemon at a glance."""
        found = status_data(
            self.ledger, self._site.state, config=self.config.path, daemon=os.getpid(), states=self.job_states()
        )
        return answers.Status(**found, ready=not self._site.unready(), trouble=self._site.trouble)

    def bytes_per_second(self) -> float:
        """What is written now, of all conversions together."""
        return bytes_per_second(self.ledger.tasks("running"), read_progress(self._site.state))

    def job_states(self) -> Counter[str]:
        """How many jobs are in each state; those that were replaced are left out."""
        # All jobs have to be looked at; as long as nobody writes to the ledger, once is enough.
        mark = self.ledger.mark()
        if self._job_states is None or self._job_states[0] != mark:
            self._job_states = mark, job_states(self.ledger)
        return self._job_states[1]

    def watched(self) -> list[answers.Watched]:
        """What is watched, with what keeps it from being."""
        troubles = {s.path: s for s in self.sightings() if s.kind in ("unreadable", "refused")}
        found = []
        for watch in self.config.watch:
            hub = isinstance(watch, WatchHub)
            place = watch.hub.shown if isinstance(watch, WatchHub) else str(watch.folder)
            trouble = troubles.get(place)
            found.append(answers.Watched(
                kind="hub" if hub else "folder", place=place, recipes=list(watch.recipes), after=watch.after,
                trouble=trouble.reason if trouble else "", fix=trouble.fix if trouble else "",
            ))  # fmt: skip
        return found

    def refused(self) -> list[dict[str, Any]]:
        """What lies where models are expected and is none, or none that can be read."""
        return refused_data(self.ledger)

    def sightings(self) -> list[Sighting]:
        """Paths of which nothing is made."""
        return read_sightings(self._site.state)

    def models(self, before: int | None, limit: int) -> answers.Models:
        """Models, the newest first."""
        with self.ledger.snapshot():
            rows = self.ledger.rows(
                "SELECT id FROM source WHERE state != 'replaced' AND id < ? ORDER BY id DESC LIMIT ?",
                (before if before is not None else 1 << 62, limit + 1),
            )
            sources = [self.ledger.source(r["id"]) for r in rows[:limit]]
            jobs = {s.id: [j.id for j in self.ledger.jobs_of(s.id)] for s in sources}
        found = [
            answers.Model(
                id=s.id, name=s.name, source=s.locator, version=s.version, state=s.state, reason=s.reason,
                fix=s.error.get("fix", ""), jobs=jobs[s.id], created_at=s.created_at, changed_at=s.changed_at,
            )
            for s in sources
        ]  # fmt: skip
        seen = [answers.Seen(**one) for one in seen_data(self._site.state)]
        following = found[-1].id if len(rows) > limit else None
        return answers.Models(watched=self.watched(), models=found, seen=seen, next=following)

    def jobs(self, before: int | None, limit: int, state: str | None) -> answers.Jobs:
        """Jobs, the newest first."""
        found = self.ledger.jobs_before(before, limit + 1, [state] if state else [])
        progress = read_progress(self._site.state)
        shown = found[:limit]
        following = shown[-1].id if len(found) > limit else None
        return answers.Jobs(jobs=[answers.Job(**job_data(j, progress)) for j in shown], next=following)

    def job(self, id: int) -> answers.JobDetails:
        """A job with its history. Raises `QconvdError` if there is none."""
        return answers.JobDetails.model_validate(job_details(self.ledger, self._site.state, id))

    def log_piece(self, of: str, after: str, events: bool) -> answers.LogPiece:
        """A piece of a job's history with its workers' words. Raises `QconvdError` if there is no such job or target."""
        return answers.LogPiece(**log_piece(self.ledger, self._site.state, of, after, events=events))

    def history(self, since: int | None, limit: int) -> answers.History:
        """Rows of the ledger's history after `since`, or the last ones."""
        if since is None:
            rows = self.ledger.rows("SELECT * FROM event ORDER BY id DESC LIMIT ?", (limit,))[::-1]
        else:
            rows = self.ledger.rows("SELECT * FROM event WHERE id > ? ORDER BY id LIMIT ?", (since, limit))
        events = [answers.LedgerEvent.model_validate(row_data(r)) for r in rows]
        return answers.History(events=events, next=events[-1].id if events else since or 0)

    def log(self, id: int, lines: int) -> answers.Log:
        """The end of what the workers of a job wrote, without their events and without what looks like a secret."""
        job = self.ledger.job(id)
        tasks = sorted({task.id for t in job.targets for task in self.ledger.tasks_of(t.id)})
        found: list[str] = []
        cut = False
        for task in reversed(tasks):
            text, more = _end_of(self._site.state / "logs" / f"{task}.log")
            found[:0] = [redacted(line) for line in text.splitlines() if not line.startswith(MARK)]
            cut = cut or more
            if len(found) > lines:
                return answers.Log(lines=found[-lines:], cut=True)
        return answers.Log(lines=found, cut=cut)

    def artifacts(self, id: int) -> answers.Artifacts:
        """What a job has made, by the artifacts' manifests."""
        found, unreadable = [], {}
        for target in self.ledger.job(id).targets:
            try:
                manifest = self.manifest(target)
            except QconvdError as error:
                unreadable[target.id] = str(error)
                continue
            if manifest is not None:
                found.append(_artifact(target, manifest))
        return answers.Artifacts(artifacts=found, unreadable=unreadable)

    def manifest(self, target: Target) -> Manifest | None:
        """The manifest of a finished artifact. Raises `QconvdError` if it was removed or changed."""
        where = target.artifact.get("manifest")
        return read_manifest(Path(where)) if where and target.state in ("ready", "publishing", "done") else None

    def devices(self) -> answers.Devices:
        """What this machine has, as of some seconds ago at most."""
        now = time.monotonic()
        if self._devices is None or now - self._devices[0] > DEVICES_SECONDS:
            seen = Devices(self.config.devices.cuda).snapshot()
            gpus = [answers.Gpu(uuid=g.uuid, name=g.name, total=g.total, free=g.free) for g in seen.gpus]
            self._devices = now, answers.Devices(
                cpus=seen.cpus, memory_total=seen.memory_total, memory_available=seen.memory_available, gpus=gpus,
                no_gpu=seen.no_gpu, disks=list(_disks(self.config)),
            )  # fmt: skip
        return self._devices[1]

    def config_summary(self) -> answers.ConfigSummary:
        """The configuration, as far as it says what is done."""
        config = self.config
        recipes = {
            name: answers.Recipe(
                targets=[t.label for t in r.targets], match=r.match.model_dump(mode="json", exclude_defaults=True),
                publishes=list(dict.fromkeys(p.shown for t in r.targets for p in places(r, t, "MODEL", config.names))),
                confirm=r.confirm, dry_run=r.dry_run,
            )
            for name, r in config.recipes.items()
        }  # fmt: skip
        return answers.ConfigSummary(
            path=str(config.path), output=str(config.output), state=str(config.state), watched=self.watched(), recipes=recipes,
            limits=config.limits.model_dump(mode="json"), names=config.names,
        )  # fmt: skip


def row_data(row: Any) -> dict[str, Any]:
    """A row of the history as JSON data."""
    data = dict(row)
    return {**{k: v for k, v in data.items() if k not in ("from_state", "to_state")},
            "from": data["from_state"], "to": data["to_state"]}  # fmt: skip


def _artifact(target: Target, manifest: Manifest) -> answers.Artifact:
    def number(name: str) -> float | None:
        value = manifest.errors.get(name)
        return float(value) if isinstance(value, int | float) else None

    return answers.Artifact(
        target=target.id, label=target.label, format=manifest.format, folder=str(target.artifact.get("folder", "")),
        bytes=manifest.nbytes, errors=answers.Errors(relative_rms=number("relative_rms"), max_error=number("max_error")),
        files=[answers.File(path=f.path, bytes=f.bytes, sha256=f.sha256) for f in manifest.files],
        loads_with=[{str(k): str(v) for k, v in reader.items()} for reader in manifest.loads_with],
    )  # fmt: skip


def _disks(config: Config) -> Iterable[answers.Disk]:
    for place, path in (("output", config.output), ("state", config.state)):
        there = next((p for p in (path, *path.parents) if p.exists()), Path("/"))
        used = shutil.disk_usage(there)
        yield answers.Disk(place=place, path=str(path), total=used.total, free=used.free)


def _end_of(path: Path) -> tuple[str, bool]:
    """The last whole lines of a file, and whether there are more before them."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - LOG_BYTES))
            raw = file.read(LOG_BYTES)
    except OSError:
        return "", False
    cut = size > LOG_BYTES
    text = raw.decode(errors="replace")
    return (text.partition("\n")[2] if cut else text), cut
