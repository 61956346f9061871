"""What the ledger knows of publishing: which artifact goes to which places, and how far that is.

A publication is open from the moment that a recipe wants it. When its artifact is ready it is published, or awaits somebody's
word first; its target is done when no publication of it is left.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from qconvd.destinations import Place, shown
from qconvd.ledger.asking import Asking
from qconvd.ledger.needs import need_of
from qconvd.ledger.patience import RETRIES, backoff
from qconvd.ledger.records import Outcome, Target, Task, as_json

PublicationState: TypeAlias = Literal["open", "awaiting", "publishing", "done", "rehearsed", "failed", "cancelled", "unwanted"]
WANTED: tuple[PublicationState, ...] = ("open", "awaiting", "publishing", "rehearsed", "failed", "cancelled")
"""What keeps a target from being done."""
UNMADE = ("waiting", "planned", "converting", "verifying")
AWAITS = "verified; waits for `qconvd publish JOB`"
WAITS = "verified; waits to be published"


@dataclass(frozen=True, slots=True)
class Publication:
    """One artifact at one place, or on its way there."""

    id: int
    target: str
    destination: str
    revision: str
    recipe: str
    options: dict[str, Any]
    state: PublicationState
    reason: str
    error: dict[str, str]
    confirmed: int
    commit_id: str
    """The Hub's commit that holds it; empty for a folder."""
    failures: int
    not_before: float
    task: int | None
    created_at: float
    changed_at: float

    @property
    def place(self) -> str:
        """For people."""
        return shown(self.destination, self.revision)


