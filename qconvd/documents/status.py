"""A daemon at a glance."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from qconvd import __version__
from qconvd.documents.jobs import progress_data
from qconvd.ledger import Job, Ledger, Task
from qconvd.progress import Progress, read_progress
from qconvd.sightings import read_sightings


def status_data(
    ledger: Ledger, state: Path, *, config: Path, daemon: int | None, states: Counter[str] | None = None
) -> dict[str, Any]:
    """What the daemon with the process id `daemon` does and waits for, or what one has left if that is None.

    `states`: what `job_states` gave, if it was asked already.
    """
    progress = read_progress(state) if daemon else {}
    with ledger.snapshot():
        running = ledger.tasks("running") if daemon else []
        labels = {id: ledger.target(id).label for task in running for id in task.targets}
        tasks = [
            {
                "task": t.id, "kind": t.kind, "model": ledger.source(t.source).name, "attempt": t.attempt,
                "device": str(t.placed.get("kind", t.device)), "since": t.changed_at,
                "targets": [
                    {"id": id, "label": labels[id], "progress": progress_data(progress[id]) if id in progress else None}
                    for id in t.targets
                ],
            }
            for t in running
        ]  # fmt: skip
        pauses = [{"cause": p.cause, "reason": p.reason, "told": p.told, "since": p.since} for p in ledger.pauses()]
        refused = refused_data(ledger)
        unreached = ledger.notifiers_in_trouble()
        counted = {
            "jobs": dict(job_states(ledger) if states is None else states), "targets": _counts(ledger, "target"),
            "tasks": _counts(ledger, "task", "queued", "running"),
        }  # fmt: skip
    return {
        "version": __version__, "pid": daemon, "config": str(config), "pauses": pauses, **counted, "running": tasks,
        "bytes_per_second": bytes_per_second(running, progress),
        "notifications": [
            {"notifier": n.notifier, "reason": n.reason, "told": n.told, "since": n.since, "waiting": n.waiting}
            for n in unreached
        ],
        "refused": refused,
        "seen": seen_data(state),
    }  # fmt: skip


def bytes_per_second(running: Iterable[Task], progress: Mapping[str, Progress]) -> float:
    """What is written now, of all conversions together."""
    return sum(progress[id].rate for task in running for id in task.targets if id in progress)


def seen_data(state: Path) -> list[dict[str, Any]]:
    """Paths of which nothing is made, and why."""
    return [{**asdict(s), "recipes": list(s.recipes)} for s in read_sightings(state)]


def refused_data(ledger: Ledger) -> list[dict[str, Any]]:
    """What lies where models are expected and is none, or none that can be read."""
    sources = [ledger.source(r["id"]) for r in ledger.rows("SELECT id FROM source WHERE state = 'refused' ORDER BY id")]
    return [{"path": s.locator, "name": s.name, "reason": s.reason, "fix": s.error.get("fix", "")} for s in sources]


def job_states(ledger: Ledger) -> Counter[str]:
    """How many jobs are in each state; those that were replaced are left out."""
    found = Counter[str](Job.state_of(states) for states in _states_of_jobs(ledger))
    found.pop("superseded", None)
    return found


def _states_of_jobs(ledger: Ledger) -> Iterable[set[str]]:
    rows = ledger.rows(
        "SELECT group_concat(DISTINCT target.state) AS states FROM job_number"
        " JOIN target ON target.source = job_number.source"
        " JOIN wanted ON wanted.target = target.id AND wanted.recipe = job_number.recipe GROUP BY job_number.id"
    )
    return (set(r["states"].split(",")) for r in rows)


def _counts(ledger: Ledger, table: str, *states: str) -> dict[str, int]:
    where = f"WHERE state IN ({', '.join('?' * len(states))})" if states else ""
    return {r[0]: r[1] for r in ledger.rows(f"SELECT state, count(*) FROM {table} {where} GROUP BY state", states)}
