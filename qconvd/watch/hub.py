"""Watched repositories: one thread that asks the Hub whether something changed, and looks at what did.

Like the watched folders it decides nothing: what it finds it hands over as a `Report`, and the daemon's loop does the rest. One
request covers a repository, or all models of an author; questions are spread by a tenth of their interval, so that many daemons
do not ask at once. What the Hub refuses for good is not asked again until the configuration or the token changes, or somebody
hints at it; what passes is asked again when the server says so, and later each time.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Protocol

from qconvd.config import HubModels
from qconvd.errors import HubBusy, HubRefused, OutOfSpace, QconvdError
from qconvd.hub.address import Address
from qconvd.hub.client import Access, Hub, RemoteModel
from qconvd.hub.heads import Found, look
from qconvd.hub.selection import is_ours
from qconvd.hub.tokens import hub_token

log = logging.getLogger(__name__)
JITTER = 0.1
"""Part of an interval by which a question may come earlier or later."""
HINT_GAP = 5.0
"""Seconds between two questions that hints ask for: a hundred webhooks are one question."""
LONGEST_BACKOFF = 3600.0
FIRST_BACKOFF = 30.0
IDLE_SECONDS = 60.0
TOKEN_SECONDS = 30.0
"""How often the token is looked at while something is refused: a new one may change that."""


@dataclass(frozen=True)
class Report:
    """What became of one repository: it was found, it is as it was, or it cannot be had."""

    address: Address
    found: Found | None = None
    commit: str = ""
    error: QconvdError | None = None
    remote: RemoteModel | None = None
    """What a listing says of one that is as it was: whether it fits the filters of an entry."""

    @property
    def final(self) -> bool:
        """Whether asking again would bring the same."""
        return self.error is not None and not isinstance(self.error, HubBusy)


@dataclass
class Question:
    """One thing that is asked again and again; without an interval, once."""

    models: HubModels
    interval: float = 0.0
    due: float = 0.0
    last: float = -HINT_GAP
    """When it was last asked."""
    failures: int = 0
    asked: bool = False
    """Whether it was answered since the configuration was read."""
    refused: str = ""
    """The token's fingerprint with which it was refused for good; `-` for none."""
    hinted: bool = False
    """Whether somebody hinted at it since it was last asked, or while it is."""
    not_before: float = 0.0
    """When the server lets it be asked again, whoever hints."""
    late: set[str] = field(default_factory=set)
    """Repositories of an author that the Hub could not answer for: they come last, so that they hold up no others."""

    def hint(self) -> None:
        self.hinted, self.refused = True, ""
        self.due = max(min(self.due, self.last + HINT_GAP), self.not_before)


class Known(Protocol):
    """What is known already: asked from the thread, so it must be safe there."""

    def commit(self, address: Address) -> str:
        """The commit that was last looked at, empty if none was."""
        ...

    def earlier(self, address: Address, commit: str) -> bool:
        """Whether this one was looked at before that."""
        ...


@dataclass
class Reports:
    """A queue that rings."""

    wake: Callable[[], None]
    queue: SimpleQueue[Report] = field(default_factory=SimpleQueue)

    def put(self, report: Report) -> None:
        self.queue.put(report)
        self.wake()

    def take(self) -> list[Report]:
        found = []
        try:
            while True:
                found.append(self.queue.get_nowait())
        except Empty:
            return found


