"""The other end of sd_notify: a datagram socket as systemd's, and what came in."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from pathlib import Path


class NotifySocket:
    """Hears datagrams of `KEY=value` lines as soon as they come. `address` is what goes into NOTIFY_SOCKET."""

    def __init__(self, address: Path | str) -> None:
        self.address = str(address)
        self.open = True
        self.heard: list[dict[str, str]] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + self.address[1:] if self.address.startswith("@") else self.address)
        self._thread = threading.Thread(target=self._hear)
        self._thread.start()

    def _hear(self) -> None:
        while data := self._socket.recv(1 << 16):
            self.heard.append(dict(line.split("=", 1) for line in data.decode().splitlines()))

    def saying(self, key: str, value: str = "") -> Callable[[], list[dict[str, str]]]:
        """What to wait for: datagrams with a key, and with this in its value."""
        return lambda: [d for d in list(self.heard) if key in d and value in d[key]]

    def close(self) -> None:
        """Wait until all that was sent is heard."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as last:
            last.sendto(b"", "\0" + self.address[1:] if self.address.startswith("@") else self.address)
        self._thread.join()
        self.open = False
        self._socket.close()
