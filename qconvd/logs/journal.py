"""systemd's journal, by its own protocol (https://systemd.io/JOURNAL_NATIVE_PROTOCOL/): an entry is a datagram of fields."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import re
import socket
import struct
import sys
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

SOCKET = Path("/run/systemd/journal/socket")
PATIENCE = 2.0
"""Seconds to wait for a journal that does not read."""
PRIORITIES = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}
"""syslog(3)'s."""
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL


class JournalHandler(logging.Handler):
    """Sends each record, which its formatter has made an entry of (`formats.as_entry`). Raises OSError if nobody listens.

    What cannot be sent later on goes to stderr, in words: a service's stderr is the journal as well.
    """

    def __init__(self, address: Path = SOCKET) -> None:
        super().__init__()
        self._address = str(address)
        self._socket = self._connected()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            data = self.format(record).encode(errors="surrogateescape")
            self._send_somehow(data, record.levelname)
        except Exception:  # noqa: BLE001 — as the standard library's handlers: a line that fails must not end what logs it
            self.handleError(record)

    def close(self) -> None:
        with self.lock or nullcontext():
            self._socket.close()
        super().close()

    def _send_somehow(self, data: bytes, level: str) -> None:
        try:
            try:
                self._send(data)
            except TimeoutError:
                raise
            except OSError:
                # The journal was started again, perhaps.
                self._socket.close()
                self._socket = self._connected()
                self._send(data)
        except OSError:
            print(f"{level:<7} {_message_of(data)}", file=sys.stderr, flush=True)

    def _connected(self) -> socket.socket:
        made = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        try:
            made.settimeout(PATIENCE)
            made.connect(self._address)
        except OSError:
            made.close()
            raise
        return made

    def _send(self, data: bytes) -> None:
        try:
            self._socket.send(data)
        except OSError as error:
            if error.errno not in (errno.EMSGSIZE, errno.ENOBUFS):
                raise
            self._send_file(data)

    def _send_file(self, data: bytes) -> None:
        """What is too long for a datagram goes as a file in memory that nobody can change any more."""
        file = os.memfd_create("qconvd-log", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            with os.fdopen(os.dup(file), "wb") as out:
                out.write(data)
            fcntl.fcntl(file, fcntl.F_ADD_SEALS, _SEALS)
            self._socket.sendmsg([], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", file))])
        finally:
            os.close(file)


def told(said: Mapping[str, Any]) -> str:
    """A line's message, with the traceback below."""
    return "\n".join(filter(None, (said["message"], said.get("exception", ""))))


def entry(said: Mapping[str, Any]) -> bytes:
    """The fields of a line: a collection gives one field for each element, called in the singular."""
    return b"".join(_written(name, value) for name, value in _fields(said))


def _fields(said: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "MESSAGE", told(said)
    yield "PRIORITY", str(PRIORITIES.get(said["level"], 5))
    yield "SYSLOG_IDENTIFIER", "qconvd"
    for key, value in said.items():
        if key in ("message", "exception", "time", "level"):
            continue
        # Upper case letters, digits and underscores, 64 at most.
        name = f"QCONVD_{re.sub('[^A-Z0-9]', '_', key.upper())}"[:64]
        if isinstance(value, list):
            yield from ((name.removesuffix("S"), str(one)) for one in value)
        else:
            yield name, str(value)


def _written(name: str, value: str) -> bytes:
    data = value.encode()
    if b"\n" not in data:
        return b"%s=%s\n" % (name.encode(), data)
    return b"%s\n%s%s\n" % (name.encode(), struct.pack("<Q", len(data)), data)


def _message_of(data: bytes) -> str:
    """The message of an entry, which is its first field."""
    name, rest = data[: len(b"MESSAGE")], data[len(b"MESSAGE") :]
    assert name == b"MESSAGE"
    if rest.startswith(b"="):
        return rest[1:].partition(b"\n")[0].decode()
    (length,) = struct.unpack_from("<Q", rest, 1)
    return rest[9 : 9 + length].decode()