class HubWatch:
    """Asks the Hub. `wake` is called from its thread when there is a report to take."""

    def __init__(
        self, wake: Callable[[], None], known: Known, folder: Path, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._reports = Reports(wake)
        self._known = known
        self._folder = folder
        self._clock = clock
        self._lock = threading.Condition()
        self._questions: list[Question] = []
        self._access: Access | None = None
        self._hub: Hub | None = None
        self._thread: threading.Thread | None = None
        self._closed = False
        self._refusals: dict[str, tuple[str, str]] = {}
        """Of models of an author: the commit and the token's fingerprint with which access was refused."""
        self._stepped_back: dict[str, str] = {}
        """By locator: an older commit than the one that is known, seen once."""
        self._token_looked_at = 0.0

    def configure(self, access: Access, wanted: Mapping[HubModels, float]) -> None:
        """Watch these and no others, each asked for at once: `wanted` has their intervals. What was refused is asked again."""
        with self._lock:
            once = [q for q in self._questions if not q.interval]
            self._questions = [Question(models, interval) for models, interval in wanted.items()] + once
            self._access, self._hub = access, None
            self._refusals.clear()
            self._begin()

    def ask(self, address: Address) -> None:
        """Look at one repository that is not watched."""
        with self._lock:
            self._questions.append(Question(HubModels(repo=address.repo, revision=address.revision)))
            self._begin()

    def hint(self, repo: str) -> bool:
        """Somebody says that a repository changed. Returns whether it is watched; it is asked for at once then."""
        with self._lock:
            found = [q for q in self._questions if q.models.repo == repo or q.models.author == repo.partition("/")[0]]
            for question in found:
                question.hint()
            self._refusals.pop(repo, None)
            self._lock.notify_all()
            return bool(found)

    def take(self) -> list[Report]:
        """Reports since the last call."""
        return self._reports.take()

    def quiet(self) -> bool:
        """Whether everything was asked for once, nothing failed that will be asked for again, and every report was taken."""
        with self._lock:
            # In this order: a report is there before its question counts as asked.
            return all(q.asked or q.failures for q in self._questions) and self._reports.queue.empty()

    def close(self) -> None:
        """Ask no more. A question that is under way is not waited for."""
        with self._lock:
            self._closed = True
            self._lock.notify_all()

    # The thread

    def _begin(self) -> None:
        if self._thread is None and self._questions:
            self._thread = threading.Thread(target=self._run, name="hub", daemon=True)
            self._thread.start()
        self._lock.notify_all()

    def _run(self) -> None:
        while True:
            with self._lock:
                question = self._next()
                while question is None and not self._closed:
                    self._lock.wait(self._pause())
                    question = self._next()
                if self._closed or question is None:
                    return
            self._ask(question)

    def _next(self) -> Question | None:
        now = self._clock()
        self._forgive(now)
        due = [q for q in self._questions if q.due <= now and not q.refused]
        return min(due, key=lambda q: q.due, default=None)

    def _pause(self) -> float:
        waits = [q.due - self._clock() for q in self._questions if not q.refused]
        return max(0.01, min([*waits, TOKEN_SECONDS if any(q.refused for q in self._questions) else IDLE_SECONDS]))

    def _forgive(self, now: float) -> None:
        """Ask again for what was refused if the token is another one now."""
        refused = [q for q in self._questions if q.refused]
        if not refused or now - self._token_looked_at < TOKEN_SECONDS:
            return
        self._token_looked_at = now
        present = self._fingerprint()
        for question in refused:
            if question.refused != present:
                question.refused, question.due, self._hub = "", now, None

    def _fingerprint(self) -> str:
        try:
            token = hub_token(self._access.token_file) if self._access else None
        except QconvdError:
            return "-"
        return token.fingerprint if token else "-"

    def _ask(self, question: Question) -> None:
        """Ask one question, report, and say when it is asked again."""
        models, now = question.models, self._clock()
        with self._lock:
            question.last, question.hinted = now, False
        wait = question.interval * random.uniform(1 - JITTER, 1 + JITTER)
        try:
            hub = self._client()
            if models.repo is not None:
                self._one(hub, Address(models.repo, models.revision or "main"))
            else:
                self._author(hub, question)
        except HubBusy as error:
            question.failures += 1
            question.not_before = now + error.seconds
            wait = max(error.seconds, min(FIRST_BACKOFF * 2.0 ** (question.failures - 1), LONGEST_BACKOFF))
            self._report(models, error)
        except QconvdError as error:
            question.failures = 0
            question.refused = self._fingerprint() if isinstance(error, HubRefused) else ""
            self._report(models, error)
        except Exception as error:
            log.exception("asking for %s failed", models.shown, extra={"action": "hub.defect", "source": models.shown})
            question.failures += 1
            wait = LONGEST_BACKOFF
            self._report(models, _defect(error))
        else:
            question.failures = 0
        with self._lock:
            question.asked = True
            question.due = now + wait
            if question.hinted:  # while it was asked: the answer may be older than what is hinted at
                question.hint()
            if not question.interval:
                self._questions = [q for q in self._questions if q is not question]
        self._reports.wake()

    def _client(self) -> Hub:
        with self._lock:
            assert self._access is not None
            if self._hub is None or self._hub.token != hub_token(self._access.token_file):
                self._hub = Hub.of(self._access)
            return self._hub

    def _one(self, hub: Hub, address: Address) -> None:
        commit = hub.commit_of(address.repo, address.revision)
        if self._is_new(address, commit):
            self._look(hub, address, commit)

    def _is_new(self, address: Address, commit: str, remote: RemoteModel | None = None) -> bool:
        """Whether to look at a commit; that a model is as it was is reported.

        An older commit than the known one is a branch that was moved back, or the answer of a server that lags behind: what it
        is shows when it is asked again.
        """
        if commit == self._known.commit(address):
            self._stepped_back.pop(address.locator, None)
            self._reports.put(Report(address, commit=commit, remote=remote))
            return False
        if self._known.earlier(address, commit) and self._stepped_back.get(address.locator) != commit:
            self._stepped_back[address.locator] = commit
            return False
        self._stepped_back.pop(address.locator, None)
        return True

    def _look(self, hub: Hub, address: Address, commit: str) -> None:
        """Look at a commit that was not seen before. What it holds may be refused; that is told once."""
        try:
            self._reports.put(Report(address, look(hub, address, self._place(address)), commit))
        except (HubBusy, HubRefused, OutOfSpace):
            raise
        except QconvdError as error:
            self._reports.put(Report(address, commit=commit, error=error))

    def _author(self, hub: Hub, question: Question) -> None:
        """All models of an author that fit. One that cannot be had is reported and keeps nothing from the others."""
        models = question.models
        for remote in sorted(hub.models_of(models.author or ""), key=lambda remote: remote.repo in question.late):
            address = Address(remote.repo)
            if is_ours(remote) or not fits(models, remote):
                continue
            if not self._is_new(address, remote.commit, remote):
                question.late.discard(remote.repo)
                continue
            if self._refusals.get(remote.repo) == (refusal := (remote.commit, self._fingerprint())):
                continue
            try:
                self._look(hub, address, remote.commit)
            except HubRefused as error:
                self._refusals[remote.repo] = refusal
                self._reports.put(Report(address, error=error))
            except (HubBusy, OutOfSpace):
                question.late.add(remote.repo)
                raise
            except Exception as error:
                log.exception("looking at %s failed", remote.repo, extra={"action": "hub.defect", "source": address.locator})
                self._reports.put(Report(address, commit=remote.commit, error=_defect(error)))
            question.late.discard(remote.repo)

    def _place(self, address: Address) -> Path:
        return self._folder / address.repo.replace("/", "--")

    def _report(self, models: HubModels, error: QconvdError) -> None:
        if models.repo is not None:
            self._reports.put(Report(Address(models.repo, models.revision or "main"), error=error))
        else:
            self._reports.put(Report(Address(f"{models.author}/*"), error=error))


def _defect(error: Exception) -> QconvdError:
    return QconvdError(f"a defect of qconvd: {type(error).__name__} (the log has the traceback)")


def fits(models: HubModels, remote: RemoteModel) -> bool:
    """Whether a model of an author passes the filters of an entry."""
    name = remote.repo.partition("/")[2].casefold()
    return (
        (models.pipeline is None or remote.pipeline == models.pipeline)
        and (not models.licenses or remote.license.casefold() in _folded(models.licenses))
        and (models.max_parameters is None or (remote.parameters is not None and remote.parameters <= models.max_parameters))
        and (not models.name or any(fnmatchcase(name, pattern) for pattern in _folded(models.name)))
    )


def _folded(words: Collection[str]) -> list[str]:
    return [word.casefold() for word in words]
