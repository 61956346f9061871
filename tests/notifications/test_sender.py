"""The thread that sends: attempts, pauses, order, restarts and its end. What is sent goes to a real server."""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from qconvd.config import Notify
from qconvd.ledger import Ledger
from qconvd.notifications import sender as sending
from qconvd.notifications.attempt import NotSent
from qconvd.notifications.news import of_test
from qconvd.notifications.sender import Line, Sender
from receiver import nobody, receiver


@pytest.fixture
def book(tmp_path: Path) -> Iterator[Ledger]:
    """A ledger with the real clock."""
    ledger = Ledger(tmp_path / "ledger.sqlite")
    yield ledger
    ledger.close()


@pytest.fixture
def sender(book: Ledger) -> Iterator[Sender]:
    sender = Sender(book)
    yield sender
    sender.close()


def hook(url: str, name: str = "hook", **more: Any) -> Notify:
    return Notify.model_validate({"webhook": {"url": url, **more}, "called": name})


def news(number: int) -> dict[str, Any]:
    return of_test(0.0) | {"title": f"news {number}", "job": number}


def until(what: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not what():
        assert time.monotonic() < end
        time.sleep(0.02)


def threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("notify ")]


def states(book: Ledger) -> list[str]:
    return [n.state for n in book.notifications()]


