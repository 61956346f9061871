"""A daemon of this machine: over HTTP as long as that answers and serves us, in its ledger otherwise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from qconvd.client.base import Answer, Daemon, Document
from qconvd.client.http import NotFitting, NotReached, NotServed, OverHttp

T = TypeVar("T")


class Here:
    """Asks `over_http` if there is one, and once that fails what `ledger` gives: a daemon may end or begin in the middle.

    What was sent to a daemon that then broke off is not asked again.
    """

    def __init__(self, over_http: OverHttp | None, ledger: Callable[[], Daemon]) -> None:
        self._over_http, self._open = over_http, ledger
        self._ledger: Daemon | None = None

    def status(self) -> Document:
        return self._asked(lambda daemon: daemon.status())

    def jobs(self) -> list[Document]:
        return self._asked(lambda daemon: daemon.jobs())

    def job(self, number: str) -> Document:
        return self._asked(lambda daemon: daemon.job(number))

    def log(self, of: str, after: str = "", *, events: bool = False) -> Document:
        return self._asked(lambda daemon: daemon.log(of, after, events=events))

    def ask(self, kind: str, ids: Sequence[str]) -> Answer:
        return self._asked(lambda daemon: daemon.ask(kind, ids))

    def prioritize(self, job: str, priority: int) -> Answer:
        return self._asked(lambda daemon: daemon.prioritize(job, priority))

    def pause(self, reason: str) -> Answer:
        return self._asked(lambda daemon: daemon.pause(reason))

    def resume(self) -> Answer:
        return self._asked(lambda daemon: daemon.resume())

    def reload(self) -> Answer:
        return self._asked(lambda daemon: daemon.reload())

    def add(self, locator: str, recipe: str | None) -> Answer:
        return self._asked(lambda daemon: daemon.add(locator, recipe))

    def _asked(self, question: Callable[[Daemon], T]) -> T:
        if self._over_http is not None:
            try:
                return question(self._over_http)
            except NotFitting:
                pass  # the ledger has no such limits
            except (NotReached, NotServed):
                self._over_http.close()
                self._over_http = None
        if self._ledger is None:
            self._ledger = self._open()
        return question(self._ledger)
