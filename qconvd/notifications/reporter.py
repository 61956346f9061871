"""The daemon's turn: what the ledger's history says goes into the outbox and to plugins, once."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from qconvd.config import Config
from qconvd.ledger import Ledger
from qconvd.notifications import news
from qconvd.notifications.jobs import ended
from qconvd.plugins import plugins

log = logging.getLogger(__name__)
LONGEST_UNWRITTEN = 500
"""Changes of state that were looked through and told nothing, before it is written down that they were."""


class Reporter:
    """Looks through what is new in the ledger. `wake` is called when there is something to send.

    What is told, and how far the history was looked through, are one transaction: a crash loses no notification and makes none
    twice. Plugins are told after it, so a daemon that is killed in that moment has not told them.
    """

    def __init__(self, ledger: Ledger, wake: Callable[[], object] = lambda: None) -> None:
        self._ledger = ledger
        self._wake = wake
        self._seen: tuple[object, ...] = ()
        self._last = self._written = int(ledger.told_until("event"))

    def tick(self, config: Config) -> None:
        if self._seen == (mark := self._ledger.mark()):
            return
        self._seen = mark
        events = self._ledger.history(since=self._last)
        pause = next((p for p in self._ledger.pauses() if p.cause == "disk"), None)
        told = self._ledger.told_until("pause")
        paused, resumed = pause is not None and pause.since != told, pause is None and told > 0
        if not events and not paused and not resumed:
            return
        ends = ended(self._ledger, events)
        found = [news.of_job(end) for end in ends]
        refused = {e.source: None for e in events if e.source is not None and e.target is None and e.to_state == "refused"}
        found += [news.of_refused(source) for source in map(self._ledger.source, refused) if source.state == "refused"]
        if pause is not None and paused:
            found.append(news.of_pause(pause))
        elif resumed:
            found.append(news.of_resume(time.time()))
        last = max([self._last, *(e.id for e in events)])
        if found or last - self._written > LONGEST_UNWRITTEN:
            with self._ledger.transaction():
                self._ledger.tell_until("event", last)
                if paused or resumed:
                    self._ledger.tell_until("pause", pause.since if pause is not None else 0)
                waiting = self._ledger.notify_all([(n.name, one) for one in found for n in config.notify if n.wants(one)])
            self._written = last
            if waiting:
                self._wake()
        self._last = last
        for one in found:
            if one["event"] != "refused":  # a change of state of the model itself, which plugins hear as such
                plugins().notify(event_of(one))


def event_of(told: Mapping[str, Any]) -> dict[str, Any]:
    """News as plugins hear it: see `qconvd_task_event`."""
    job = told["job"]
    return {
        "kind": "daemon" if job is None else "job",
        "id": job,
        "model": told["model"],
        "label": "",
        "from": "",
        "to": told["event"],
        "reason": told["reason"],
        "at": told["at"],
        **({} if job is None else {k: told[k] for k in ("recipe", "seconds", "artifacts")}),
    }  # fmt: skip