class Publishing(Asking):
    """Publications and what they mean to targets. All changes are made within the ledger's transactions."""

    _detach: Callable[[str], None]

    def publications(self, *, target: str | None = None, task: int | None = None) -> list[Publication]:
        """Those of a target or of an open task, or all, in the order in which they were wanted."""
        where, values = [], []  # type: tuple[list[str], list[Any]]
        for column, value in (("target", target), ("task", task)):
            if value is not None:
                where.append(f"{column} = ?")
                values.append(value)
        query = f"SELECT * FROM publication {'WHERE ' + ' AND '.join(where) if where else ''} ORDER BY id"
        return [_publication(row) for row in self.rows(query, values)]

    def unpublished(self) -> list[Target]:
        """Targets that are ready and not at all their places yet, though nobody has to say a word."""
        open_ones = {p.target for p in self.publications() if p.state in ("open", "publishing")}
        return [t for t in self.targets("ready", "publishing") if t.id in open_ones]

    def refused_to(self, token: str) -> list[str]:
        """Targets that the Hub refused somebody else: with another token, of this fingerprint, it may be different."""
        refused = [p for p in self.publications() if p.state == "failed" and p.error.get("token", token) != token]
        return [p.target for p in refused if self.target(p.target).state in ("failed", "ready", "publishing")]

    def publish_to(self, target: str, recipe: str, places: Sequence[Place]) -> None:
        """A recipe wants an artifact at exactly these places.

        What is there already stays; what was only rehearsed, or failed, is tried again where the recipe now says something
        else of it. A target that was done goes on to its new places.
        """
        with self.transaction() as db:
            stuck = self._only_unpublished(self.target(target))
            known = {(p.destination, p.revision): p for p in self.publications(target=target)}
            kept = {(place.destination, place.revision) for place in places}
            for place in places:
                self._want_place(db, target, recipe, place, known.get((place.destination, place.revision)))
            for key, old in known.items():
                if key not in kept and old.recipe == recipe and old.state in WANTED and old.state != "publishing":
                    if old.task is not None:
                        self._detach(target)
                    self._set(db, [old.id], "unwanted", f"the recipe {recipe} does not want it there any more")
            if stuck and not self._only_unpublished(self.target(target)):
                # What it failed at is said otherwise now, or is not wanted any more.
                self._ready_again(target)
            self._follow_publications(target)

    def confirm(self, targets: Iterable[str]) -> list[Publication]:
        """Somebody says that these are to be published; returns what is, now or as soon as it is made."""
        with self.transaction() as db:
            found = []
            for target in targets:
                waiting = [p for p in self.publications(target=target) if p.state == "awaiting"]
                db.executemany("UPDATE publication SET confirmed = 1 WHERE id = ?", [(p.id,) for p in waiting])
                self._set(db, [p.id for p in waiting], "open", "")
                if waiting and self.target(target).state == "failed" and self.target(target).artifact:
                    self._ready_again(target)
                self._follow_publications(target)
                found += waiting
            return found

    # What becomes of a target

    def _move(self, id: str, state: str, reason: str) -> None:
        with self.transaction() as db:
            db.execute(
                "UPDATE target SET state = ?, reason = ?, changed_at = ? WHERE id = ?", (state, reason, self._clock(), id)
            )

    def _follow_publications(self, id: str, *, over: bool = False) -> None:
        """Put a target into the state that its publications call for, if its artifact is made. `over`: its task has ended."""
        target = self.target(id)
        if target.state not in ("ready", "done") and not (over and target.state == "publishing"):
            return
        left = [p for p in self.publications(target=id) if p.state in WANTED]
        if not left:
            if target.state != "done":
                self._move(id, "done", _published(self.publications(target=id)))
            return
        failed = next((p for p in left if p.state == "failed"), None)
        if failed is not None and not any(p.state in ("open", "publishing") for p in left):
            if target.state == "done":
                self._move(id, "ready", WAITS)
            self._move(id, "failed", failed.reason)
            with self.transaction() as db:
                db.execute("UPDATE target SET error = ? WHERE id = ?", (as_json(dict(failed.error)), id))
            return
        if all(p.state == "awaiting" for p in left):
            reason = AWAITS
        elif (late := [p for p in left if p.state == "open"]) and all(p.not_before > self._clock() for p in late):
            reason = late[0].reason
        else:
            reason = next((p.reason for p in left if p.state == "rehearsed" and p.reason), WAITS)
        if target.state != "ready" or target.reason != reason:
            self._move(id, "ready", reason)

    def _publish_again(self, id: str) -> None:
        """The artifact is made anew: every place is to get it, and where it must be said, it must be said again."""
        with self.transaction() as db:
            for publication in self.publications(target=id):
                if publication.state != "unwanted":
                    self._set(db, [publication.id], "awaiting" if _asks(publication) else "open", "")
            db.execute(
                "UPDATE publication SET confirmed = 0, task = NULL, failures = 0, not_before = 0 WHERE target = ?", (id,)
            )

    def _only_unpublished(self, target: Target) -> bool:
        """Whether a target that failed or was cancelled is made, and only its publishing is to be tried again."""
        ended = [p for p in self.publications(target=target.id) if p.state in ("failed", "cancelled")]
        return target.state in ("failed", "cancelled") and bool(target.artifact) and bool(ended)

    def _retry_publishing(self, id: str) -> None:
        with self.transaction() as db:
            for publication in self.publications(target=id):
                if publication.state in ("failed", "cancelled"):
                    asks = _asks(publication) and not publication.confirmed
                    self._set(db, [publication.id], "awaiting" if asks else "open", "")
            db.execute("UPDATE publication SET failures = 0, not_before = 0 WHERE target = ?", (id,))
            self._ready_again(id)
            self._follow_publications(id)

    def _ready_again(self, id: str) -> None:
        """A target whose publishing had come to nothing goes on."""
        with self.transaction() as db:
            db.execute("UPDATE target SET failures = 0, not_before = 0, error = '{}' WHERE id = ?", (id,))
            self._move(id, "ready", WAITS)

    def _cancel_publishing(self, target: Target) -> None:
        """To be called before a target is cancelled: what is made keeps in mind that only publishing was."""
        if target.state in ("ready", "publishing"):
            with self.transaction() as db:
                left = [p.id for p in self.publications(target=target.id) if p.state in WANTED]
                self._set(db, left, "cancelled", "cancelled on request")

    # What becomes of a publish task

    def _publish_groups(self, busy: set[str]) -> list[tuple[list[Target], list[Publication]]]:
        """What may be published now, by place and model: one task for each, and no two at one place at a time."""
        open_places = {
            (row["destination"], row["revision"])
            for row in self.rows("SELECT destination, revision FROM publication WHERE task IS NOT NULL")
        }
        groups: dict[tuple[Any, ...], list[tuple[Target, Publication]]] = {}
        for row in self.rows(
            "SELECT publication.* FROM publication JOIN target ON target.id = publication.target WHERE"
            " publication.state = 'open' AND publication.task IS NULL AND target.state = 'ready'"
            " ORDER BY publication.not_before, publication.id"
        ):
            publication = _publication(row)
            target = self.target(publication.target)
            key = (
                publication.destination, publication.revision, target.source, as_json(publication.options),
                "" if _together(publication) else target.id,
            )  # fmt: skip
            groups.setdefault(key, []).append((target, publication))
        resting, taken, found = self._resting(), set(busy), []
        for (destination, revision, *_), all_of_it in groups.items():
            # A target is in one task at a time, so its next place has its turn after this one. What rests for long before its
            # next attempt elsewhere is not waited for.
            group = [(target, p) for target, p in all_of_it if target.id not in resting]
            together = any(_together(p) for _, p in group)
            if not group or (destination, revision) in open_places or any(target.id in taken for target, _ in group):
                continue
            if together and any(self._others_to_come(target, p) for target, p in group):
                continue
            taken |= {target.id for target, _ in group}
            open_places.add((destination, revision))
            found.append(([target for target, _ in group], [p for _, p in group]))
        return found

    def _resting(self) -> set[str]:
        """Targets whose next attempt at something is not due yet."""
        return {
            row["target"]
            for row in self.rows(
                "SELECT task_target.target FROM task_target JOIN task ON task.id = task_target.task"
                " WHERE task.state = 'queued' AND task.not_before > ?",
                (self._clock(),),
            )
        }

    def _others_to_come(self, target: Target, publication: Publication) -> bool:
        """Whether another artifact of the model goes to the same place and is still being made, or on its way elsewhere."""
        found = self.rows(
            "SELECT 1 FROM publication JOIN target ON target.id = publication.target WHERE publication.destination = ?"
            " AND publication.revision = ? AND publication.state IN ('open', 'awaiting') AND target.source = ?"
            f" AND (target.state IN {UNMADE} OR (target.state = 'publishing' AND publication.state = 'open')) LIMIT 1",
            (publication.destination, publication.revision, target.source),
        )
        return bool(found)

    def _make_publish_tasks(self, busy: set[str]) -> list[int]:
        """Make the publish tasks that are due; returns their numbers."""
        made = []
        with self.transaction() as db:
            for targets, publications in self._publish_groups(busy):
                now = self._clock()
                later = max(p.not_before for p in publications)
                id = db.execute(
                    "INSERT INTO task (kind, source, device, state, reason, not_before, need, created_at, changed_at)"
                    " VALUES ('publish', ?, 'cpu', 'queued', '', ?, ?, ?, ?)",
                    (targets[0].source, later, as_json(need_of("publish", targets)), now, now),
                ).lastrowid
                db.executemany("INSERT INTO task_target (task, target) VALUES (?, ?)", [(id, t.id) for t in targets])
                db.executemany("UPDATE publication SET task = ? WHERE id = ?", [(id, p.id) for p in publications])
                made.append(int(id or 0))
        return made

    def _publication_began(self, task: Task) -> str:
        """The task's publications are under way; returns where, in words."""
        with self.transaction() as db:
            found = self.publications(task=task.id)
            self._set(db, [p.id for p in found], "publishing", "")
            return found[0].place if found else ""

    def _publication_ended(self, target: Target, task: Task, outcome: Outcome) -> None:
        """A target is where it was to go; on to its next place, or it is done."""
        with self.transaction() as db:
            for publication in self.publications(target=target.id, task=task.id):
                rehearsed = bool(outcome.data.get("dry_run"))
                reason = str(outcome.data.get("told", ""))
                self._set(db, [publication.id], "rehearsed" if rehearsed else "done", reason)
                commit = str(outcome.data.get("commit", ""))
                db.execute(
                    "UPDATE publication SET task = NULL, commit_id = ?, failures = 0, not_before = 0, error = '{}'"
                    " WHERE id = ?", (commit, publication.id),
                )  # fmt: skip
            self._follow_publications(target.id, over=True)

    def _publication_failed(self, target: Target, task: Task, outcome: Outcome, at: float, now: float) -> bool:
        """It is tried again later, or it is over; the target goes on to its other places meanwhile. Whether it is tried again.

        The Hub or a disk may be away for a day, so what is told as passing is tried without end. A worker that was brought
        down has three attempts.
        """
        with self.transaction() as db:
            again = False
            for publication in self.publications(target=target.id, task=task.id):
                failures = publication.failures + 1
                again = outcome.retry and (bool(outcome.error) or failures < RETRIES)
                if again:
                    of = "" if outcome.error else f" of {RETRIES}"
                    reason = f"attempt {failures}{of} failed: {outcome.reason}"
                    when = at if at > now else now + max(backoff(failures), float(outcome.data.get("wait", 0)))
                else:
                    reason = f"failed {failures} times, the last time: {outcome.reason}" if outcome.retry else outcome.reason
                    when = 0.0
                self._set(db, [publication.id], "open" if again else "failed", reason)
                db.execute(
                    "UPDATE publication SET error = ?, failures = ?, not_before = ?, task = NULL WHERE id = ?",
                    (as_json(dict(outcome.error)), failures, when, publication.id),
                )
            self._follow_publications(target.id, over=True)
            return again

    def _publish_now(self, id: str) -> bool:
        """End the waiting of what is to be published again later, and try anew what failed at one place while another waits.

        Returns whether there was anything of these.
        """
        with self.transaction() as db:
            failed = [p for p in self.publications(target=id) if p.state == "failed" and p.task is None]
            for publication in failed:
                asks = _asks(publication) and not publication.confirmed
                self._set(db, [publication.id], "awaiting" if asks else "open", "")
            db.executemany("UPDATE publication SET failures = 0, not_before = 0 WHERE id = ?", [(p.id,) for p in failed])
            query = "UPDATE publication SET not_before = 0 WHERE target = ? AND state = 'open' AND not_before > ?"
            return db.execute(query, (id, self._clock())).rowcount > 0 or bool(failed)

    def _publications_wait(self, task: int) -> None:
        """A task is closed: what it did not publish is open again."""
        with self.transaction() as db:
            left = [p.id for p in self.publications(task=task) if p.state == "publishing"]
            db.executemany("UPDATE publication SET state = 'open' WHERE id = ?", [(id,) for id in left])
            db.execute("UPDATE publication SET task = NULL WHERE task = ?", (task,))

    # Rows

    def _want_place(self, db: sqlite3.Connection, target: str, recipe: str, place: Place, known: Publication | None) -> None:
        now, options = self._clock(), as_json(dict(place.options))
        asks = bool(place.options.get("confirm"))
        if known is None:
            db.execute(
                "INSERT INTO publication (target, destination, revision, recipe, options, state, created_at, changed_at)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (target, place.destination, place.revision, recipe, options, "awaiting" if asks else "open", now, now),
            )
            return
        db.execute("UPDATE publication SET recipe = ?, options = ? WHERE id = ?", (recipe, options, known.id))
        changed = as_json(known.options) != options
        waits = asks and not known.confirmed
        again = known.state == "unwanted" or (changed and known.state in ("rehearsed", "failed", "open", "awaiting"))
        if again and known.task is None:
            self._set(db, [known.id], "awaiting" if waits else "open", "")

    def _set(self, db: sqlite3.Connection, ids: Sequence[int], state: PublicationState, reason: str) -> None:
        db.executemany(
            "UPDATE publication SET state = ?, reason = ?, changed_at = ? WHERE id = ?",
            [(state, reason, self._clock(), id) for id in ids],
        )


def _publication(row: sqlite3.Row) -> Publication:
    return Publication(**{**dict(row), "options": json.loads(row["options"]), "error": json.loads(row["error"])})


def _together(publication: Publication) -> bool:
    """Whether all artifacts of the model that go to this place are one commit."""
    return publication.options.get("commit") == "together"


def _asks(publication: Publication) -> bool:
    """Whether somebody has to say that it may be published."""
    return bool(publication.options.get("confirm"))


def _published(publications: Sequence[Publication]) -> str:
    """The reason of a target that is done."""
    done = [p.reason or f"published to {p.place}" for p in publications if p.state == "done"]
    return "; ".join(done) or "done"
