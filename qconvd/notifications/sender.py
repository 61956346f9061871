"""The threads that send what is in the outbox. Neither a job nor the daemon's loop waits for them."""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable

from qconvd.config.notify import Notify
from qconvd.errors import QconvdError
from qconvd.ledger import Ledger, Notification
from qconvd.logs.about import about_notification
from qconvd.notifications.attempt import BreakOff, NotSent
from qconvd.notifications.news import News, of_test

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


def trouble(notifier: Notify) -> NotSent | None:
    """Why a notifier could not be told now, as far as that is known without telling: files, templates, programs."""
    if notifier.webhook is not None and notifier.webhook.credential and "CREDENTIALS_DIRECTORY" not in os.environ:
        return None  # which only the service has
    try:
        _look(notifier, of_test(time.time()))
    except NotSent as error:
        return error
    return None


def _look(notifier: Notify, news: News) -> None:
    if notifier.webhook is not None:
        from qconvd.notifications import webhook

        webhook.prepared(notifier.webhook, news)
        return
    from qconvd.notifications import command, mail, program

    if notifier.mail is not None:
        program.look_for([str(notifier.mail.sendmail)], mail.FIX)
    elif notifier.command is not None:
        program.look_for(notifier.command.run, command.FIX)


class Sender:
    """Sends what is due: each notifier has a thread of its own, so one that is away or slow holds up no other.

    At least once: what was sent is written down afterwards, so a daemon that is killed in between sends it again.
    """

    def __init__(self, ledger: Ledger, send: Callable[[Notify, News, BreakOff], str] = send) -> None:
        self._ledger = ledger
        self._send = send
        self._lines: dict[str, Line] = {}

    def configure(self, notifiers: tuple[Notify, ...]) -> None:
        """From now on these are told; what waits for others is dropped."""
        wanted = {n.name: n for n in notifiers}
        gone = [self._lines.pop(name) for name in self._lines.keys() - wanted.keys()]
        _close(gone, 0.0)
        for name, number in self._ledger.keep_notifiers(wanted).items():
            what = f"a notification for {name} is" if number == 1 else f"{number} notifications for {name} are"
            log.warning("%s dropped: it is not in the configuration any more", what,
                        extra={"action": "notify.dropped", "notifier": name})  # fmt: skip
        for name, notifier in wanted.items():
            if name in self._lines:
                self._lines[name].notifier = notifier
            else:
                self._lines[name] = Line(self._ledger, notifier, self._send)
                self._lines[name].thread.start()
        self.wake()

    def wake(self) -> None:
        """There is something new to send."""
        for line in self._lines.values():
            line.wake()

    def drain(self, seconds: float) -> None:
        """Wait until everything that is due was tried, but no longer than this."""
        end = time.monotonic() + seconds
        for line in self._lines.values():
            line.drain(max(0.0, end - time.monotonic()))

    def close(self, seconds: float = 0.0) -> None:
        """End the threads: what they are at may take so long, and is broken off then. It is sent again after the next start."""
        _close(list(self._lines.values()), seconds)
        self._lines.clear()


class Line:
    """A notifier, and the thread that sends what is due to it, the oldest first."""

    def __init__(self, ledger: Ledger, notifier: Notify, send: Callable[[Notify, News, BreakOff], str]) -> None:
        self.notifier = notifier
        self._name = notifier.name
        self._ledger = ledger
        self._send = send
        self._woken = threading.Condition()
        self._wakes = 0
        self._resting = 0
        """Which call it has done everything for."""
        self._closing = False
        self._attempt = BreakOff()
        self._unwritten: dict[int, Callable[[], None]] = {}
        """What came of attempts that the ledger could not be told yet, by notification: they are not made again."""
        self.thread = threading.Thread(target=self._run, name=f"notify {self._name}", daemon=True)
        """To be started by whoever wants it to send."""

    # Called by the daemon's thread

    def wake(self) -> None:
        with self._woken:
            self._wakes += 1
            self._woken.notify_all()

    def drain(self, seconds: float) -> None:
        with self._woken:
            wanted = self._wakes
            self._woken.wait_for(lambda: self._resting >= wanted, seconds)

    def ask_to_end(self) -> None:
        with self._woken:
            self._closing = True
            self._woken.notify_all()

    def break_off(self) -> None:
        self._attempt.end()

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
            except Exception:
                log.exception("%s cannot be told", self._name, extra={"action": "notify.defect", "notifier": self._name})
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
        """Try the oldest if it is due; returns whether it was."""
        for write in list(self._unwritten.values()):
            write()
        due = self._ledger.notification_due(self._name)
        if due is not None and not self._closing:
            self._tell(due)
        return due is not None

    def _until_next(self) -> float | None:
        """Seconds until the next one is due; None if nothing waits."""
        at = self._ledger.next_notification(self._name)
        return None if at is None else max(0.05, at - time.time())

    def _tell(self, notification: Notification) -> None:
        self._attempt = attempt = BreakOff()
        try:
            said = self._send(self.notifier, notification.news, attempt)
        except NotSent as error:
            if not attempt.ended:
                self._failed(notification, error)
        except OSError as error:  # a full disk, too many open files: of this machine, and passing
            self._failed(notification, NotSent(f"it cannot be tried: {error}", again=True))
        except Exception as error:
            # A defect of ours must not end the thread, nor be tried for ever.
            log.exception(
                "%s cannot be told", self._name, extra={"action": "notify.defect", **about_notification(notification)}
            )
            self._failed(notification, NotSent(f"{type(error).__name__}, a defect of qconvd"))
        else:
            self._write(notification.id, lambda: self._ledger.notification_sent(notification.id))
            log.info("%s was told: %s (%s)", self._name, notification.news["title"], said,
                     extra={"action": "notify.sent", **about_notification(notification)})  # fmt: skip

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
            log.error("%s was not told: %s (%s)%s", self._name, notification.news["title"], what,
                      f"; {error.fix}" if error.fix else "",
                      extra={"action": "notify.failed", **about_notification(notification)})  # fmt: skip
        else:
            log.log(logging.INFO if tried else logging.WARNING, "%s cannot be told yet: %s; it is tried again in %.0f s",
                    self._name, what, wait, extra={"action": "notify.retried", **about_notification(notification)})  # fmt: skip

    def _write(self, id: int, write: Callable[[], None]) -> None:
        """Write down what came of an attempt, now or as soon as the ledger takes it."""

        def once() -> None:
            write()
            self._unwritten.pop(id, None)

        self._unwritten[id] = once
        once()


def _close(lines: list[Line], seconds: float) -> None:
    """End threads, all at once: they get so long, and a moment after they were broken off."""
    end = time.monotonic() + seconds
    for line in lines:
        line.ask_to_end()
    for line in lines:
        line.thread.join(max(0.0, end - time.monotonic()))
    left = [line for line in lines if line.thread.is_alive()]
    for line in left:
        line.break_off()
    end = time.monotonic() + MOMENT
    for line in left:
        line.thread.join(max(0.0, end - time.monotonic()))


def tell_all(notifiers: tuple[Notify, ...], news: News) -> list[tuple[Notify, str, QconvdError | None]]:
    """Tell everybody now, one after another: what each answered, or why it was not told."""
    found: list[tuple[Notify, str, QconvdError | None]] = []
    for notifier in notifiers:
        try:
            found.append((notifier, send(notifier, news, BreakOff()), None))
        except NotSent as error:
            found.append((notifier, "", error))
    return found
