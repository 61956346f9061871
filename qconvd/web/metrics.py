"""`/metrics` in Prometheus' text format (https://prometheus.io/docs/instrumenting/exposition_formats/).

Labels are states, stages, formats and kinds of devices, so their number is bounded; no path and no repository is among them.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from qconvd import __version__
from qconvd.ledger.control import Cause
from qconvd.ledger.records import PENDING
from qconvd.web.reading import Reader
from qconvd.web.site import Site
from qconvd.web.streams import Streams

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
STAGES = {
    ("planned", "waiting"): "plan", ("verifying", "converting"): "convert",
    ("ready", "verifying"): "verify", ("done", "publishing"): "publish",
}  # fmt: skip
"""Which stage a target has passed through when it comes to the first state from the second."""
ENDS = ("done", "failed", "cancelled")
Kind = Literal["counter", "gauge"]


@dataclass
class Family:
    """A metric: one line of explanation and its values by labels."""

    name: str
    kind: Kind
    about: str
    values: dict[tuple[tuple[str, str], ...], float] = field(default_factory=dict)

    def set(self, value: float, **labels: str) -> Family:
        self.values[tuple(sorted(labels.items()))] = value
        return self

    def lines(self) -> Iterator[str]:
        """As Prometheus reads it."""
        yield f"# HELP {self.name} {self.about}"
        yield f"# TYPE {self.name} {self.kind}"
        for labels, value in self.values.items():
            shown = ",".join(f'{name}="{_escaped(text)}"' for name, text in labels)
            yield f"{self.name}{{{shown}}} {value:.17g}" if shown else f"{self.name} {value:.17g}"


class Metrics:
    """Counts what the ledger's history says, each event once: the first scrape reads all of it, the others what is new."""

    def __init__(self, site: Site, reader: Reader, streams: Streams) -> None:
        self._site, self._reader, self._streams = site, reader, streams
        self._lock = threading.Lock()
        self._last = 0
        self._since: dict[str, float] = {}
        """When each target came to the state that it is in."""
        self._seconds: Counter[tuple[str, str]] = Counter()
        self._runs: Counter[tuple[str, str]] = Counter()
        self._ended: Counter[tuple[str, str]] = Counter()
        self._bytes: Counter[str] = Counter()

    def text(self) -> str:
        """The whole page."""
        with self._lock:
            self._count()
            families = [
                *self._daemon(), *self._now(), *self._so_far(), *self._notifications(), *self._machine(), *_process()
            ]  # fmt: skip
        return "\n".join(line for family in families for line in family.lines()) + "\n"

    def _count(self) -> None:
        rows = self._reader.ledger.rows(
            "SELECT event.id, event.at, event.target, event.from_state, event.to_state, target.format,"
            " CASE WHEN event.to_state = 'ready' THEN json_extract(target.artifact, '$.nbytes') END AS nbytes"
            " FROM event JOIN target ON target.id = event.target WHERE event.id > ? ORDER BY event.id", (self._last,),
        )  # fmt: skip
        for row in rows:
            self._last = row["id"]
            before, state, format = self._since.get(row["target"], row["at"]), row["to_state"], row["format"]
            if stage := STAGES.get((state, row["from_state"])):
                self._seconds[stage, format] += max(0.0, row["at"] - before)
                self._runs[stage, format] += 1
            if state in ENDS:
                self._ended[state, format] += 1
                self._since.pop(row["target"], None)
            else:
                self._since[row["target"]] = row["at"]
            self._bytes[format] += row["nbytes"] or 0

    def _daemon(self) -> Iterator[Family]:
        yield Family("qconvd_info", "gauge", "The version that runs.").set(1, version=__version__)
        yield Family("qconvd_ready", "gauge", "Whether it takes work.").set(float(not self._site.unready()))
        paused = Family("qconvd_paused", "gauge", "Whether no task is started, by cause.")
        causes = {pause.cause for pause in self._reader.ledger.pauses()}
        for cause in get_args(Cause):
            paused.set(float(cause in causes), cause=cause)
        yield paused
        yield Family("qconvd_event_readers", "gauge", "Readers of event streams.").set(self._streams.readers)
        yield Family("qconvd_event_readers_dropped_total", "counter", "Readers that were cut off: they did not read.").set(
            self._streams.dropped
        )

    def _now(self) -> Iterator[Family]:
        ledger = self._reader.ledger
        jobs = Family("qconvd_jobs", "gauge", "Jobs by state; those that were replaced are left out.")
        for job_state in ("waiting", "converting", "verifying", "publishing", "ready", "failed", "cancelled", "done"):
            jobs.set(0, state=job_state)
        for state, count in self._reader.job_states().items():
            jobs.set(count, state=state)
        yield jobs
        yield _grouped(
            Family("qconvd_targets", "gauge", "Artifacts by state and format."), ("state", "format"),
            ledger.rows("SELECT state, format, count(*) FROM target WHERE state != 'superseded' GROUP BY state, format"),
        )  # fmt: skip
        yield _grouped(
            Family("qconvd_tasks", "gauge", "Open tasks by stage and state."), ("stage", "state"),
            ledger.rows("SELECT kind, state, count(*) FROM task WHERE state IN ('queued', 'running') GROUP BY kind, state"),
        )  # fmt: skip
        marks = ", ".join("?" * len(PENDING))
        busy = "SELECT target FROM task_target JOIN task ON task.id = task WHERE task.state = 'running'"
        query = f"SELECT min(changed_at) FROM target WHERE state IN ({marks}) AND id NOT IN ({busy})"
        oldest = ledger.rows(query, PENDING)[0][0]
        age = max(0.0, time.time() - oldest) if oldest is not None else 0.0
        yield Family("qconvd_queue_age_seconds", "gauge", "How long the oldest artifact that waits has been waiting.").set(age)
        rate = self._reader.bytes_per_second()
        yield Family("qconvd_conversion_bytes_per_second", "gauge", "Bytes that are written now, by all workers.").set(rate)

    def _so_far(self) -> Iterator[Family]:
        seconds = Family("qconvd_stage_seconds_total", "counter", "Seconds that artifacts spent in a stage that they passed.")
        runs = Family("qconvd_stage_runs_total", "counter", "Stages that artifacts passed.")
        ended = Family("qconvd_targets_ended_total", "counter", "How often artifacts ended in a state.")
        made = Family("qconvd_artifact_bytes_total", "counter", "Bytes of finished artifacts.")
        for (stage, format), value in self._seconds.items():
            seconds.set(value, stage=stage, format=format)
        for (stage, format), count in self._runs.items():
            runs.set(count, stage=stage, format=format)
        for (state, format), count in self._ended.items():
            ended.set(count, state=state, format=format)
        for format, nbytes in self._bytes.items():
            made.set(nbytes, format=format)
        return iter((seconds, runs, ended, made))

    def _notifications(self) -> Iterator[Family]:
        ledger = self._reader.ledger
        waiting = len(ledger.notifications("waiting"))
        failing = len(ledger.notifiers_in_trouble())
        yield Family("qconvd_notifications_waiting", "gauge", "Notifications that wait to be sent.").set(waiting)
        yield Family("qconvd_notifiers_failing", "gauge", "Entries of `notify:` that could not be told, the last time.").set(
            failing
        )
        ended = Family("qconvd_notifications_total", "counter", "Notifications by what became of them.")
        for state in ("sent", "failed", "dropped"):
            ended.set(ledger.told_until(f"notifications {state}"), state=state)
        yield ended

    def _machine(self) -> Iterator[Family]:
        seen = self._reader.devices()
        total = Family("qconvd_device_memory_bytes", "gauge", "Memory of a device.").set(seen.memory_total, device="cpu")
        free = Family("qconvd_device_memory_free_bytes", "gauge", "Memory of a device that is free.")
        free.set(seen.memory_available, device="cpu")
        for number, gpu in enumerate(seen.gpus):
            total.set(gpu.total, device=f"cuda:{number}")
            free.set(gpu.free, device=f"cuda:{number}")
        size = Family("qconvd_disk_bytes", "gauge", "Size of the disk that a folder lies on.")
        left = Family("qconvd_disk_free_bytes", "gauge", "What is free on the disk that a folder lies on.")
        for disk in seen.disks:
            size.set(disk.total, folder=disk.place)
            left.set(disk.free, folder=disk.place)
        return iter((total, free, size, left))


def _process() -> Iterator[Family]:
    times = os.times()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    yield Family("process_cpu_seconds_total", "counter", "CPU seconds of the daemon itself.").set(times.user + times.system)
    yield Family("process_resident_memory_bytes", "gauge", "Memory of the daemon itself.").set(
        pages * os.sysconf("SC_PAGE_SIZE")
    )


def _grouped(family: Family, labels: tuple[str, ...], rows: Iterable[Iterable[object]]) -> Family:
    for *names, count in rows:
        family.set(float(str(count)), **dict(zip(labels, map(str, names), strict=True)))
    return family


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
