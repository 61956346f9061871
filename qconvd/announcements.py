"""Every change of state, told once: to the log as a sentence, to plugins as an event."""

from __future__ import annotations

import logging

from qconvd.ledger import Event, Ledger
from qconvd.logs.about import about_target
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
            target = self._ledger.target(event.target)
            label = target.label
            level, words = sentence(event)
            if event.to_state == "failed" and (fix := target.error.get("fix")):
                words += f"\n  {fix}"
            log.log(level, "%s %s %s", name, label, words,
                    extra={"action": f"target.{event.to_state}", **about_target(self._ledger, target)})  # fmt: skip
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


def sentence(event: Event) -> tuple[int, str]:
    """How loud a target's change of state is told, and what is said after the target's name."""
    reason = event.reason
    if event.to_state == "failed":
        return logging.ERROR, f"failed: {reason}"
    if (words := _WORDS.get((event.from_state, event.to_state))) is not None:
        return logging.INFO, words
    if event.to_state == "planned":
        # A step back, from a stop or a crash.
        level = logging.WARNING if reason.startswith("attempt ") else logging.INFO
        return level, reason if reason.startswith("was ") else f"is to be tried again: {reason}"
    if event.to_state == "waiting":
        if reason.startswith("waits for "):
            return logging.INFO, reason
        return logging.INFO, f"is {reason}" if reason.startswith("waiting") else f"is waiting: {reason}"
    if event.to_state == "publishing":
        return logging.INFO, reason.replace("publishing", "is being published", 1)
    if event.to_state == "ready" and reason.startswith("attempt "):
        return logging.WARNING, f"is to be published again: {reason}"
    if event.to_state == "ready" and reason.startswith("verified"):
        return logging.INFO, f"is {reason}"
    if reason.startswith(event.to_state):
        return logging.INFO, f"is {reason}"
    return logging.INFO, f"is {event.to_state}{f': {reason}' if reason else ''}"


_WORDS = {
    ("waiting", "planned"): "is planned",
    ("planned", "converting"): "is being converted",
    ("converting", "verifying"): "is converted and waits to be verified",
    ("verifying", "ready"): "is verified and in its place",
}
