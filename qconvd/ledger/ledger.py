"""Changes of the ledger. Every method is one transaction: a SIGKILL finds all of it on disk, or nothing.

A target's way is waiting → planned → converting → verifying → ready → (publishing →) done; docs/explanation/ledger.md draws
it with its side roads. Which changes are allowed stands in the schema, and so do the triggers that write the history.
"""

from __future__ import annotations

import secrets
import sqlite3
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from qconvd.errors import QconvdError
from qconvd.ledger.control import Control
from qconvd.ledger.filesystem import MOUNTS
from qconvd.ledger.outbox import Outbox
from qconvd.ledger.patience import RETRIES, backoff
from qconvd.ledger.publishing import Publishing
from qconvd.ledger.records import Outcome, Source, Target, Task, WantedTarget, as_json, options_of, spec_digest
from qconvd.ledger.snapshots import AWAITS_FETCH, Snapshots

LEASE_SECONDS = 60.0

_TASK_OF = {"waiting": "plan", "planned": "convert", "verifying": "verify"}
_DURING = {
    "plan": "waiting", "fetch": "planned", "convert": "converting", "verify": "verifying", "publish": "publishing"
}  # fmt: skip
"""The state of a target while a task of this kind runs."""
_BEFORE = {"plan": "waiting", "fetch": "planned", "convert": "planned", "verify": "verifying", "publish": "ready"}
"""The state in which a target waits for a task of this kind."""


class StaleFence(QconvdError):
    """A task was given to another attempt: who comes late may not finish it."""


