"""uvicorn in a thread of the daemon: the one module that knows it, with connection.py."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from collections.abc import Mapping

import uvicorn

from qconvd.web.app import Application
from qconvd.web.connection import Connection
from qconvd.web.server import Post
from qconvd.web.site import Site

log = logging.getLogger(__name__)
KEEP_ALIVE = 20
"""Seconds after which a connection that nobody uses is closed."""
HEADERS_LIMIT = 16 << 10
"""Bytes of a request's line and headers."""
LAST_SECONDS = 0.5
"""How long answers that have begun may take when the daemon ends."""


class Serving:
    """Serves one listening socket until it is stopped."""

    def __init__(self, site: Site, posts: Mapping[str, Post]) -> None:
        self._app = Application(site, posts)
        config = uvicorn.Config(
            self._app, loop="asyncio", http=Connection, ws="none", lifespan="off", interface="asgi3", log_config=None,
            access_log=False, proxy_headers=False, server_header=False, date_header=False,
            timeout_keep_alive=KEEP_ALIVE, h11_max_incomplete_event_size=HEADERS_LIMIT,
        )  # fmt: skip
        # What uvicorn says is of single requests, so of whoever sends them: nothing for the daemon's log.
        for name in ("uvicorn", "uvicorn.error", "asyncio"):
            logging.getLogger(name).setLevel(logging.ERROR)
        self._server = _Server(config, self._app)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ready = threading.Event()

    def run(self, listening: socket.socket) -> None:
        """Serve; returns when it is stopped. Called in the thread."""
        try:
            asyncio.run(self._run(listening))
        except Exception:
            log.exception("the HTTP server ended", extra={"action": "web.ended"})
        finally:
            self._app.close()
            self._ready.set()

    def stop(self) -> None:
        """Let `run` return. Called from another thread."""
        self._ready.wait(LAST_SECONDS)
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._server.ended.set)

    async def _run(self, listening: socket.socket) -> None:
        self._loop = asyncio.get_running_loop()
        self._ready.set()
        await self._server.serve(sockets=[listening])


class _Server(uvicorn.Server):
    """uvicorn without its clock: ten wakes a second for a date that nobody asked for. It ends when it is told to."""

    def __init__(self, config: uvicorn.Config, app: Application) -> None:
        super().__init__(config)
        self.ended = asyncio.Event()
        self._application = app

    async def main_loop(self) -> None:
        await self.ended.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:  # noqa: ARG002
        for server in self.servers:
            server.close()
        self._application.end()
        tasks = set(self.server_state.tasks)
        if tasks:
            await asyncio.wait(tasks, timeout=LAST_SECONDS)
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        for task in set(self.server_state.tasks):
            task.cancel()
