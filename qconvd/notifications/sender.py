"""The thread that sends what is in the outbox. Neither a job nor the daemon's loop waits for it."""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections.abc import Callable

from qconvd.config.notify import Notify
from qconvd.errors import QconvdError
from qconvd.ledger import Ledger, Notification
from qconvd.notifications.attempt import BreakOff, NotSent
from qconvd.notifications.news import News

log = logging.getLogger(__name__)
PAUSES = (30.0, 120.0, 600.0, 2700.0)
"""Seconds before the second to fifth attempt, unless the other side says when: about an hour in all."""
SHORTEST_PAUSE = 1.0
TROUBLE_SECONDS = 10.0
"""How long to wait when the ledger does not answer."""
MOMENT = 0.5
"""Seconds within which a thread ends whose attempt was broken off, if it can."""


def send(notifier: Notify, news: News, stop: BreakOff) -> str:
    """Tell one notifier, once; returns what happened. Raises `NotSent`. What it takes is imported when it is needed."""
    if notifier.webhook is not None:
        from qconvd.notifications import webhook

        return webhook.send(notifier.webhook, news, stop)
    if notifier.mail is not None:
        from qconvd.notifications import mail

        return mail.send(notifier.mail, news, stop)
    from qconvd.notifications import command

    assert notifier.command is not None
    return command.send(notifier.command, news, stop)


class Sender:
    """Sends what is due, the oldest of each notifier first. It has no thread as long as nobody is to be told anything.

    At least once: what was sent is written down afterwards, so a daemon that is killed in between sends it again.
    """

    def __init__(self, ledger: Ledger, send: Callable[[Notify, News, BreakOff], str] = send) -> None:
        self._ledger = ledger
        self._send = send
        self._notifiers: dict[str, Notify] = {}
        self._thread: threading.Thread | None = None
        self._woken = threading.Condition()
        self._wakes = 0
        self._resting = 0
        """Which call it has done everything for."""
        self._closing = False
        self._attempt = BreakOff()
        self._unwritten: dict[int, Callable[[], None]] = {}
        """What came of attempts that the ledger could not be told yet, by notification: they are not made again."""

    # Called by the daemon's thread

    def configure(self, notifiers: tuple[Notify, ...]) -> None:
        """From now on these are told; what waits for others is dropped."""
        self._notifiers = {n.name: n for n in notifiers}
        if dropped := self._ledger.keep_notifiers(self._notifiers):
            log.warning("%d notifications are dropped: their entries are not in the configuration any more", dropped,
                        extra={"action": "notify.dropped"})  # fmt: skip
        if notifiers and self._thread is None:
            self._thread = threading.Thread(target=self._run, name="notifications", daemon=True)
            self._thread.start()
        self.wake()

    def wake(self) -> None:
        """There is something new to send."""
        with self._woken:
            self._wakes += 1
            self._woken.notify_all()

    def drain(self, seconds: float) -> None:
        """Wait until everything that is due was tried, but no longer than this."""
        if self._thread is not None:
            with self._woken:
                wanted = self._wakes
                self._woken.wait_for(lambda: self._resting >= wanted, seconds)

    def close(self, seconds: float = 0.0) -> None:
        """End the thread: what it is at may take so long, and is broken off then. It is sent again after the next start."""
        if self._thread is None:
            return
        with self._woken:
            self._closing = True
            self._woken.notify_all()
        self._thread.join(max(0.0, seconds))
        if self._thread.is_alive():
            self._attempt.end()
            self._thread.join(MOMENT)
        self._thread = None

    # The thread

    def _run(self) -> None:
        while True:
            with self._woken:
                wakes = self._wakes
            try:
                sent = self._round()
                wait = None if sent else self._until_next()
            except (sqlite3.Error, OSError) as error:
                if self._closing:
                    return
                log.debug("notifications wait for the ledger: %s", error, extra={"action": "notify.ledger_trouble"})
                sent, wait = False, TROUBLE_SECONDS
            with self._woken:
                if self._closing:
                    return
                if not sent:
                    self._resting = wakes
                    self._woken.notify_all()
                    self._woken.wait_for(lambda seen=wakes: self._closing or self._wakes > seen, wait)  # type: ignore[misc]
                    if self._closing:
                        return

    def _round(self) -> bool:
        """Try the oldest of each notifier that is due; returns whether there was any."""
        for write in list(self._unwritten.values()):
            write()
        due = [n for n in self._ledger.notifications_due() if n.notifier in self._notifiers]
        for notification in due:
            if self._closing:
                break
            self._tell(self._notifiers[notification.notifier], notification)
        return bool(due)

    def _until_next(self) -> float | None:
        """Seconds until the next one is due; None if nothing waits."""
        at = self._ledger.next_notification()
        return None if at is None else max(0.05, at - time.time())

    def _tell(self, notifier: Notify, notification: Notification) -> None:
        self._attempt = attempt = BreakOff()
        try:
            said = self._send(notifier, notification.news, attempt)
        except NotSent as error:
            if not attempt.ended:
                self._failed(notification, error)
        except OSError as error:  # a full disk, too many open files: of this machine, and passing
            self._failed(notification, NotSent(f"it cannot be tried: {error}", again=True))
        except Exception as error:
            # A defect of ours must not end the thread, nor be tried for ever.
            log.exception("%s cannot be told", notification.notifier, extra={"action": "notify.defect"})
            self._failed(notification, NotSent(f"{type(error).__name__}, a defect of qconvd"))
        else:
            self._write(notification.id, lambda: self._ledger.notification_sent(notification.id))
            log.info("%s was told: %s (%s)", notification.notifier, notification.news["title"], said,
                     extra={"action": "notify.sent"})  # fmt: skip

    def _failed(self, notification: Notification, error: NotSent) -> None:
        """Again later, or never; both are said, the first and the last time loudly."""
        tried, again = notification.attempts, None
        if error.again and tried < len(PAUSES):
            # A server that says "at once" again and again must not use up all attempts at once.
            wait = PAUSES[tried] if error.after is None else max(error.after, SHORTEST_PAUSE if tried < 2 else PAUSES[tried])
            again = time.time() + wait
        what = f"{error.where}: {error.what}" if error.where else error.what
        self._write(notification.id, lambda: self._ledger.notification_failed(notification.id, what, again))
        if again is None:
            log.error("%s was not told: %s (%s)%s", notification.notifier, notification.news["title"], what,
                      f"; {error.fix}" if error.fix else "", extra={"action": "notify.failed"})  # fmt: skip
        else:
            log.log(logging.INFO if tried else logging.WARNING, "%s cannot be told yet: %s; it is tried again in %.0f s",
                    notification.notifier, what, wait, extra={"action": "notify.retried"})  # fmt: skip

    def _write(self, id: int, write: Callable[[], None]) -> None:
        """Write down what came of an attempt, now or as soon as the ledger takes it."""

        def once() -> None:
            write()
            self._unwritten.pop(id, None)

        self._unwritten[id] = once
        once()


def tell_all(notifiers: tuple[Notify, ...], news: News) -> list[tuple[Notify, str, QconvdError | None]]:
    """Tell everybody now, one after another: what each answered, or why it was not told."""
    found: list[tuple[Notify, str, QconvdError | None]] = []
    for notifier in notifiers:
        try:
            found.append((notifier, send(notifier, news, BreakOff()), None))
        except NotSent as error:
            found.append((notifier, "", error))
    return found
