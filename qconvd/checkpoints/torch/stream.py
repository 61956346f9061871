"""Bytes of a pickle, read as far as they are asked for and never beyond what a pickle of weights takes."""

from __future__ import annotations

from collections.abc import Callable

from qconvd.checkpoints.files import read_at
from qconvd.errors import BadCheckpoint, QconvdError

PICKLE_LIMIT = 64 << 20
"""Bytes of a pickle. That of a file with 80,000 tensors, more than any, takes about 12 MB."""
LINE_LIMIT = 1024
_STEP = 1 << 16


class Stream:
    """`size` bytes of a file from `start` on. `ended` makes the error for a pickle that goes on behind them."""

    def __init__(self, descriptor: int, start: int, size: int, where: str, ended: Callable[[], QconvdError]) -> None:
        self.where = where
        self.descriptor = descriptor
        self._end = start + size
        self._limit = start + PICKLE_LIMIT
        self._ended = ended
        self._block = b""
        self._at = 0
        """Where in the file the block begins."""
        self._next = start

    @property
    def position(self) -> int:
        """Where in the file the next byte is."""
        return self._next

    def begin(self) -> None:
        """A new pickle begins here: it has the whole limit for itself."""
        self._limit = self._next + PICKLE_LIMIT

    def read(self, count: int) -> bytes:
        """Exactly `count` bytes. Raises before anything is read if they cannot be there."""
        if self._next + count > self._limit:
            raise BadCheckpoint(
                f"has a pickle of more than {PICKLE_LIMIT >> 20} MiB, where weights need a few", where=self.where, fix=FIX
            )
        if self._next + count > self._end:
            raise self._ended()
        first = self._next - self._at
        if not 0 <= first <= first + count <= len(self._block):
            self._block = read_at(self.descriptor, self._next, min(max(count, _STEP), self._end - self._next))
            self._at, first = self._next, 0
            if len(self._block) < count:
                raise self._ended()
        self._next += count
        return self._block[first : first + count]

    def number(self, count: int, signed: bool = False) -> int:
        return int.from_bytes(self.read(count), "little", signed=signed)

    def line(self) -> bytes:
        """Up to a newline, without it."""
        found = bytearray()
        while (byte := self.read(1)) != b"\n":
            found += byte
            if len(found) > LINE_LIMIT:
                raise BadCheckpoint(f"has a name of more than {LINE_LIMIT} bytes in its pickle", where=self.where, fix=FIX)
        return bytes(found)


FIX = "copy or download the file again; if it is as its author made it, take the safetensors of the same model"