class Ledger(Publishing, Snapshots, Control, Outbox):
    """All that the daemon remembers. `clock` gives seconds since 1970."""

    def __init__(
        self, path: Path, *, clock: Callable[[], float] = time.time, mounts: Path = MOUNTS, only_read: bool = False
    ) -> None:
        super().__init__(path, mounts=mounts, only_read=only_read)
        self._clock = clock

    # Sources

    def source_seen(self, locator: str, identity: str, name: str, fingerprint: str) -> Source:
        """A complete model lies at `locator`. Another `identity` than before makes a new version of it.

        What waits for the old version, failed on it or is being made from it is superseded; what is done stays done until
        the new version takes its place.
        """
        with self.transaction() as db:
            known = self.source_at(locator)
            if known and known.digest == identity and known.state != "refused":
                db.execute(
                    "UPDATE source SET state = 'present', reason = '', name = ?, fingerprint = ?, changed_at = ? WHERE id = ?",
                    (name, fingerprint, self._clock(), known.id),
                )
                return self.source(known.id)
            return self._new_version(locator, name, identity, fingerprint, "present", "", {})

    def source_refused(self, locator: str, name: str, fingerprint: str, error: QconvdError) -> Source:
        """What lies at `locator` is complete but will not be converted, and why."""
        with self.transaction() as db:
            known = self.source_at(locator)
            if known and known.state == "refused":
                db.execute(
                    "UPDATE source SET name = ?, fingerprint = ?, reason = ?, error = ?, changed_at = ? WHERE id = ?",
                    (name, fingerprint, error.what, as_json(error.as_dict()), self._clock(), known.id),
                )
                return self.source(known.id)
            return self._new_version(locator, name, "", fingerprint, "refused", error.what, error.as_dict())

    def source_gone(self, locator: str, reason: str = "the model is no longer there") -> None:
        """Nothing lies at `locator` any more. What has not begun is superseded; what runs will find out by itself."""
        with self.transaction() as db:
            known = self.source_at(locator)
            if known is None or known.state == "gone":
                return
            db.execute(
                "UPDATE source SET state = 'gone', reason = ?, changed_at = ? WHERE id = ?", (reason, self._clock(), known.id)
            )
            self.supersede([t.id for t in self.targets("waiting", "planned", source=known.id)], reason)

    # Targets

    def want(self, source: int, recipe: str, targets: Sequence[WantedTarget], profile: str = "default") -> list[str]:
        """A recipe wants exactly these artifacts of a source. Returns the ids of those that are new.

        What is there already is left as it is, whatever its state: nothing is converted twice, and a cancelled or failed
        target waits for `retry`. What the recipe no longer wants and is not done is superseded.
        """
        with self.transaction() as db:
            origin = self.source(source)
            live = {t.spec_digest: t for t in self.targets(source=source) if t.state != "superseded"}
            made, kept = [], []
            for wanted in targets:
                options = options_of(wanted)
                digest = spec_digest(wanted.format, options)
                if digest in live:
                    id = live[digest].id
                    self._place_anew(live[digest], options)
                else:
                    id = self._insert(origin, wanted, options, digest, profile)
                    made.append(id)
                kept.append(id)
                db.execute(
                    "INSERT INTO wanted (target, recipe) VALUES (?, ?) ON CONFLICT (target, recipe) DO UPDATE SET current = 1",
                    (id, recipe),
                )
            self._forget(source, recipe, kept)
            return made

    def supersede(self, targets: Iterable[str], reason: str) -> list[str]:
        """Put something newer in the targets' place. A running task of theirs shows up in `unwanted`."""
        return self._move_all(targets, "superseded", reason)

    def cancel(self, targets: Iterable[str], reason: str = "cancelled on request") -> list[str]:
        """Stop working on targets that are neither done nor failed; returns their ids. Running tasks show up in `unwanted`."""
        with self.transaction():
            pending = [t for t in map(self.target, targets) if t.pending]
            for target in pending:
                self._cancel_publishing(target)
            return self._move_all([t.id for t in pending], "cancelled", reason)

    def retry(self, targets: Iterable[str], reason: str = "tried again on request") -> list[str]:
        """Begin failed and cancelled targets anew, and end the waiting of those that back off; returns their ids.

        What is made and was not published, is published.

        Raises `QconvdError` for one whose place another model's artifact has taken.
        """
        with self.transaction() as db:
            changed = []
            for target in map(self.target, targets):
                if self._only_unpublished(target):
                    self._retry_publishing(target.id)
                elif target.state in ("failed", "cancelled"):
                    self._restart(target, reason)
                elif target.pending and (self._publish_now(target.id) or target.not_before > self._clock()):
                    db.execute(
                        "UPDATE task SET not_before = 0 WHERE state = 'queued' AND id IN"
                        " (SELECT task FROM task_target WHERE target = ?)", (target.id,)
                    )  # fmt: skip
                    db.execute("UPDATE target SET not_before = 0, reason = ? WHERE id = ?", (reason, target.id))
                else:
                    continue
                changed.append(target.id)
            return changed

    def reconvert(self, targets: Iterable[str], reason: str = "made again on request") -> list[str]:
        """As `retry`, and done targets are made again too, by the plugins as they are now."""
        with self.transaction():
            chosen = [self.target(id) for id in targets]
            for target in chosen:
                if target.state == "done":
                    self._restart(target, reason)
            done = [t.id for t in chosen if t.state == "done"]
            return done + self.retry((t.id for t in chosen if t.state != "done"), reason)

    def explain(self, task: int, reason: str) -> None:
        """Why a queued task does not run yet; its targets say the same."""
        with self.transaction() as db:
            db.execute("UPDATE task SET reason = ? WHERE id = ? AND state = 'queued' AND reason != ?", (reason, task, reason))
            db.execute(
                "UPDATE target SET reason = ? WHERE reason != ? AND id IN (SELECT task_target.target FROM task_target"
                " JOIN task ON task.id = task_target.task WHERE task.id = ? AND task.state = 'queued')",
                (reason, reason, task),
            )

    # Tasks

    def make_tasks(self) -> list[Task]:
        """Make the tasks that the targets' states call for and that are not there yet; returns the new ones.

        Waiting targets of a source are planned together; planned ones are converted together by device class, so that a
        missing GPU holds up nobody else; each is verified on its own, and tried again on its own after a crash. What is being
        made from a copy of the model already gets no task. May be called at any time and any number of times.
        """
        with self.transaction() as db:
            self._follow_clock()
            busy = {r["target"] for r in db.execute(
                "SELECT task_target.target FROM task_target JOIN task ON task.id = task_target.task"
                " WHERE task.state IN ('queued', 'running')"
            )}  # fmt: skip
            published = [self.task(id) for id in self._make_publish_tasks(busy)]
            groups: dict[tuple[Any, ...], list[Target]] = {}
            for target in self.targets(*_TASK_OF):
                if target.id in busy or (target.state == "waiting" and self._stands_back(target)):
                    continue
                if not (target.state == "planned" and self._not_here(target.source)):
                    groups.setdefault(_group(target), []).append(target)
                elif not self._fetching(target.source):
                    groups.setdefault(("fetch", target.source, target.not_before), []).append(target)
            return published + [self._make_task(key[0], group) for key, group in groups.items()]

    def claim(self, task: int, placed: Mapping[str, Any] | None = None, lease: float = LEASE_SECONDS) -> Task:
        """Give a queued task to a new attempt. The returned task holds its fence, its attempt and its handle.

        The handle is written before anything is started, so whoever comes after a crash knows what to look for.
        Raises `StaleFence` if the task is not queued any more.
        """
        with self.transaction() as db:
            now = self._clock()
            changed = db.execute(
                "UPDATE task SET state = 'running', reason = '', attempt = attempt + 1, handle = id || '.' || (attempt + 1),"
                " fence = (SELECT max(fence) + 1 FROM task), placed = ?, lease_until = ?, changed_at = ?"
                " WHERE id = ? AND state = 'queued'",
                (as_json(dict(placed or {})), now + lease, now, task),
            ).rowcount
            if not changed:
                raise StaleFence(f"task {task} is not queued, so it cannot be started")
            found = self.task(task)
            if found.kind == "publish":
                words = f"publishing to {self._publication_began(found)}"
            else:
                words = {"plan": "planning", "fetch": "fetching", "convert": "converting", "verify": "verifying"}[found.kind]
            for id in found.targets:
                self._move(id, _DURING[found.kind], words)
            return found

    def renew(self, task: int, fence: int, lease: float = LEASE_SECONDS) -> None:
        """Say that somebody still looks after a running task. Raises `StaleFence`."""
        with self.transaction() as db:
            self._held(task, fence)
            db.execute("UPDATE task SET lease_until = ? WHERE id = ?", (self._clock() + lease, task))

    def finish(self, task: int, fence: int, outcomes: Mapping[str, Outcome]) -> None:
        """A task came to its end, well or badly for each of its targets. Raises `StaleFence`.

        A target that was cancelled or superseded meanwhile stays so.
        """
        with self.transaction():
            held = self._held(task, fence)
            now = self._clock()
            silent = Outcome(False, "the worker ended without a word about this target", retry=True)
            for target in self._still_in(held):
                outcome = outcomes.get(target.id, silent)
                if outcome.ok:
                    self._advance(target, held, outcome)
                else:
                    self._step_back(target, held, outcome, now)
            self._close(held, "done", "")

    def fail(
        self,
        task: int,
        fence: int,
        reason: str,
        *,
        retry: bool,
        error: Mapping[str, str] | None = None,
        at: float | None = None,
    ) -> None:
        """The whole attempt failed. With `retry` it is tried again at `at` (or after `backoff`), up to `RETRIES` times.

        After a crash (no `error`, no `at`) each target is tried alone: the one that brings the worker down, and nobody
        knows which that is, shall not take the others with it. Raises `StaleFence`.
        """
        with self.transaction():
            held = self._held(task, fence)
            outcome, now = Outcome(False, reason, error or {}, retry), self._clock()
            left = [t for t in self._still_in(held) if self._step_back(t, held, outcome, now, at)]
            if len(left) > 1 and not error and at is None:
                self._close(held, "failed", reason)
            else:
                self._requeue(held, left, reason, "failed")

    def release(self, task: int, fence: int, reason: str, *, at: float = 0.0) -> None:
        """The attempt was stopped, which is no failure: what is still wanted of it is queued again. Raises `StaleFence`."""
        with self.transaction() as db:
            held = self._held(task, fence)
            left = self._still_in(held)
            for target in left:
                self._move(target.id, _BEFORE[held.kind], reason)
                db.execute("UPDATE target SET not_before = ? WHERE id = ?", (at, target.id))
            self._requeue(held, left, reason, "cancelled")

    # How sources change

    def _new_version(
        self, locator: str, name: str, digest: str, fingerprint: str, state: str, reason: str, error: Mapping[str, str]
    ) -> Source:
        now = self._clock()
        with self.transaction() as db:
            known = self.source_at(locator)
            version = known.version + 1 if known else 1
            if known:
                why = f"the model changed; this was version {known.version}"
                db.execute(
                    "UPDATE source SET state = 'replaced', reason = ?, changed_at = ? WHERE id = ?", (why, now, known.id)
                )
                old = [t.id for t in self.targets(source=known.id) if t.state not in ("done", "superseded")]
                self.supersede(old, why)
            row = db.execute(
                "INSERT INTO source (locator, version, name, digest, fingerprint, state, reason, error, created_at, changed_at)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (locator, version, name, digest, fingerprint, state, reason, as_json(dict(error)), now, now),
            ).lastrowid
        return self.source(row or 0)

    # How targets change

    def _insert(self, source: Source, wanted: WantedTarget, options: Mapping[str, Any], digest: str, profile: str) -> str:
        names = wanted.names(source.name, profile)
        id, now = _new_id(), self._clock()
        state, reason, error, artifact = "waiting", "waiting to be planned", "{}", "{}"
        plan, waits_for = "{}", ""
        if (same := self._same_artifact(source, digest, names.folder, names.manifest)) is not None:
            state, reason, plan, artifact = "done", _made_from(same["locator"]), same["plan"], same["artifact"]
        elif (clash := self._clash(source, digest, names.folder, names.manifest)) is not None:
            state, reason, error = "failed", clash.what, as_json(clash.as_dict())
        elif (first := self._first(id, source, digest, names.folder, names.manifest)) is not None:
            reason, waits_for = _waits_for(first["locator"]), first["id"]
        with self.transaction() as db:
            db.execute(
                "INSERT INTO target (id, source, format, options, spec_digest, device, state, reason, error, version, label,"
                " folder, stem, manifest_name, plan, artifact, waits_for, created_at, changed_at)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    id, source.id, wanted.format, as_json(options), digest, options.get("device", "auto"), state, reason, error,
                    wanted.version, wanted.label, names.folder, names.stem, names.manifest, plan, artifact, waits_for, now, now,
                ),
            )  # fmt: skip
        return id

    def _same_artifact(self, source: Source, digest: str, folder: str, manifest: str) -> sqlite3.Row | None:
        """An artifact that the same content under the same name became elsewhere (the model was moved to another folder)."""
        found = self.rows(
            "SELECT target.plan, target.artifact, source.locator FROM target JOIN source ON source.id = target.source"
            " WHERE source.digest = ? AND source.locator != ? AND target.spec_digest = ? AND target.folder = ?"
            " AND target.manifest_name = ? AND target.state IN ('done', 'ready', 'publishing') AND source.state != 'replaced'"
            " LIMIT 1",
            (source.digest, source.locator, digest, folder, manifest),
        )
        return found[0] if found else None

    def _first(self, id: str, source: Source, digest: str, folder: str, manifest: str) -> sqlite3.Row | None:
        """A target that makes this very artifact from a copy of the model, and has its turn before the target `id`.

        The one that has begun goes first, of two that wait the older; so two never wait for each other.
        """
        found = self.rows(
            "SELECT target.id, source.locator FROM target JOIN source ON source.id = target.source"
            " WHERE source.digest = ? AND target.source != ? AND target.spec_digest = ? AND target.folder = ?"
            " AND target.manifest_name = ? AND target.state IN ('waiting', 'planned', 'converting', 'verifying')"
            " AND (target.state != 'waiting' OR target.rowid < coalesce((SELECT rowid FROM target WHERE id = ?), 1 << 62)"
            " OR EXISTS (SELECT 1 FROM task_target JOIN task ON task.id = task_target.task"
            " WHERE task_target.target = target.id AND task.state IN ('queued', 'running'))) ORDER BY target.rowid LIMIT 1",
            (source.digest, source.id, digest, folder, manifest, id),
        )
        return found[0] if found else None

    def _stands_back(self, target: Target) -> bool:
        """Whether a waiting target lets a copy's go first; writes down which, and that it does not any more."""
        source = self.source(target.source)
        first = self._first(target.id, source, target.spec_digest, target.folder, target.manifest_name)
        id = first["id"] if first else ""
        if id != target.waits_for:
            reason = _waits_for(first["locator"]) if first else "waiting to be planned"
            with self.transaction() as db:
                db.execute("UPDATE target SET waits_for = ?, reason = ? WHERE id = ?", (id, reason, target.id))
        return first is not None

    def _clash(self, source: Source, digest: str, folder: str, manifest: str) -> QconvdError | None:
        """Another model that is still there and whose artifact has, or will have, the same name.

        A copy of this model is in nobody's way: the same artifact of it has the same bytes, so one waits for the other.
        """
        found = self.rows(
            "SELECT source.locator FROM target JOIN source ON source.id = target.source WHERE source.locator != ?"
            " AND source.state = 'present' AND target.folder = ? COLLATE NOCASE AND target.manifest_name = ? COLLATE NOCASE"
            " AND target.state IN ('waiting', 'planned', 'converting', 'verifying', 'ready', 'publishing', 'done')"
            " AND NOT (source.digest = ? AND target.spec_digest = ? AND (target.state = 'done'"
            " OR (target.folder = ? AND target.manifest_name = ?))) LIMIT 1",
            (source.locator, folder, manifest, source.digest, digest, folder, manifest),
        )
        if not found:
            return None
        return QconvdError(
            f"the artifact would overwrite that of another model, {found[0]['locator']}: both are called {folder}",
            where=source.locator,
            fix="rename one of the two models, or remove the other one",
        )

    def _place_anew(self, target: Target, options: Mapping[str, Any]) -> None:
        """A recipe may move a target that has not begun to another device, and a file that it needs to another folder."""
        device = options.get("device", "auto")
        if dict(target.options) == dict(options) or target.state not in ("waiting", "planned", "failed", "cancelled"):
            return
        with self.transaction() as db:
            self._detach(target.id)
            db.execute("UPDATE target SET device = ?, options = ? WHERE id = ?", (device, as_json(dict(options)), target.id))
            if target.state == "planned" and target.device == device:  # its plan says where the file was
                self._move(target.id, "waiting", "a file that it needs lies elsewhere now")

    def _forget(self, source: int, recipe: str, kept: Sequence[str]) -> None:
        """What a recipe wanted before and does not want now."""
        with self.transaction() as db:
            for target in self.targets(source=source):
                if recipe in target.recipes and target.id not in kept and target.state != "superseded":
                    db.execute("UPDATE wanted SET current = 0 WHERE target = ? AND recipe = ?", (target.id, recipe))
                    still = db.execute("SELECT 1 FROM wanted WHERE target = ? AND current = 1", (target.id,)).fetchone()
                    self.publish_to(target.id, recipe, [])
                    if not still and target.state not in ("ready", "publishing", "done"):
                        self.supersede([target.id], f"the recipe {recipe} does not want it any more")

    def _restart(self, target: Target, reason: str) -> None:
        source = self.source(target.source)
        clash = self._clash(source, target.spec_digest, target.folder, target.manifest_name)
        if clash is not None:
            raise clash
        with self.transaction() as db:
            self._move(target.id, "waiting", reason)
            self._publish_again(target.id)
            db.execute(
                "UPDATE target SET failures = 0, not_before = 0, error = '{}', waits_for = '' WHERE id = ?", (target.id,)
            )
            self._stands_back(self.target(target.id))

    def _move_all(self, targets: Iterable[str], state: str, reason: str) -> list[str]:
        with self.transaction():
            moved = list(targets)
            for id in moved:
                self._detach(id)
                self._move(id, state, reason)
            return moved

    def _detach(self, id: str) -> None:
        """Take a target out of its queued task; a task that has none left is cancelled."""
        with self.transaction() as db:
            queued = "SELECT id FROM task WHERE state = 'queued'"
            db.execute(f"DELETE FROM task_target WHERE target = ? AND task IN ({queued})", (id,))
            db.execute(f"UPDATE publication SET task = NULL WHERE target = ? AND task IN ({queued})", (id,))
            db.execute(
                "UPDATE task SET state = 'cancelled', reason = 'none of its targets is wanted any more', changed_at = ?"
                " WHERE state = 'queued' AND NOT EXISTS (SELECT 1 FROM task_target WHERE task = task.id)",
                (self._clock(),),
            )

    def _advance(self, target: Target, task: Task, outcome: Outcome) -> None:
        data = as_json(dict(outcome.data))
        with self.transaction() as db:
            db.execute("UPDATE target SET failures = 0, not_before = 0, error = '{}' WHERE id = ?", (target.id,))
            if task.kind == "plan":
                version = str(outcome.data.get("version", target.version))
                db.execute("UPDATE target SET plan = ?, version = ? WHERE id = ?", (data, version, target.id))
                awaits = AWAITS_FETCH if self._not_here(target.source) else "waiting to be converted"
                self._move(target.id, "planned", outcome.reason or awaits)
            elif task.kind == "fetch":
                self._fetched(target.source, outcome.data)
                self._move(target.id, "planned", outcome.reason or "waiting to be converted")
            elif task.kind == "convert":
                self._move(target.id, "verifying", outcome.reason or "waiting to be verified")
            elif task.kind == "publish":
                self._publication_ended(target, task, outcome)
            else:
                db.execute("UPDATE target SET artifact = ? WHERE id = ?", (data, target.id))
                self._move(target.id, "ready", outcome.reason or "verified and in its place")
                self._follow_publications(target.id)
                for old in db.execute(
                    "SELECT id FROM target WHERE state IN ('ready', 'publishing', 'done') AND folder = ? AND manifest_name = ?"
                    " AND source != ? AND NOT (spec_digest = ? AND source IN (SELECT twin.id FROM source AS twin"
                    " JOIN source AS mine ON mine.digest = twin.digest WHERE mine.id = ?))",
                    (target.folder, target.manifest_name, target.source, target.spec_digest, target.source),
                ).fetchall():
                    self._move(old["id"], "superseded", f"the artifact of target {target.id} took its place")
                self._share(self.target(target.id))

    def _share(self, target: Target) -> None:
        """A target is done, and with it those of copies of the model that waited for it."""
        reason = _made_from(self.source(target.source).locator)
        with self.transaction() as db:
            for copy in db.execute("SELECT id FROM target WHERE waits_for = ? AND state = 'waiting'", (target.id,)).fetchall():
                self._move(copy["id"], "done", reason)
                db.execute(
                    "UPDATE target SET waits_for = '', plan = ?, artifact = ? WHERE id = ?",
                    (as_json(dict(target.plan)), as_json(dict(target.artifact)), copy["id"]),
                )
                self._follow_publications(copy["id"])

    def _step_back(self, target: Target, task: Task, outcome: Outcome, now: float, at: float | None = None) -> bool:
        """A failure: try again later if that may help, else fail. Returns whether it is tried again.

        `now` is the same for all targets of a task, so that they are tried again together.
        """
        if task.kind == "publish":
            return self._publication_failed(target, task, outcome, now if at is None else at, now)
        failures = target.failures + 1
        again = outcome.retry and failures < RETRIES
        with self.transaction() as db:
            if again:
                when = at if at is not None else now + backoff(failures)
                reason = f"attempt {failures} of {RETRIES} failed: {outcome.reason}"
            else:
                when = 0.0
                reason = outcome.reason if not outcome.retry else f"failed {failures} times, the last time: {outcome.reason}"
            db.execute(
                "UPDATE target SET failures = ?, not_before = ?, error = ? WHERE id = ?",
                (failures, when, as_json(dict(outcome.error)), target.id),
            )
            self._move(target.id, _BEFORE[task.kind] if again else "failed", reason)
        return again

    # How tasks change

    def _follow_clock(self) -> None:
        """Begin waits anew that began in what is now the future: the clock was set back, and they would last as much longer.

        Whole seconds, so that targets which failed together go on together.
        """
        with self.transaction() as db:
            for table, state in (("target", "waiting', 'planned', 'verifying"), ("task", "queued"), ("publication", "open")):
                db.execute(
                    f"UPDATE {table} SET not_before = :now + round(not_before - changed_at), changed_at = :now"
                    f" WHERE state IN ('{state}') AND not_before > :now AND changed_at > :now", {"now": self._clock()}
                )  # fmt: skip

    def _make_task(self, kind: str, targets: Sequence[Target]) -> Task:
        device = "cpu" if kind == "fetch" else _device(targets[0])
        now = self._clock()
        with self.transaction() as db:
            id = db.execute(
                "INSERT INTO task (kind, source, device, state, reason, not_before, need, created_at, changed_at)"
                " VALUES (?, ?, ?, 'queued', '', ?, ?, ?, ?)",
                (kind, targets[0].source, device, targets[0].not_before, as_json(self._need(kind, targets)), now, now),
            ).lastrowid
            db.executemany("INSERT INTO task_target (task, target) VALUES (?, ?)", [(id, t.id) for t in targets])
        return self.task(id or 0)

    def _held(self, task: int, fence: int) -> Task:
        held = self.task(task)
        if held.fence != fence or held.state != "running":
            raise StaleFence(
                f"task {task} is {held.state} and belongs to attempt {held.attempt}: fence {fence} does not count any more"
            )
        return held

    def _still_in(self, task: Task) -> list[Target]:
        """The targets of a running task that nobody took away meanwhile."""
        return [t for t in map(self.target, task.targets) if t.state == _DURING[task.kind]]

    def _requeue(self, task: Task, left: Sequence[Target], reason: str, otherwise: str) -> None:
        if not left or task.kind == "publish":
            # What is to be published again is grouped anew: more may have become ready.
            self._close(task, otherwise, reason)
            return
        with self.transaction() as db:
            gone = set(task.targets) - {t.id for t in left}
            db.executemany("DELETE FROM task_target WHERE task = ? AND target = ?", [(task.id, id) for id in gone])
            now = [self.target(t.id) for t in left]
            db.execute(
                "UPDATE task SET state = 'queued', reason = ?, not_before = ?, need = ?, lease_until = 0, changed_at = ?"
                " WHERE id = ?",
                (reason, max(t.not_before for t in now), as_json(self._need(task.kind, now)), self._clock(), task.id),
            )

    def _close(self, task: Task, state: str, reason: str) -> None:
        with self.transaction() as db:
            db.execute(
                "UPDATE task SET state = ?, reason = ?, lease_until = 0, changed_at = ? WHERE id = ?",
                (state, reason, self._clock(), task.id),
            )
            self._publications_wait(task.id)


def _new_id() -> str:
    """Ten hexadecimal digits, of which the first is a letter: what has digits alone is a job's number to everybody who asks."""
    return secrets.choice("abcdef") + secrets.token_hex(5)[1:]


def _waits_for(locator: str) -> str:
    return f"waits for the artifact that is made from {locator}, which holds the same model"


def _made_from(locator: str) -> str:
    return f"made already from {locator}, which holds the same model"


def _device(target: Target) -> str:
    """The device class: `auto` stays open only where the format's kernels for a GPU were measured on one."""
    if target.device == "auto" and not ("cuda" in target.plan.get("devices", ()) and target.plan.get("measured_on")):
        return "cpu"
    return target.device


def _group(target: Target) -> tuple[Any, ...]:
    alone = target.id if target.failures and not target.error else ""
    if target.state == "waiting":
        return ("plan", target.source, target.not_before, alone)
    if target.state == "planned":
        return ("convert", target.source, _device(target), target.not_before, alone)
    return ("verify", target.id)
