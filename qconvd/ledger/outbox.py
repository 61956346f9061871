"""Notifications that wait to be sent, and how far the history was told. Nothing here sends."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from qconvd.ledger.asking import Asking
from qconvd.ledger.records import as_json

NotificationState: TypeAlias = Literal["waiting", "sent", "failed", "dropped"]
MOST_WAITING = 200
"""Notifications that wait for one notifier; of more, the oldest are dropped."""
KEPT_SECONDS = 30 * 86400.0
"""How long what was sent, or was not, is kept."""


@dataclass(frozen=True, slots=True)
class Notification:
    """One piece of news for one notifier. `attempts` have failed so far, the last one for `reason`."""

    id: int
    notifier: str
    news: Mapping[str, Any]
    state: NotificationState
    attempts: int
    not_before: float
    reason: str
    created_at: float
    changed_at: float


@dataclass(frozen=True, slots=True)
class NotifierTrouble:
    """A notifier that could not be reached the last time. `since`: of when the first is that it did not take."""

    notifier: str
    reason: str
    since: float
    waiting: int

    @property
    def told(self) -> str:
        """`webhook ntfy.sh: answers 503; 3 wait`"""
        return f"{self.notifier}: {self.reason}" + (f"; {self.waiting} wait" if self.waiting else "")


class Outbox(Asking):
    """The notifications of a ledger. Called from the daemon's thread and from the one that sends."""

    def told_until(self, what: str) -> float:
        """The mark that was written last; 0 if none ever was."""
        found = self.rows("SELECT mark FROM told WHERE what = ?", (what,))
        return float(found[0][0]) if found else 0.0

    def tell_until(self, what: str, mark: float) -> None:
        """Write a mark."""
        with self.transaction() as db:
            db.execute("INSERT INTO told VALUES (?, ?) ON CONFLICT (what) DO UPDATE SET mark = ?2", (what, mark))

    def notification(self, id: int) -> Notification:
        return _notification(self._one("SELECT * FROM notification WHERE id = ?", (id,), f"notification {id}"))

    def notifications(self, *states: NotificationState) -> list[Notification]:
        """Those in any of `states` (all if none is given), the oldest first."""
        marks = ", ".join("?" * len(states))
        where = f"WHERE state IN ({marks})" if states else ""
        return [_notification(r) for r in self.rows(f"SELECT * FROM notification {where} ORDER BY id", states)]

    def notify(self, notifier: str, news: Mapping[str, Any]) -> int:
        """Let something be sent; returns its number. See `notify_all`."""
        return self.notify_all([(notifier, news)])[0]

    def notify_all(self, wanted: Sequence[tuple[str, Mapping[str, Any]]]) -> list[int]:
        """Let news be sent, each to a notifier; returns their numbers. Where too many wait, the oldest make room."""
        now = self._clock()
        with self.transaction() as db:
            ids = [
                db.execute(
                    "INSERT INTO notification (notifier, news, created_at, changed_at) VALUES (?, ?, ?, ?)",
                    (notifier, as_json(dict(news)), now, now),
                ).lastrowid
                for notifier, news in wanted
            ]
            for notifier in dict.fromkeys(name for name, _ in wanted):
                self._end(
                    "dropped", "too many were waiting",
                    "notifier = ? AND id <= (SELECT id FROM notification WHERE notifier = ?1 AND state = 'waiting'"
                    " ORDER BY id DESC LIMIT 1 OFFSET ?)", (notifier, MOST_WAITING),
                )  # fmt: skip
            db.execute("DELETE FROM notification WHERE state != 'waiting' AND changed_at < ?", (now - KEPT_SECONDS,))
        return [int(id or 0) for id in ids]

    def notification_due(self, notifier: str) -> Notification | None:
        """The oldest of a notifier, if its time has come: the others wait behind it, so that order is kept.

        A wait that began in what is now the future is over: the clock was set back.
        """
        now, head = self._clock(), self._head(notifier)
        return head if head is not None and (head.not_before <= now or head.changed_at > now) else None

    def next_notification(self, notifier: str) -> float | None:
        """When the next one is due, in seconds since 1970; None if none waits."""
        head = self._head(notifier)
        return None if head is None else head.not_before

    def notification_sent(self, id: int) -> None:
        """It is where it was to go."""
        self._end("sent", "", "id = ?", (id,))

    def notification_failed(self, id: int, reason: str, again: float | None) -> None:
        """An attempt came to nothing; it is tried again at a time, or not any more."""
        with self.transaction() as db:
            now = self._clock()
            db.execute("UPDATE notification SET attempts = attempts + 1, changed_at = ? WHERE id = ?", (now, id))
            if again is None:
                self._end("failed", reason, "id = ?", (id,))
            else:
                db.execute(
                    "UPDATE notification SET not_before = ?, reason = ? WHERE id = ? AND state = 'waiting'", (again, reason, id)
                )

    def keep_notifiers(self, names: Collection[str]) -> dict[str, int]:
        """Drop what waits for a notifier that is none of these, and forget its failures; returns how many waited, by name."""
        marks = ", ".join("?" * len(names))
        others = f"notifier NOT IN ({marks})"
        with self.transaction() as db:
            waited = db.execute(
                f"SELECT notifier, count(*) FROM notification WHERE state = 'waiting' AND {others} GROUP BY notifier", [*names]
            ).fetchall()
            self._end("dropped", "its entry is not in the configuration any more", others, [*names])
            db.execute(f"DELETE FROM notification WHERE state = 'failed' AND {others}", [*names])
        return {str(name): int(number) for name, number in waited}

    def notifiers_in_trouble(self) -> list[NotifierTrouble]:
        """Notifiers whose last attempt failed, with why."""
        found = self.rows(
            "SELECT notifier, reason, (SELECT min(created_at) FROM notification AS bad WHERE bad.notifier = last.notifier"
            " AND bad.reason != '' AND bad.state IN ('waiting', 'failed') AND bad.id > coalesce((SELECT max(id) FROM"
            " notification AS good WHERE good.notifier = last.notifier AND good.state = 'sent'), 0)) AS since,"
            " (SELECT count(*) FROM notification AS left WHERE left.notifier = last.notifier AND left.state = 'waiting')"
            " AS waiting FROM notification AS last WHERE id IN (SELECT max(id) FROM notification"
            " WHERE state IN ('sent', 'failed') OR (state = 'waiting' AND attempts > 0) GROUP BY notifier)"
            " AND state != 'sent' ORDER BY notifier"
        )
        return [NotifierTrouble(**dict(row)) for row in found]

    def _head(self, notifier: str) -> Notification | None:
        found = self.rows(
            "SELECT * FROM notification WHERE notifier = ? AND state = 'waiting' ORDER BY id LIMIT 1", (notifier,)
        )
        return _notification(found[0]) if found else None

    def _end(self, state: NotificationState, reason: str, where: str, values: Sequence[Any]) -> int:
        """Bring those that wait, and that are meant, to an end, and count them."""
        with self.transaction() as db:
            ids = [r[0] for r in db.execute(f"SELECT id FROM notification WHERE {where} AND state = 'waiting'", values)]
            db.executemany(
                "UPDATE notification SET state = ?, reason = ?, changed_at = ? WHERE id = ?",
                [(state, reason, self._clock(), id) for id in ids],
            )
            if ids:
                self.tell_until(f"notifications {state}", self.told_until(f"notifications {state}") + len(ids))
            return len(ids)


def _notification(row: sqlite3.Row) -> Notification:
    return Notification(**{**dict(row), "news": json.loads(row["news"])})
