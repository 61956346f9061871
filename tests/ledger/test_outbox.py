"""Notifications that wait: their order, their attempts, how many they may be, and what is counted."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

from ledger_kit import Clock
from qconvd.ledger import Ledger
from qconvd.ledger.database import migrations
from qconvd.ledger.outbox import KEPT_SECONDS, MOST_WAITING
from qconvd.ledger.pruning import prune


def news(number: int = 0) -> dict[str, Any]:
    return {"event": "done", "number": number}


def due(ledger: Ledger) -> list[tuple[str, int]]:
    found = [ledger.notification_due(name) for name in ("mail", "hook")]
    return [(n.notifier, n.news["number"]) for n in found if n is not None]


def test_each_notifier_gets_its_news_in_order_and_holds_up_no_other(ledger: Ledger, clock: Clock) -> None:
    first = ledger.notify("mail", news(1))
    for number, name in enumerate(("mail", "hook", "hook"), 2):
        ledger.notify(name, news(number))
    assert due(ledger) == [("mail", 1), ("hook", 3)]
    ledger.notification_failed(first, "away", clock.now + 30)
    assert due(ledger) == [("hook", 3)], "the second waits behind the first"
    assert ledger.next_notification("hook") == 0 and ledger.next_notification("mail") == clock.now + 30
    ledger.notification_sent(3)
    ledger.notification_sent(4)
    assert due(ledger) == [] and ledger.next_notification("hook") is None
    clock.now += 30
    assert due(ledger) == [("mail", 1)]
    ledger.notification_failed(first, "gone", None)
    assert due(ledger) == [("mail", 2)]
    failed = ledger.notification(first)
    assert (failed.state, failed.attempts, failed.reason) == ("failed", 2, "gone")
    ledger.notification_sent(2)
    assert ledger.next_notification("mail") is None


def test_a_clock_that_was_set_back_ends_a_wait(ledger: Ledger, clock: Clock) -> None:
    id = ledger.notify("mail", news(1))
    ledger.notification_failed(id, "away", clock.now + 30)
    clock.now -= 86400
    assert due(ledger) == [("mail", 1)]


def test_of_too_many_the_oldest_are_dropped(ledger: Ledger) -> None:
    ledger.notify("other", news())
    for number in range(MOST_WAITING + 3):
        ledger.notify("mail", news(number))
    waiting = [n.news["number"] for n in ledger.notifications("waiting") if n.notifier == "mail"]
    assert waiting == list(range(3, MOST_WAITING + 3))
    assert [(n.news["number"], n.reason) for n in ledger.notifications("dropped")] == [
        (number, "too many were waiting") for number in range(3)
    ]
    assert len(ledger.notifications("waiting")) == MOST_WAITING + 1, "another notifier's are not touched"


def test_what_waits_for_an_entry_that_is_gone_is_dropped(ledger: Ledger) -> None:
    for name in ("mail", "hook", "mail"):
        ledger.notify(name, news())
    ledger.notification_failed(ledger.notify("old", news()), "gone", None)
    assert ledger.keep_notifiers({"mail"}) == {"hook": 1}
    assert ledger.notifiers_in_trouble() == [], "who is not told any more is in no trouble"
    assert [n.notifier for n in ledger.notifications("waiting")] == ["mail", "mail"]
    assert ledger.keep_notifiers(set()) == {"mail": 2}


def test_a_notifier_in_trouble_is_told_until_it_works_again(ledger: Ledger, clock: Clock) -> None:
    began = clock.now
    ids = [ledger.notify("mail", news(n)) for n in range(3)]
    ledger.notify("fine", news())
    assert ledger.notifiers_in_trouble() == []
    clock.now += 5
    ledger.notification_failed(ids[0], "away", clock.now + 30)
    (trouble,) = ledger.notifiers_in_trouble()
    assert (trouble.told, trouble.since) == ("mail: away; 3 wait", began)
    ledger.notification_failed(ids[0], "no such address", None)
    assert [t.told for t in ledger.notifiers_in_trouble()] == ["mail: no such address; 2 wait"]
    ledger.notification_sent(ids[1])
    assert ledger.notifiers_in_trouble() == []


def test_ends_are_counted_and_a_counter_never_goes_back(ledger: Ledger, clock: Clock) -> None:
    ids = [ledger.notify("mail", news(n)) for n in range(3)]
    ledger.notification_sent(ids[0])
    ledger.notification_failed(ids[1], "no", None)
    ledger.notification_sent(ids[0])
    counted = {state: ledger.told_until(f"notifications {state}") for state in ("sent", "failed", "dropped")}
    assert counted == {"sent": 1, "failed": 1, "dropped": 0}
    clock.now += 100
    assert prune(ledger, clock.now - 50).notifications == 2
    assert [n.id for n in ledger.notifications()] == [ids[2]], "what waits stays"
    assert ledger.told_until("notifications sent") == 1
    ledger.notification_sent(ids[2])
    clock.now += KEPT_SECONDS + 1
    last = ledger.notify("mail", news())
    assert [n.id for n in ledger.notifications()] == [last], "old ones go without being asked for"


def test_an_older_ledger_has_no_news(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with sqlite3.connect(path) as db:
        for script in migrations()[:6]:
            db.executescript(script)
        db.execute("INSERT INTO source VALUES (1, '/inbox/m', 1, 'm', 'sha256:a', '', 'refused', 'odd', '{}', 0, 0)")
        db.execute("PRAGMA user_version = 6")
    db.close()
    ledger = Ledger(path)
    assert [e.id for e in ledger.history()] == [1]
    assert ledger.told_until("event") == 1
    assert ledger.notifications() == []
    ledger.close()
