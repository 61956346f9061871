"""Connections that end in time, whatever the other side does."""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
import threading
import urllib.request
from collections.abc import Callable
from typing import Any

from qconvd.notifications.attempt import BreakOff


class Deadline:
    """Ends a connection from outside: urllib's timeout is one for each wait, and a server that trickles has many."""

    def __init__(self, seconds: float, stop: BreakOff) -> None:
        self.over = False
        self.connection: http.client.HTTPConnection | None = None
        self._socket: socket.socket | None = None
        self._timer = threading.Timer(seconds, self._late)
        self._timer.daemon = True
        self._timer.start()
        self._stop = stop
        stop.by(self._shut)

    def made_by(self, kind: Callable[..., http.client.HTTPConnection]) -> Callable[..., http.client.HTTPConnection]:
        """What urllib calls to get a connection."""

        def make(*arguments: Any, **named: Any) -> http.client.HTTPConnection:
            self.connection = kind(*arguments, **named)
            connect = self.connection.connect

            def connected() -> None:
                connect()
                # getresponse gives the socket away, so it has to be remembered.
                self._socket = self.connection.sock if self.connection else None
                if self.over or self._stop.ended:
                    self._shut()

            self.connection.connect = connected  # type: ignore[method-assign]
            return self.connection

        return make

    def close(self) -> None:
        self._timer.cancel()
        self._stop.by(None)

    def _late(self) -> None:
        self.over = True
        self._shut()

    def _shut(self) -> None:
        found = self._socket or (self.connection.sock if self.connection else None)
        if found is not None:
            with contextlib.suppress(OSError):
                found.shutdown(socket.SHUT_RDWR)


class Connections(urllib.request.AbstractHTTPHandler):
    """Opens http and https, over connections that the deadline knows."""

    def __init__(self, deadline: Deadline) -> None:
        super().__init__()
        self._deadline = deadline

    def http_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(self._deadline.made_by(http.client.HTTPConnection), request)

    def https_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        kind = self._deadline.made_by(http.client.HTTPSConnection)
        return self.do_open(kind, request, context=ssl.create_default_context())

    http_request = https_request = urllib.request.AbstractHTTPHandler.do_request_
