"""One client's connection: uvicorn's HTTP/1.1 with an end to everybody's patience.

A client has `SECONDS` to bring a whole request, headers and body, and `ANSWER_SECONDS` to take the answer; then it is cut off.
More than `CONNECTIONS` at a time are not even read. A stream of events has no end; who does not read it is cut off by whoever
writes it.
"""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

SECONDS = 10.0
ANSWER_SECONDS = 90.0
CONNECTIONS = 600


class Connection(H11Protocol):
    """A connection that ends. What answers finds it in the request's state, under `connection`."""

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self.streams = False
        """Set by what answers with a stream of events."""
        self._end: asyncio.TimerHandle | None = None
        self._waits_for = ""
        self.app_state = {"connection": self}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if len(self.connections) >= CONNECTIONS:
            transport.abort()  # type: ignore[attr-defined]
            return
        super().connection_made(transport)  # type: ignore[arg-type]
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        if self.transport is not None:
            self._wait_for("", 0)
            super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport is not None:
            super().data_received(data)
            self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def abort(self) -> None:
        """Cut it off: what is still to be sent is thrown away."""
        self.transport.abort()

    def _watch(self) -> None:
        """Begin to wait for what the client owes now, unless it is what it owed before."""
        answered = self.cycle is None or self.cycle.response_complete
        if not answered and not self.cycle.more_body:
            self._wait_for("answer", ANSWER_SECONDS)
        elif not answered or self.cycle is None or self.conn.trailing_data[0] or self.conn.their_state is not h11.IDLE:
            self._wait_for("request", SECONDS)
        else:
            # What is written may not be taken yet. A connection that nobody uses uvicorn ends.
            self._wait_for("taking" if self.transport.get_write_buffer_size() else "", ANSWER_SECONDS)

    def _wait_for(self, what: str, seconds: float) -> None:
        if what == self._waits_for:
            return
        if self._end is not None:
            self._end.cancel()
        self._waits_for = what
        self._end = self.loop.call_later(seconds, self._late) if what else None

    def _late(self) -> None:
        endless = self.streams and self._waits_for == "answer"
        taken = self._waits_for == "taking" and not self.transport.get_write_buffer_size()
        if not endless and not taken:
            self.transport.abort()
