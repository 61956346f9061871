"""Every change of state, told once: to the log as a sentence, to plugins as an event."""

from __future__ import annotations

import logging

from qconvd.ledger import Event, Ledger
from qconvd.plugins import plugins

log = logging.getLogger(__name__)


class Announcements:
    """Reads the ledger's history from where it stood at the start."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._seen: tuple[object, ...] = ()
        self.last = int(ledger.rows("SELECT coalesce(max(id), 0) FROM event")[0][0])
        """The number of the last event that was told."""

    def tick(self) -> None:
        if self._seen == (mark := self._ledger.mark()):
            return
        self._seen = mark
        for event in self._ledger.history(since=self.last):
            self.last = event.id
            self._tell(event)

    def _tell(self, event: Event) -> None:
        name = self._ledger.source(event.source).name if event.source is not None else ""
        label = ""
        if event.target is not None:
            label = self._ledger.target(event.target).label
            why = "" if event.reason in ("", event.to_state) else f": {event.reason}"
            level = logging.ERROR if event.to_state == "failed" else logging.INFO
            log.log(level, "%s %s is %s%s", name, label, event.to_state, why, extra={"action": f"target.{event.to_state}"})
        plugins().notify({
            "kind": "target" if event.target is not None else "task" if event.task is not None else "source",
            "id": event.target or event.task or event.source,
            "model": name,
            "label": label,
            "from": event.from_state,
            "to": event.to_state,
            "reason": event.reason,
            "at": event.at,
        })  # fmt: skip