def test_a_server_that_fails_twice_gets_it_the_third_time_and_the_rest_in_order(
    book: Ledger, sender: Sender, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with receiver() as here:
        here.answers += [(503, {"Retry-After": "0"}, b""), (429, {"Retry-After": "1"}, b"slow down")]
        for number in (1, 2, 3):
            book.notify("hook", news(number))
        sender.configure((hook(here.url),))
        until(lambda: states(book) == ["sent"] * 3)
        assert [here.json(n)["job"] for n in range(5)] == [1, 1, 1, 2, 3]
    assert [n.attempts for n in book.notifications()] == [2, 0, 0]
    actions = [r.action for r in caplog.records if hasattr(r, "action")]
    assert actions == ["notify.retried", "notify.retried", "notify.sent", "notify.sent", "notify.sent"]
    assert caplog.records[0].getMessage() == (
        "hook cannot be told yet: 127.0.0.1 answers 503 Service Unavailable; it is tried again in 1 s"
    )
    assert "secret" not in caplog.text


def test_what_is_refused_for_good_is_not_tried_again(book: Ledger, sender: Sender, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    with receiver() as here:
        here.answers.append((404, {}, b"no_service"))
        book.notify("hook", news(1))
        book.notify("hook", news(2))
        sender.configure((hook(here.url),))
        until(lambda: states(book) == ["failed", "sent"])
        assert len(here.got) == 2
    assert [r.getMessage() for r in caplog.records] == [
        "hook was not told: news 1 (127.0.0.1 answers 404 Not Found: no_service); "
        "look whether the address and `as:` are right, and whether it still exists"
    ]


def test_the_pauses_grow_to_an_hour_and_then_it_is_over(
    book: Ledger, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.WARNING)
    id, now = book.notify("hook", news(1)), [1e9]
    monkeypatch.setattr(sending.time, "time", lambda: now[0])
    own = Line(book, hook(nobody()), sending.send)
    waits = []
    for _ in range(5):
        own._failed(book.notification(id), NotSent("away", again=True))
        waits.append(book.notification(id).not_before - now[0])
    assert waits[:4] == [30, 120, 600, 2700] and sum(waits[:4]) == pytest.approx(3600, rel=0.05)
    assert (book.notification(id).state, book.notification(id).attempts) == ("failed", 5)
    assert [r.levelname for r in caplog.records] == ["WARNING", "ERROR"], "what is between the first and the last is quiet"


def test_a_server_that_says_at_once_again_and_again_does_not_use_up_the_attempts(book: Ledger) -> None:
    id, own = book.notify("hook", news(1)), Line(book, hook(nobody()), sending.send)
    for seconds in (0.0, 0.0, 0.0, 7200.0):
        began = time.time()
        own._failed(book.notification(id), NotSent("away", again=True, after=seconds))
        wait = book.notification(id).not_before - began
    assert book.notification(id).attempts == 4 and wait >= 7200
    (third,) = [n for n in (book.notification(id),) if n.state == "waiting"]
    assert third.reason == "away"


def test_one_that_is_away_holds_up_no_other(book: Ledger, sender: Sender) -> None:
    with receiver() as here:
        book.notify("away", news(1))
        book.notify("hook", news(2))
        sender.configure((hook(nobody(), "away"), hook(here.url)))
        until(lambda: states(book) == ["waiting", "sent"])
    assert [t.notifier for t in book.notifiers_in_trouble()] == ["away"]


def test_one_that_is_slow_holds_up_no_other(book: Ledger) -> None:
    """It is not done before the other was told."""
    told = threading.Event()

    def send(notifier: Notify, _: Any, __: Any) -> str:
        assert notifier.name == "hook" or told.wait(60)
        told.set()
        return "told"

    own = Sender(book, send)
    for name in ("slow", "hook"):
        book.notify(name, news(1))
    own.configure((hook(nobody(), "slow"), hook(nobody())))
    until(lambda: states(book) == ["sent", "sent"])
    own.close(5)


def test_one_that_hangs_is_left_and_tried_later(book: Ledger, sender: Sender) -> None:
    with receiver() as here:
        here.hangs = True
        book.notify("hook", news(1))
        sender.configure((hook(here.url, timeout="0.3s"),))
        until(lambda: book.notifications()[0].attempts == 1)
    assert book.notifications()[0].reason == "127.0.0.1 did not answer within 0.3 s"


def test_nothing_has_a_thread_as_long_as_nobody_is_to_be_told(book: Ledger, sender: Sender) -> None:
    sender.configure(())
    assert threads() == []
    sender.drain(0)
    sender.close(5)


def test_entries_that_go_take_what_waits_for_them_along(book: Ledger, sender: Sender, caplog: pytest.LogCaptureFixture) -> None:
    book.notify("old", news(1))
    sender.configure(())
    assert states(book) == ["dropped"]
    assert caplog.messages == ["a notification for old is dropped: it is not in the configuration any more"]
    for number in (2, 3):
        book.notify("old", news(number))
    sender.configure(())
    assert caplog.messages[1:] == ["2 notifications for old are dropped: it is not in the configuration any more"]


def test_the_end_does_not_wait_for_who_hangs_and_the_next_start_sends_it(book: Ledger) -> None:
    with receiver() as here:
        here.hangs = True
        first = Sender(book)
        book.notify("hook", news(1))
        first.configure((hook(here.url, timeout="60s"),))
        assert here.came.wait(20)
        first.close(0.1)
        until(lambda: threads() == [])
        assert (states(book), book.notifications()[0].attempts) == (["waiting"], 0)
        here.hangs = False
        second = Sender(book)
        second.configure((hook(here.url),))
        until(lambda: states(book) == ["sent"])
        second.close(5)
        assert [here.json(n)["job"] for n in (0, 1)] == [1, 1]


def test_what_went_out_is_not_sent_again_because_the_ledger_was_busy(
    book: Ledger, sender: Sender, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sending, "TROUBLE_SECONDS", 0.05)
    real, failures = book.notification_sent, [sqlite3.OperationalError("database or disk is full")] * 2

    def written(id: int) -> None:
        if failures:
            raise failures.pop()
        real(id)

    monkeypatch.setattr(book, "notification_sent", written)
    with receiver() as here:
        book.notify("hook", news(1))
        sender.configure((hook(here.url),))
        until(lambda: states(book) == ["sent"])
        assert len(here.got) == 1 and not failures


def test_a_defect_ends_one_notification_and_not_the_thread(book: Ledger, caplog: pytest.LogCaptureFixture) -> None:
    def broken(notifier: Notify, told: Any, stop: Any) -> str:
        if told["job"] == 1:
            raise KeyError("nothing")
        return "told"

    own = Sender(book, broken)
    book.notify("hook", news(1))
    book.notify("hook", news(2))
    own.configure((hook(nobody()),))
    until(lambda: states(book) == ["failed", "sent"])
    own.close(5)
    assert "KeyError" in caplog.text and book.notifications()[0].reason == "KeyError, a defect of qconvd"


def test_what_this_machine_lacks_for_a_moment_is_tried_again(book: Ledger) -> None:
    def full(*_: Any) -> str:
        raise OSError(28, "No space left on device")

    own = Sender(book, full)
    book.notify("hook", news(1))
    own.configure((hook(nobody()),))
    until(lambda: book.notifications()[0].attempts == 1)
    own.close(5)
    assert states(book) == ["waiting"]
    assert book.notifications()[0].reason == "it cannot be tried: [Errno 28] No space left on device"


def test_drain_waits_until_all_that_is_due_was_tried(book: Ledger, sender: Sender) -> None:
    with receiver() as here:
        sender.configure((hook(here.url), hook(nobody(), "away")))
        for number in range(5):
            book.notify("hook", news(number))
            book.notify("away", news(number))
        sender.wake()
        sender.drain(60)
        assert len(here.got) == 5
    assert [n.attempts for n in book.notifications() if n.notifier == "away"] == [1, 0, 0, 0, 0]
