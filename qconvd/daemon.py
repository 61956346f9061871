"""The daemon: one process, one loop, read from top to bottom.

    start    the state folder's lock, the ledger, whatever a crash has left behind
    loop     arrivals (folders, the Hub) → requests → work → departures → what to tell, then sleep until the next is due
    stop     SIGTERM and SIGINT end it within `limits.stop_grace`, a second one at once; SIGHUP reads the configuration again

Nothing that converts is imported here: workers are processes of their own.
"""

from __future__ import annotations

import logging
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from qconvd.announcements import Announcements
from qconvd.arrivals import Arrivals
from qconvd.bell import Bell
from qconvd.config import Config, Log
from qconvd.departures import Departures
from qconvd.errors import ConfigError, HubRefused, QconvdError
from qconvd.hub.tokens import hub_token
from qconvd.in_force import note_address, note_config
from qconvd.ledger import PENDING, Ledger
from qconvd.ledger.database import unusable
from qconvd.logs.about import about_target
from qconvd.logs.job import JobLogs
from qconvd.notifications.reporter import Reporter
from qconvd.notifications.sender import Sender
from qconvd.notify import Notifier, summary
from qconvd.pauses import Pauses
from qconvd.remote_arrivals import RemoteArrivals
from qconvd.requests import Requests
from qconvd.retention import Retention
from qconvd.sightings import SightingsBoard
from qconvd.state_lock import state_lock
from qconvd.statuses import Statuses
from qconvd.web.server import WebServer
from qconvd.web.webhook import PATH, Webhook
from qconvd.wishes import Wishes
from qconvd.work import Work

log = logging.getLogger(__name__)
LEDGER = "ledger.sqlite"
TROUBLE_SECONDS = 2.0
"""How long to wait before a turn that the state folder did not let through is tried again."""
LONGEST_SLEEP = 0.5
"""Seconds within which a request of the command line is noticed; looking costs microseconds."""
EXTENSION = 15.0
"""Seconds that systemd is asked for at a time while workers end; asked again long before they are over."""
LAST_WORDS = 5.0
"""Seconds, within the grace, that a notification on its way may still take when the daemon stops."""
INTERRUPTED = 130
"""The exit code of `--once` if it was stopped and work remains: that of a shell's command after Ctrl-C."""


