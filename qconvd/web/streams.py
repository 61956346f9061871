"""Server-sent events: one watcher for all readers, who are written to and never waited for.

A reader is a queue of whole frames. One that is full belongs to somebody who does not read: that connection is cut off, and the
browser comes again by itself. Frames are made once and shared by all who get them.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable
from typing import Any, Protocol, TypeAlias

from starlette.types import Receive, Scope, Send

QUEUE = 64
"""Frames that a reader may be behind."""
READERS = 500
HEARTBEAT_SECONDS = 20.0
"""A comment that often, so that proxies keep the connection, and one that is dead is found."""
HEADERS = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"x-accel-buffering", b"no")]

Frame: TypeAlias = bytes
Greeting: TypeAlias = Callable[[], Iterable[Frame]]
"""What a new reader gets first; called in a thread."""


class Watching(Protocol):
    """Whoever makes frames as long as there are readers."""

    def begin(self) -> None: ...
    def end(self) -> None: ...


def frame(event: str, data: Any, id: int | None = None) -> Frame:
    """An event as it goes over the wire."""
    named = f"id: {id}\n" if id is not None else ""
    return f"{named}event: {event}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n".encode("utf-8", "backslashreplace")


class Streams:
    """All readers, by the channel that they listen to."""

    def __init__(self) -> None:
        self.watching: Watching | None = None
        self._readers: dict[str, set[_Reader]] = {}
        self.dropped = 0
        """How many were cut off because they did not read."""

    @property
    def channels(self) -> tuple[str, ...]:
        """Those that anybody listens to."""
        return tuple(self._readers)

    @property
    def readers(self) -> int:
        return sum(map(len, self._readers.values()))

    def send(self, channel: str, frames: Iterable[Frame]) -> None:
        """Give frames to all readers of a channel. Called in the loop."""
        made = b"".join(frames)
        for reader in list(self._readers.get(channel, ())) if made else ():
            try:
                reader.queue.put_nowait(made)
            except asyncio.QueueFull:
                self.dropped += 1
                reader.cut()

    def end(self) -> None:
        """Let all readers go. Called in the loop."""
        for readers in list(self._readers.values()):
            for reader in list(readers):
                reader.cut()

    async def serve(self, channel: str, greeting: Greeting, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request with a channel, until the client goes or is cut off."""
        connection = scope["state"]["connection"]
        reader = _Reader(connection.abort)
        self._readers.setdefault(channel, set()).add(reader)
        connection.streams = True
        if self.watching is not None:
            self.watching.begin()
        gone = asyncio.ensure_future(_gone(receive))
        try:
            await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
            await self._write(reader, gone, send, b"".join(await asyncio.to_thread(lambda: list(greeting()))))
        finally:
            gone.cancel()
            self._readers[channel].discard(reader)
            if not self._readers[channel]:
                del self._readers[channel]
            if self.watching is not None and not self._readers:
                self.watching.end()

    async def _write(self, reader: _Reader, gone: asyncio.Future[None], send: Send, first: bytes) -> None:
        # `retry`: a daemon that is started again is found soon.
        await send({"type": "http.response.body", "body": b"retry: 1000\n\n" + first, "more_body": True})
        while not gone.done():
            waiting = asyncio.ensure_future(reader.queue.get())
            both: set[asyncio.Future[Any]] = {waiting, gone}
            await asyncio.wait(both, timeout=HEARTBEAT_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            if gone.done():
                waiting.cancel()
                return
            if waiting.done():
                body = waiting.result()
            else:
                waiting.cancel()
                body = b":\n\n"
            await send({"type": "http.response.body", "body": body, "more_body": True})


class _Reader:
    """One client. `cut` closes its connection with all that it has not read."""

    def __init__(self, cut: Callable[[], None]) -> None:
        self.queue: asyncio.Queue[Frame] = asyncio.Queue(QUEUE)
        self.cut = cut


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
