"""The process: HTTP, the log and the faults. `python serve.py FOLDER` prints its address and serves until it is killed."""

from __future__ import annotations

import json
import re
import socket
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote

sys.path.insert(0, str(Path(__file__).parent))
from api import Api, Reply
from control import control
from faults import Faults
from repos import Store

CHUNK = 64 << 10


class Request:
    """One request as the API sees it; paths keep their percent-escapes until they are taken apart."""

    def __init__(self, handler: Handler) -> None:
        path, _, query = handler.path.partition("?")
        self.method = handler.command
        self.path = path
        self.query = parse_qs(query, keep_blank_values=True)
        self.headers = handler.headers
        self.stale = False
        self._handler = handler
        self._body: bytes | None = None

    def pieces(self) -> Iterator[bytes]:
        """The body as it comes in."""
        if self._body is not None:
            yield self._body
            return
        yield from self._handler.body()
        self._body = b""

    def body(self) -> bytes:
        if self._body is None:
            self._body = b"".join(self._handler.body())
        return self._body

    def json(self) -> Any:
        return json.loads(self.body() or b"{}")


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except (ConnectionError, TimeoutError):
            self.close_connection = True

    def answer(self) -> None:
        if self.path.startswith("/_ctl/"):
            said = json.loads(b"".join(self.body()) or b"{}")
            self.send(Reply.json(control(self.path.removeprefix("/_ctl/"), said, self.server)))
            return
        key = f"{self.command} {unquote(self.path)}"
        self.note: dict[str, Any] = {
            "request": key, "at": time.time(), "user": self.server.api.user(self.headers) or "", "received": 0, "sent": 0,
            "range": self.headers.get("range", ""), "authorization": bool(self.headers.get("authorization")),
        }  # fmt: skip
        self.server.log.append(self.note)
        self.received = self.left_of_body()
        fault = self.server.faults.meet(key)
        if fault is None:
            self.send(self.server.api.reply(Request(self)))
            return
        self.note["fault"] = fault.kind
        self.meet(fault)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = answer

    def meet(self, fault: Any) -> None:
        match fault.kind:
            case "status":
                self.drain()
                self.send(Reply(fault.status, fault.body.encode(), dict(fault.headers)))
            case "drop":
                taken = 0
                for piece in self.body(4096):
                    taken += len(piece)
                    if taken >= fault.bytes:
                        break
                self.abort()
            case "hang":
                self.server.faults._calm.wait(fault.seconds)
                self.abort()
            case "lost":
                self.server.api.reply(Request(self))
                self.abort()
            case "slow":
                time.sleep(fault.seconds)
                self.send(self.server.api.reply(Request(self)))
            case "hold":
                if fault.when == "before":
                    self.server.faults.hold()
                    self.send(self.server.api.reply(Request(self)))
                else:
                    reply = self.server.api.reply(Request(self))
                    self.server.faults.hold()
                    self.send(reply)
            case "stale":
                request = Request(self)
                request.stale = True
                self.send(self.server.api.reply(request))
            case "whole":
                del self.headers["range"]
                self.send(self.server.api.reply(Request(self)))
            case "cut":
                self.send(self.server.api.reply(Request(self)), most=fault.bytes)
            case "flip":
                self.send(self.server.api.reply(Request(self)), flip=True)

    def left_of_body(self) -> int:
        return int(self.headers.get("content-length") or 0)

    def body(self, step: int = CHUNK) -> Iterator[bytes]:
        """What is left of the request's body, in pieces."""
        if "chunked" in (self.headers.get("transfer-encoding") or ""):
            while size := int(self.rfile.readline().split(b";")[0], 16):
                yield self.noted(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            del self.headers["transfer-encoding"]
            return
        left = getattr(self, "received", None)
        if left is None:
            left = self.left_of_body()
        while left > 0 and (piece := self.rfile.read(min(step, left))):
            left -= len(piece)
            self.received = left
            yield self.noted(piece)
        self.received = 0

    def noted(self, piece: bytes) -> bytes:
        if hasattr(self, "note"):
            self.note["received"] += len(piece)
        return piece

    def drain(self) -> None:
        for _ in self.body():
            pass

    def abort(self) -> None:
        self.note["status"] = 0
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.connection.close()

    def send(self, reply: Reply, most: int | None = None, flip: bool = False) -> None:
        self.drain()
        if hasattr(self, "note"):
            self.note["status"] = reply.status
        self.send_response(reply.status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(reply.length), **reply.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD" or reply.status == 304:
            return
        sent = 0
        for piece in reply.pieces(CHUNK if most is None else 1024):
            if most is not None and sent + len(piece) > most:
                self.wfile.write(piece[: most - sent])
                self.wfile.flush()
                self.abort()
                return
            self.wfile.write(bytes([piece[0] ^ 1]) + piece[1:] if flip and piece else piece)
            sent += len(piece)
            if hasattr(self, "note"):
                self.note["sent"] = sent

    def finish(self) -> None:
        try:
            super().finish()
        except (OSError, ValueError):
            return  # the connection was cut on purpose

    def log_message(self, *_: Any) -> None:
        return


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.store = Store(folder)
        self.faults = Faults()
        self.log: list[dict[str, Any]] = []
        self.api = Api(self.store, self.url)
        self.lock = threading.RLock()

    def handle_error(self, request: Any, client_address: Any) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, (ConnectionError, ValueError, OSError)) or re.search("test", str(error)):
            super().handle_error(request, client_address)


if __name__ == "__main__":
    server = Server(Path(sys.argv[1]))
    print(server.url, flush=True)
    server.serve_forever()