class Daemon:
    """Runs one configuration. `load` reads it again for SIGHUP; without it the configuration cannot be reloaded.

    `logged` makes the log what a configuration that is read again says. It may raise `ConfigError`.
    """

    def __init__(
        self, config: Config, load: Callable[[], Config] | None = None, logged: Callable[[Log], None] = lambda _: None
    ) -> None:
        self._config = config
        self._load = load
        self._logged = logged
        self._stops = 0
        self._trouble = ""
        self._reload_asked = False
        self._listens_as: Config | None = None
        self._notifier = Notifier()
        self._extend_at = 0.0
        self._counted: object = None
        self._once = False

    def run(self, once: bool = False) -> int:
        """Work until told to stop, or, with `once`, until there is nothing left to do; returns the exit code.

        0: stopped, or everything was made. 1: with `once`, something failed or had to be left. 130: with `once`, it was
        stopped before everything was done. Raises `QconvdError` if the state folder is in use or unusable.
        """
        config, self._once = self._config, once
        with Bell() as bell, self._signals(bell), state_lock(config.state):
            ledger = Ledger(config.state / LEDGER)
            note_config(config.state, config.path)
            self._bell, self._ledger = bell, ledger
            self._wishes = Wishes(ledger)
            self._arrivals = Arrivals(ledger, self._wishes, bell.ring)
            self._remote = RemoteArrivals(ledger, self._wishes, bell.ring, config.state)
            self._web = WebServer({PATH: Webhook(self._remote.hint, lambda: self._config.hub.webhook_secret_file)})
            self._requests = Requests(ledger, self._wishes, self._reload, self._remote)
            self._work = Work(ledger, config)
            self._pauses = Pauses(ledger)
            self._departures = Departures(ledger)
            self._retention = Retention(ledger)
            self._statuses = Statuses(ledger)
            self._sightings = SightingsBoard(config.state)
            self._announcements = Announcements(ledger)
            self._job_logs = JobLogs(ledger, config.state)
            self._sender = Sender(ledger)
            self._reporter = Reporter(ledger, self._sender.wake)
            try:
                self._work.recover()
                self._configure(config)
                self._listen()
                log.info("qconvd runs: state %s, output %s", config.state, config.output, extra={"action": "daemon.ready"})
                # Watches are armed: what is dropped in from now on is noticed, whatever the first scan has still to look at.
                self._notifier.status("Looking through the watched folders for the first time", "READY=1")
                return self._loop(once)
            finally:
                self._arrivals.close()
                self._remote.close()
                self._web.close()
                self._sender.close()
                ledger.close()

    def _loop(self, once: bool) -> int:
        began, looked = self._announcements.last, False
        while not self._stops:
            self._notifier.alive()
            through = self._gets_through(self._turn)
            self._web.turned(self._trouble)
            if not through:
                self._notifier.status(f"Cannot go on: {self._trouble}")
                self._bell.wait(min(TROUBLE_SECONDS, self._notifier.every))
                continue
            looked = True
            if once and self._arrivals.quiet() and self._remote.quiet() and not self._work.more():
                self._gets_through(lambda: self._tell(at_once=True))
                self._sender.drain(self._config.limits.stop_grace)
                return self._result(began)
            arrival = self._arrivals.next_due() if self._pauses.intake else LONGEST_SLEEP
            self._bell.wait(min(LONGEST_SLEEP, self._notifier.every, arrival, self._work.next_due()))
        self._stop()
        if not once:
            return 0
        if not looked or self._ledger.targets(*PENDING) or not self._arrivals.quiet():
            log.warning("work remains; running the same again goes on with it", extra={"action": "once.interrupted"})
            return INTERRUPTED
        return self._result(began)

    def _gets_through(self, step: Callable[[], object]) -> bool:
        """Whether a step came to its end. A full disk, or a ledger that somebody else holds, is told once and waited for.

        What broke off is taken up again by the next turn: each change of the ledger is whole, and a task whose start or end
        was not written down is found as after a crash. Raises `QconvdError` if the ledger is damaged or gone.
        """
        try:
            self._ledger.check()
            step()
        except (sqlite3.OperationalError, OSError) as error:
            if self._trouble != str(error):
                self._trouble = str(error)
                log.error("cannot go on: %s; it is tried again until it works. Look at the state folder %s and its disk",
                          error, self._config.state, extra={"action": "daemon.trouble"},
                          exc_info=log.isEnabledFor(logging.DEBUG))  # fmt: skip
            return False
        except sqlite3.DatabaseError as error:
            if type(error) is not sqlite3.DatabaseError:
                raise  # what is wrong is a statement, not the file: a defect
            raise unusable(self._ledger.path, error) from error
        if self._trouble:
            self._trouble = ""
            log.info("goes on again", extra={"action": "daemon.trouble_over"})
        return True

    def _turn(self) -> None:
        """Everything that is due now, in the order in which a model passes through."""
        if self._reload_asked:
            self._reload_asked = False
            self._reload_logged()
        config = self._config
        steps: tuple[Callable[[], None], ...] = (
            lambda: self._pauses.tick(config),
            self._arrive,
            lambda: self._requests.tick(config),
            # Whoever asked for a reload over the port has the answer before the port moves.
            self._listen,
            self._work.tick,
            # A request may have read the configuration again.
            lambda: self._departures.tick(self._config),
            lambda: self._retention.tick(self._config),
            self._tell,
        )
        for step in steps:
            step()
            self._notifier.alive()

    def _arrive(self) -> None:
        """Look for models, from everywhere."""
        if self._pauses.intake:
            self._arrivals.tick()
            self._remote.tick()

    def _tell(self, *, at_once: bool = False) -> None:
        """Everybody who listens or looks: the log and the plugins, the status files, the command line.

        With `at_once`, there is no later turn for what can wait.
        """
        arrivals, wishes = self._arrivals, self._wishes
        candidates = list(arrivals.settling.candidates.values())
        self._announcements.tick()
        self._job_logs.tick()
        self._reporter.tick(self._config)
        self._statuses.tick(self._config.output, candidates, wishes.refusals, at_once=at_once)
        arriving = tuple((c.path, c.verdict, c.reason) for c in candidates)
        seen = (
            arriving,
            tuple(arrivals.problems.items()),
            tuple(self._remote.problems.items()),
            tuple(wishes.refusals.items()),
            self._ledger.mark(),
        )
        if self._counted != (mark := self._ledger.mark()):
            self._counted = mark
            self._notifier.status(summary(self._ledger.counts(), self._ledger.pauses()))
        self._sightings.tick(seen, lambda: [*arrivals.sightings(), *self._remote.sightings(), *wishes.sightings()])

    def _configure(self, config: Config) -> None:
        self._config = config
        self._pauses.configure()
        self._retention.configure()
        self._wishes.configure(config)
        self._work.configure(config)
        self._departures.configure(config)
        self._arrivals.configure(config)
        self._remote.configure(config)
        self._sender.configure(config.notify)
        self._ask_again(config)
        self._web.configure(config)

    def _ask_again(self, config: Config) -> None:
        """What the Hub refused: to publish, if it was with another token than there is now; to give, in any case."""
        try:
            token = hub_token(config.hub.token_file)
        except QconvdError as error:
            log.error("%s", error, extra={"action": "token.unreadable"})
            return
        refused = self._ledger.refused_to(token.fingerprint if token else "")
        self._ledger.retry(refused, "there is another token now")
        # What it refused to give is asked for again whenever the configuration is read: its conditions may be accepted by now.
        for target in self._ledger.targets("failed"):
            if target.error.get("error") == HubRefused.__name__ and not target.artifact:
                with suppress(QconvdError):
                    self._ledger.retry([target.id], "the Hub is asked again")

    def _listen(self) -> None:
        """Open the HTTP port that the configuration names, unless it is for `once`. If that does not work, all else goes on."""
        config = self._config
        if self._listens_as is config:
            return
        self._listens_as = config
        try:
            self._web.listen(None if self._once else config.web.listen)
        except QconvdError as error:
            log.error("%s", error, extra={"action": "web.not_listening"})
        with suppress(OSError):  # a full disk is told of elsewhere; whoever does not find it written asks through the ledger
            note_address(config.state, self._web.address)

    def _reload(self) -> str:
        """Read the configuration again. A bad one raises and changes nothing."""
        self._notifier.reloading()
        try:
            return self._reload_told()
        finally:
            self._notifier.send("READY=1")

    def _reload_told(self) -> str:
        if self._load is None:
            raise QconvdError("this daemon was started without a configuration file", fix="start `qconvd run --config FILE`")
        config = self._load()
        if (config.state, config.output) != (self._config.state, self._config.output):
            raise ConfigError("`state` and `output` cannot change while the daemon runs", fix="restart it")
        self._logged(config.log)
        self._configure(config)
        return "the configuration was read again"

    def _reload_logged(self) -> None:
        try:
            answer = self._reload()
        except QconvdError as error:
            log.error("the new configuration is refused, the old one stays", extra={"action": "config.refused"})
            for problem in getattr(error, "problems", ()) or str(error).splitlines():
                log.error("%s", problem, extra={"action": "config.refused"})
        else:
            log.info("%s", answer, extra={"action": "config.reloaded"})

    def _stop(self) -> None:
        """Let the workers end within the grace; what they have done is in their journals."""
        log.info("stopping; running tasks are interrupted and go on at the next start", extra={"action": "daemon.stopping"})
        self._notifier.status("Stopping: running tasks are interrupted and go on at the next start", "STOPPING=1")
        self._web.turned(self._trouble, stopping=True)
        until = time.monotonic() + self._config.limits.stop_grace
        self._gets_through(lambda: self._work.stop(self._hurried, self._bell))
        self._gets_through(lambda: self._tell(at_once=True))
        self._sender.close(0.0 if self._stops > 1 else min(until - time.monotonic(), LAST_WORDS))
        log.info("stopped", extra={"action": "daemon.stopped"})

    def _hurried(self) -> bool:
        """Whether a second signal came: asked often while workers end, for which systemd gives more time as long as they do."""
        if (now := time.monotonic()) >= self._extend_at:
            self._extend_at = now + EXTENSION / 5
            self._notifier.extend(EXTENSION)
        return self._stops > 1

    def _result(self, began: int) -> int:
        """The exit code of `--once`, and what it left."""
        for candidate in self._arrivals.settling.candidates.values():
            log.warning("%s was left: %s", candidate.path, candidate.reason,
                        extra={"action": "once.left", "source": candidate.path})  # fmt: skip
        for locator, error in self._remote.problems.items():
            log.warning("%s was left: %s", locator, error.what, extra={"action": "once.left", "source": locator})
        left = self._ledger.targets("waiting", "planned", "verifying") + self._ledger.unpublished()
        for target in left:
            log.error("%s was left: %s", target.label, target.reason,
                      extra={"action": "once.left", **about_target(self._ledger, target)})  # fmt: skip
        for pause in self._ledger.pauses():
            log.warning("%s", pause.told, extra={"action": "once.paused", "pause": pause.cause})
        if untold := len(self._ledger.notifications("waiting")):
            what = "1 notification waits" if untold == 1 else f"{untold} notifications wait"
            log.warning("%s to be sent; the next start does it", what, extra={"action": "once.untold"})
        history = self._ledger.history(since=began)
        failed = [e for e in history if e.to_state in ("failed", "refused")]
        self._work.stop(lambda: True, self._bell)
        made = len({e.target for e in history if e.target and e.to_state == "done"})
        lost = len({e.target for e in failed if e.target})
        waits = len(left) + len(self._arrivals.settling.candidates) + len(self._remote.problems)
        words = f"artifacts made: {made}, failed: {lost}; left: {waits}"
        nothing = self._pauses.intake and not (made or failed or waits)
        log.info("the end: %s", "there was nothing new to do" if nothing else words, extra={"action": "once.done"})
        return 1 if failed or left or self._remote.problems or not self._pauses.intake else 0

    @contextmanager
    def _signals(self, bell: Bell) -> Iterator[None]:
        """Signals set a flag and ring; the loop does the rest. The handlers that were there come back afterwards.

        A SIGHUP that was held back until now (see `__main__`) arrives as soon as it can be heard, and is held back again
        at the end, where nobody follows it any more.
        """

        def stop(_: int, __: FrameType | None) -> None:
            self._stops += 1
            bell.ring()

        def reload(_: int, __: FrameType | None) -> None:
            self._reload_asked = True
            bell.ring()

        handlers = {
            signal.SIGTERM: stop,
            signal.SIGINT: stop,
            signal.SIGHUP: reload,
            # A worker has ended: no need to wait for the next poll.
            signal.SIGCHLD: lambda *_: bell.ring(),
        }
        before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        mask = signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            for number, handler in before.items():
                signal.signal(number, handler)
