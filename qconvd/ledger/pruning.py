"""Forgetting: what is over and asked for by nobody any more leaves the ledger, when somebody says so."""

from __future__ import annotations

from dataclasses import dataclass

from qconvd.ledger.ledger import Ledger

_ENDED = "SELECT id FROM task WHERE state NOT IN ('queued', 'running') AND changed_at < :before"
# A superseded target whose artifact was the last in its place stays: it is known by it what qconvd has put there.
_REPLACED = (
    "SELECT id FROM target AS old WHERE state = 'superseded' AND changed_at < :before"
    " AND NOT EXISTS (SELECT 1 FROM task_target WHERE target = old.id)"
    " AND NOT EXISTS (SELECT 1 FROM target WHERE waits_for = old.id)"
    " AND (artifact = '{}' OR EXISTS (SELECT 1 FROM target AS new WHERE new.state IN ('ready', 'publishing', 'done')"
    " AND json_extract(new.artifact, '$.manifest') = json_extract(old.artifact, '$.manifest')))"
)
# Of a place whose model is gone the last version stays: the next one is counted from it.
_VERSIONS = (
    "SELECT id FROM source WHERE state = 'replaced' AND changed_at < :before"
    " AND NOT EXISTS (SELECT 1 FROM target WHERE source = source.id)"
    " AND NOT EXISTS (SELECT 1 FROM task WHERE source = source.id)"
    " AND NOT EXISTS (SELECT 1 FROM snapshot WHERE source = source.id)"
)


@dataclass(frozen=True)
class Pruned:
    """How many rows went. `tasks` are numbers, for their logs."""

    events: int
    requests: int
    tasks: tuple[int, ...]
    targets: int
    sources: int
    notifications: int = 0

    @property
    def total(self) -> int:
        return self.events + self.requests + len(self.tasks) + self.targets + self.sources + self.notifications


def prune(ledger: Ledger, before: float) -> Pruned:
    """Remove what ended before a time (seconds since 1970): history, answered requests, tasks, and what was superseded.

    What is made, failed, cancelled or still to be done stays, with its state and reason. Safe beside a running daemon.
    """
    time = {"before": before}
    with ledger.transaction() as db:
        tasks = tuple(r["id"] for r in db.execute(_ENDED, time).fetchall())
        events = db.execute(f"DELETE FROM event WHERE task IN ({_ENDED})", time).rowcount
        db.execute(f"UPDATE publication SET task = NULL WHERE task IN ({_ENDED})", time)
        db.execute(f"DELETE FROM task_target WHERE task IN ({_ENDED})", time)
        db.execute(f"DELETE FROM task WHERE id IN ({_ENDED})", time)
        for table in ("event", "wanted", "publication"):
            gone = db.execute(f"DELETE FROM {table} WHERE target IN ({_REPLACED})", time).rowcount
            events += gone if table == "event" else 0
        targets = db.execute(f"DELETE FROM target WHERE id IN ({_REPLACED})", time).rowcount
        events += db.execute(f"DELETE FROM event WHERE source IN ({_VERSIONS})", time).rowcount
        db.execute(f"DELETE FROM job_number WHERE source IN ({_VERSIONS})", time)
        sources = db.execute(f"DELETE FROM source WHERE id IN ({_VERSIONS})", time).rowcount
        # The history of open tasks tells how often they were tried.
        events += db.execute(
            "DELETE FROM event WHERE at < :before AND task IS NULL AND (target IS NULL OR target IN"
            " (SELECT id FROM target WHERE state IN ('done', 'failed', 'cancelled', 'superseded')))", time
        ).rowcount  # fmt: skip
        requests = db.execute("DELETE FROM request WHERE state != 'open' AND answered_at < :before", time).rowcount
        told = db.execute("DELETE FROM notification WHERE state != 'waiting' AND changed_at < :before", time).rowcount
    return Pruned(events, requests, tasks, targets, sources, told)
