"""Questions to the ledger. The command line asks them beside a running daemon: WAL lets readers be."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qconvd.errors import QconvdError
from qconvd.ledger.database import Database
from qconvd.ledger.records import (
    Event,
    Job,
    Request,
    Source,
    Target,
    Task,
    event_of,
    request_of,
    source_of,
    target_of,
    task_of,
)

DIGITS = 18
"""No job's number has more: SQLite could not hold it."""


class Reading(Database):
    """What is known of sources, jobs, targets and tasks."""

    def jobs(self) -> list[Job]:
        """All jobs, the oldest first."""
        return self._jobs("SELECT * FROM job ORDER BY id")

    def job(self, id: int | str) -> Job:
        """One job by its number. Raises `QconvdError`."""
        digits = str(id).lstrip("0")
        number = int(digits) if digits.isdecimal() and len(digits) <= DIGITS else -1
        found = self._jobs("SELECT * FROM job WHERE id = ?", (number,))
        if not found:
            raise QconvdError(f"there is no job {id}", fix="`qconvd jobs` lists them")
        return found[0]

    def jobs_of(self, source: int) -> list[Job]:
        """The jobs of one model, the oldest first."""
        # By their numbers: asked for a source, the view would be made of all jobs that there are.
        numbers = [r["id"] for r in self.rows("SELECT id FROM job_number WHERE source = ? ORDER BY id", (source,))]
        return [job for number in numbers for job in self._jobs("SELECT * FROM job WHERE id = ?", (number,))]

    def job_numbers(self, targets: Sequence[str]) -> list[int]:
        """The numbers of the jobs that want any of these targets, or wanted them, the oldest first."""
        query = (
            "SELECT DISTINCT job_number.id FROM target JOIN wanted ON wanted.target = target.id"
            " JOIN job_number ON job_number.source = target.source AND job_number.recipe = wanted.recipe"
            f" WHERE target.id IN ({_marks(targets)}) ORDER BY job_number.id"
        )
        return [r["id"] for r in self.rows(query, targets)]

    def jobs_before(self, before: int | None = None, limit: int = 50, states: Sequence[str] = ()) -> list[Job]:
        """At most `limit` jobs with smaller numbers than `before`, the newest first; with `states`, those that have a live
        target in one of them.
        """
        where, values = "id < ?", [before if before is not None else 1 << 62]  # type: tuple[str, list[Any]]
        if states:
            where += (
                " AND EXISTS (SELECT 1 FROM target JOIN wanted ON wanted.target = target.id"
                " WHERE target.source = job_number.source AND wanted.recipe = job_number.recipe"
                f" AND target.state IN ({_marks(states)}))"
            )
            values += states
        with self.snapshot():
            query = f"SELECT id FROM job_number WHERE {where} ORDER BY id DESC LIMIT ?"
            numbers = [r["id"] for r in self.rows(query, [*values, limit])]
            return [job for number in numbers for job in self._jobs("SELECT * FROM job WHERE id = ?", (number,))]

    def find(self, id: str) -> list[Target]:
        """The targets that a person means: the live ones of a job's number, or one by its own id. Raises `QconvdError`."""
        if str(id).isdecimal():
            return [t for t in self.job(id).targets if t.state != "superseded"]
        return [self.target(id)]

    def source(self, id: int) -> Source:
        return source_of(self._one("SELECT * FROM source WHERE id = ?", (id,), f"source {id}"))

    def source_at(self, locator: str) -> Source | None:
        """The current version of what lies at `locator`."""
        found = self.rows("SELECT * FROM source WHERE locator = ? AND state != 'replaced'", (locator,))
        return source_of(found[0]) if found else None

    def sources(self) -> list[Source]:
        """The current version of every source ever seen, the oldest first."""
        return [source_of(r) for r in self.rows("SELECT * FROM source WHERE state != 'replaced' ORDER BY id")]

    def target(self, id: str) -> Target:
        """One target. Raises `QconvdError`."""
        return self._targets("WHERE target.id = ?", (id,), f"target {id}")[0]

    def targets(self, *states: str, source: int | None = None) -> list[Target]:
        """Targets in any of `states` (all if none is given), in the order in which they were wanted."""
        where, values = [], list[Any](states)
        if states:
            where.append(f"target.state IN ({_marks(states)})")
        if source is not None:
            where.append("target.source = ?")
            values.append(source)
        return self._targets("WHERE " + " AND ".join(where) if where else "", values)

    def counts(self) -> dict[str, int]:
        """How many targets are in each state."""
        return {r["state"]: r["n"] for r in self.rows("SELECT state, count(*) AS n FROM target GROUP BY state")}

    def laid(self, manifest: Path) -> tuple[str, ...] | None:
        """The files of the artifacts that were put where this manifest is to lie; None if none ever was."""
        found = self.rows("SELECT artifact FROM target WHERE json_extract(artifact, '$.manifest') = ?", (str(manifest),))
        if not found:
            return None
        return tuple(dict.fromkeys(path for row in found for path in json.loads(row["artifact"]).get("files", ())))

    def task(self, id: int) -> Task:
        return self._tasks("WHERE task.id = ?", (id,), f"task {id}")[0]

    def tasks(self, *states: str) -> list[Task]:
        """Tasks in any of `states` (all if none is given), the oldest first."""
        return self._tasks(f"WHERE task.state IN ({_marks(states)})" if states else "", states)

    def tasks_of(self, target: str) -> list[Task]:
        """Every task that a target was part of, for its logs."""
        return self._tasks("WHERE task.id IN (SELECT task FROM task_target WHERE target = ?)", (target,))

    def unwanted(self) -> list[Task]:
        """Running tasks with a target that was cancelled or superseded meanwhile: they are to be stopped.

        What is left of their targets goes on in a new task, where the journal takes it up.
        """
        return self._tasks(
            "WHERE task.state = 'running' AND EXISTS (SELECT 1 FROM task_target JOIN target ON target.id = task_target.target"
            " WHERE task_target.task = task.id AND target.state IN ('cancelled', 'superseded'))"
        )

    def history(self, *, target: str | None = None, task: int | None = None, since: int = 0) -> list[Event]:
        """Changes of state after event `since`, of one target or task, or of all."""
        where, values = "id > ?", [since]  # type: tuple[str, list[Any]]
        for column, value in (("target", target), ("task", task)):
            if value is not None:
                where += f" AND {column} = ?"
                values.append(value)
        return [event_of(r) for r in self.rows(f"SELECT * FROM event WHERE {where} ORDER BY id", values)]

    def history_of(self, targets: Sequence[str], since: int = 0) -> list[Event]:
        """Changes of these targets, and of all tasks that they were part of, after event `since`."""
        marks = _marks(targets)
        query = (
            f"SELECT * FROM event WHERE id > ? AND (target IN ({marks})"
            f" OR task IN (SELECT task FROM task_target WHERE target IN ({marks}))) ORDER BY id"
        )
        return [event_of(r) for r in self.rows(query, [since, *targets, *targets])]

    def requests(self) -> list[Request]:
        """What the daemon has not answered yet, in the order asked."""
        return [request_of(r) for r in self.rows("SELECT * FROM request WHERE state = 'open' ORDER BY id")]

    def asked(self, id: int) -> Request:
        """One request with its answer."""
        return request_of(self._one("SELECT * FROM request WHERE id = ?", (id,), f"request {id}"))

    def _jobs(self, query: str, values: Sequence[Any] = ()) -> list[Job]:
        with self.snapshot():
            found = self.rows(query, values)
            sources = {r["source"] for r in found}
            targets: dict[tuple[int, str], list[Target]] = {}
            for source in sources:
                for target in self.targets(source=source):
                    for recipe in target.recipes:
                        targets.setdefault((source, recipe), []).append(target)
            known = {source: self.source(source) for source in sources}
        return [
            Job(
                r["id"], known[r["source"]], r["recipe"], tuple(targets.get((r["source"], r["recipe"]), ())),
                r["created_at"], r["changed_at"], r["priority"],
            )
            for r in found
        ]  # fmt: skip

    def _targets(self, where: str, values: Sequence[Any] = (), what: str = "") -> list[Target]:
        with self.snapshot():
            found = self.rows(f"SELECT * FROM target {where} ORDER BY target.rowid", values)
            recipes: dict[str, list[str]] = {}
            for row in self.rows(
                f"SELECT target, recipe FROM wanted WHERE target IN (SELECT id FROM target {where}) ORDER BY id", values
            ):
                recipes.setdefault(row["target"], []).append(row["recipe"])
        if what and not found:
            raise QconvdError(f"there is no {what}", fix="`qconvd jobs` lists jobs, `qconvd job ID` its targets")
        return [target_of(r, recipes.get(r["id"], ())) for r in found]

    def _tasks(self, where: str, values: Sequence[Any] = (), what: str = "") -> list[Task]:
        with self.snapshot():
            found = self.rows(f"SELECT * FROM task {where} ORDER BY task.id", values)
            targets: dict[int, list[str]] = {}
            for row in self.rows(
                "SELECT task_target.task, task_target.target FROM task_target JOIN target ON target.id = task_target.target"
                f" WHERE task_target.task IN (SELECT id FROM task {where}) ORDER BY target.rowid",
                values,
            ):
                targets.setdefault(row["task"], []).append(row["target"])
        if what and not found:
            raise QconvdError(f"there is no {what}", fix="`qconvd job ID` names the tasks of a job")
        return [task_of(r, targets.get(r["id"], ())) for r in found]

    def _one(self, query: str, values: Sequence[Any], what: str) -> Any:
        found = self.rows(query, values)
        if not found:
            raise QconvdError(f"the ledger knows no {what}")
        return found[0]


def _marks(values: Sequence[Any]) -> str:
    return ", ".join("?" * len(values))
