"""The daemon's HTTP port, in this process and without a daemon, or that of a real one."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from daemon_kit import Home
from qconvd import config
from qconvd.ledger import Ledger
from qconvd.web.server import WebServer

CONFIG = """\
watch:
  - {{folder: ./inbox, recipes: r}}
output: ./models
state: ./state
recipes:
  r: {{targets: [fp16, q8_0]}}
devices: {{cuda: none}}
web: {web}
"""


@dataclass(frozen=True)
class Reply:
    """An HTTP answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def text(self) -> str:
        return self.body.decode()


class Client:
    """Asks one address; headers that a browser or a program would not send can be left out or made up."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.host, _, port = address.rpartition(":")
        self.port = int(port)
        self.headers: dict[str, str] = {}

    def ask(
        self, method: str, path: str, body: object = None, headers: Mapping[str, str] | None = None, timeout: float = 20
    ) -> Reply:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=timeout)
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        told = {"Content-Type": "application/json"} if method == "POST" and not isinstance(body, bytes) else {}
        connection.request(method, path, data, {**told, **self.headers, **(headers or {})})
        reply = connection.getresponse()
        found = Reply(reply.status, {k.lower(): v for k, v in reply.getheaders()}, reply.read())
        connection.close()
        return found

    def get(self, path: str, **headers: str) -> Reply:
        return self.ask("GET", path, headers={k.replace("_", "-"): v for k, v in headers.items()})

    def post(self, path: str, body: object = None, **headers: str) -> Reply:
        said = {} if body is None else body
        return self.ask("POST", path, said, {k.replace("_", "-"): v for k, v in headers.items()})

    def raw(self, text: str | bytes, timeout: float = 20) -> bytes:
        """What comes back for these very bytes, until the other side closes."""
        with socket.create_connection((self.host, self.port), timeout=timeout) as connection:
            found = b""
            with contextlib.suppress(ConnectionError):
                connection.sendall(text if isinstance(text, bytes) else text.encode("latin-1"))
                while piece := connection.recv(65536):
                    found += piece
        return found


class Port(Client):
    """A server on a ledger of its own. Nobody answers requests; `turned` says that a daemon's loop went round."""

    def __init__(self, root: Path, web: str = "{listen: '127.0.0.1:0'}") -> None:
        self.root = root
        (root / "config.yaml").write_text(CONFIG.format(web=web))
        self.config = config.load(root / "config.yaml")
        self.ledger = Ledger(self.config.state / "ledger.sqlite")
        self.server = WebServer({})
        self.server.configure(self.config)
        self.server.listen(self.config.web.listen)
        self.server.turned()
        super().__init__(self.server.address or "127.0.0.1:0")

    def close(self) -> None:
        self.server.close()
        self.ledger.close()


def client_of(home: Home) -> Client:
    """Where a daemon that was told `listen: 127.0.0.1:0` listens."""
    found = home.wait(lambda: re.findall(r"listens on http://(\S+)", home.log()), "the daemon to listen")
    return Client(found[-1])
