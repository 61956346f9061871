"""What people ask of the daemon from the command line passes through the ledger: asked here, answered there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from qconvd.ledger.reading import Reading
from qconvd.ledger.records import as_json


class Asking(Reading):
    """Requests and their answers."""

    _clock: Callable[[], float]

    def request(self, kind: str, **arguments: Any) -> int:
        """Ask the daemon for something; returns the request's number, under which `asked` finds the answer."""
        with self.transaction() as db:
            return int(db.execute(
                "INSERT INTO request (kind, arguments, created_at) VALUES (?, ?, ?)", (kind, as_json(arguments), self._clock())
            ).lastrowid or 0)  # fmt: skip

    def answer(self, id: int, answer: str, *, ok: bool = True) -> None:
        """Answer a request, once."""
        with self.transaction() as db:
            db.execute(
                "UPDATE request SET state = ?, answer = ?, answered_at = ? WHERE id = ? AND state = 'open'",
                ("done" if ok else "refused", answer, self._clock(), id),
            )
