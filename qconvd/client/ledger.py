"""A daemon's ledger and the files beside it: what one has left, or how one is asked that has no HTTP port."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qconvd.client.base import NOT_YET, Answer, Document
from qconvd.documents.jobs import job_data, job_details
from qconvd.documents.log import log_piece
from qconvd.documents.status import status_data
from qconvd.ledger import Ledger
from qconvd.progress import read_progress
from qconvd.service.files import start_of
from qconvd.state_lock import holder
from qconvd.wire import LOOK, WAIT


class OverLedger:
    """Reads the ledger in a state folder, and writes requests into it. `config` is the file that belongs to it."""

    def __init__(self, ledger: Ledger, state: Path, config: Path) -> None:
        self._ledger, self._state, self._config = ledger, state, config

    def status(self) -> Document:
        pid = holder(self._state)
        # Whether a daemon is ready is known to nobody but itself.
        return {
            **status_data(self._ledger, self._state, config=self._config, daemon=pid),
            "ready": None if pid else False, "trouble": "",
        }  # fmt: skip

    def jobs(self) -> list[Document]:
        progress = read_progress(self._state)
        return [job_data(j, progress) for j in self._ledger.jobs()]

    def job(self, number: str) -> Document:
        return job_details(self._ledger, self._state, number)

    def log(self, of: str, after: str = "", *, events: bool = False) -> Document:
        return log_piece(self._ledger, self._state, of, after, events=events)

    def ask(self, kind: str, ids: Sequence[str]) -> Answer:
        for id in ids:
            self._ledger.find(id)
        return self._asked(kind, ids=list(ids))

    def prioritize(self, job: str, priority: int) -> Answer:
        self._ledger.job(job)
        return self._asked("priority", job=job, priority=priority)

    def pause(self, reason: str) -> Answer:
        return self._asked("pause", reason=reason)

    def resume(self) -> Answer:
        return self._asked("resume")

    def reload(self) -> Answer:
        return self._asked("reload")

    def add(self, locator: str, recipe: str | None) -> Answer:
        return self._asked("add", path=locator, recipe=recipe)

    def _asked(self, kind: str, **arguments: Any) -> Answer:
        """Put a request into the ledger, wake the daemon, and wait for the answer."""
        number = self._ledger.request(kind, **arguments)
        (self._state / "wake").touch()
        if not holder(self._state):
            start = start_of(self._config)
            return Answer("open", f"No daemon runs on {self._state}; it will be done when one is started (`{start}`).")
        end = time.monotonic() + WAIT
        while (answer := self._ledger.asked(number)).state == "open":
            if time.monotonic() > end:
                return Answer("open", NOT_YET)
            time.sleep(LOOK)
        return Answer(answer.state, answer.answer)
