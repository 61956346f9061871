"""What holds the daemon back, and what it does first: pauses and priorities, kept over restarts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from qconvd.errors import QconvdError
from qconvd.ledger.asking import Asking

Cause: TypeAlias = Literal["by hand", "quiet hours", "disk"]
HIGHEST = 1000


@dataclass(frozen=True, slots=True)
class Pause:
    """Why no task is started. Running ones end; models are taken in, unless it is the disk that is full."""

    cause: Cause
    reason: str
    since: float

    @property
    def told(self) -> str:
        """`paused (disk): less than …`"""
        return f"paused ({self.cause})" + (f": {self.reason}" if self.reason else "")


def checked_priority(priority: int) -> int:
    """A priority as it may be. Raises `QconvdError` for one out of range."""
    if not -HIGHEST <= priority <= HIGHEST:
        raise QconvdError(f"{priority} is no priority", fix=f"write a whole number from -{HIGHEST} to {HIGHEST}")
    return priority


class Control(Asking):
    """Pauses and priorities."""

    def pauses(self) -> list[Pause]:
        """What holds new tasks back now; what a person did comes first."""
        return [Pause(**dict(r)) for r in self.rows("SELECT * FROM pause ORDER BY cause")]

    def pause(self, cause: Cause, reason: str = "") -> None:
        """Start no task from now on; a second time only changes the reason."""
        with self.transaction() as db:
            db.execute(
                "INSERT INTO pause (cause, reason, since) VALUES (?, ?, ?) ON CONFLICT (cause) DO UPDATE SET reason = ?2"
                " WHERE reason != ?2",
                (cause, reason, self._clock()),
            )

    def resume(self, cause: Cause) -> bool:
        """End a pause; returns whether there was one of that cause."""
        with self.transaction() as db:
            return db.execute("DELETE FROM pause WHERE cause = ?", (cause,)).rowcount > 0

    def prioritize(self, job: int, priority: int) -> None:
        """What is made for this job goes before (above 0) or after (below 0) what others want. Raises `QconvdError`."""
        checked_priority(priority)
        with self.transaction() as db:
            if not db.execute("UPDATE job_number SET priority = ? WHERE id = ?", (priority, job)).rowcount:
                raise QconvdError(f"there is no job {job}", fix="`qconvd jobs` lists them")

    def priorities(self) -> dict[int, int]:
        """Of queued tasks, by number: the highest priority of the jobs that want any of their targets, where it is not 0."""
        if not self.rows("SELECT 1 FROM job_number WHERE priority != 0 LIMIT 1"):
            return {}
        found = self.rows(
            "SELECT task.id, max(job_number.priority) AS priority FROM task JOIN task_target ON task_target.task = task.id"
            " JOIN wanted ON wanted.target = task_target.target AND wanted.current = 1"
            " JOIN job_number ON job_number.source = task.source AND job_number.recipe = wanted.recipe"
            " WHERE task.state = 'queued' GROUP BY task.id HAVING max(job_number.priority) != 0"
        )
        return {r["id"]: r["priority"] for r in found}
