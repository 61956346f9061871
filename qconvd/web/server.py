"""A small HTTP server in a thread of the daemon: paths to handlers, bounded requests, and nothing but the standard library.

Handlers are called from its threads. They get bytes and headers and return a status and a sentence; whatever they do to the
daemon they do by ringing its bell.
"""

from __future__ import annotations

import contextlib
import json
import logging
import socket
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeAlias

from qconvd.errors import QconvdError

log = logging.getLogger(__name__)
BODY_LIMIT = 1 << 20
"""Bytes of a request's body."""
SECONDS = 10.0
"""How long a client may take for a request, all of it."""
AT_A_TIME = 16

Answer: TypeAlias = tuple[int, str]
Post: TypeAlias = Callable[[bytes, Mapping[str, str]], Answer]


class WebServer:
    """Listens on one address. `posts` maps paths to what answers a POST there."""

    def __init__(self, posts: Mapping[str, Post]) -> None:
        self._posts = posts
        self._listening = ""
        self._server: _Server | None = None

    @property
    def address(self) -> str:
        """Where it listens, with the port that the system chose for 0; empty if it is closed."""
        if self._server is None:
            return ""
        host, port = str(self._server.server_address[0]), self._server.server_address[1]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def listen(self, where: str | None) -> None:
        """Listen at `address:port` and nowhere else; None closes. Raises `QconvdError` if the system does not let it."""
        if (where or "") == self._listening:
            return
        self.close()
        if not where:
            return
        host, _, port = where.rpartition(":")
        try:
            self._server = _Server((host.strip("[]"), int(port)), self._posts)
        except OSError as error:
            fix = "choose another `web.listen`, or stop what listens there"
            raise QconvdError(f"cannot listen: {error.strerror}", where=where, fix=fix) from error
        self._listening = where
        threading.Thread(target=self._server.serve_forever, name="web", daemon=True).start()
        log.info("listens on http://%s", self.address, extra={"action": "web.listening"})

    def close(self) -> None:
        """Stop listening."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
        self._server, self._listening = None, ""


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address: tuple[str, int], posts: Mapping[str, Post]) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self.posts = posts
        self.slots = threading.BoundedSemaphore(AT_A_TIME)
        super().__init__(address, _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        # More at a time than anybody honest sends are not even read.
        if not self.slots.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.slots.release()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002
        log.debug("a request broke off", exc_info=True, extra={"action": "web.broken"})


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    server_version = "qconvd"
    sys_version = ""
    timeout = SECONDS

    def handle(self) -> None:
        # `timeout` is for each wait; who sends a byte every nine seconds would keep the place for ever.
        end = threading.Timer(self.timeout, self._cut)
        end.daemon = True
        end.start()
        try:
            super().handle()
        finally:
            end.cancel()

    def _cut(self) -> None:
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def do_POST(self) -> None:
        answer = self.server.posts.get(self.path.partition("?")[0])
        length = self.headers.get("Content-Length", "")
        if answer is None:
            self._say(404, "there is nothing here")
        elif not length.isdecimal():
            self._say(411, "a request has to say its length")
        elif int(length) > BODY_LIMIT:
            self._say(413, "that is too long")
        else:
            self._say(*answer(self.rfile.read(int(length)), {k.lower(): v for k, v in self.headers.items()}))

    def do_GET(self) -> None:
        known = self.path.partition("?")[0] in self.server.posts
        self._say(405 if known else 404, "only POST" if known else "there is nothing here")

    def _say(self, status: int, sentence: str) -> None:
        body = json.dumps({"status": status, "message": sentence}).encode() + b"\n"
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        log.debug(format, *args, extra={"action": "web.request"})
