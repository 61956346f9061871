"""The values of a GGUF header, read through a buffer of fixed size.

A header may claim a string of 2^60 bytes. So nothing is allocated on a claim's word: what would go beyond the file is missing
bytes, and what no model needs is a lie.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any, NoReturn

from qconvd.checkpoints.files import read_at
from qconvd.errors import BadCheckpoint, Incomplete

STRING, ARRAY = 8, 9
SCALARS = {
    0: ("uint8", "<B"), 1: ("int8", "<b"), 2: ("uint16", "<H"), 3: ("int16", "<h"), 4: ("uint32", "<I"), 5: ("int32", "<i"),
    6: ("float32", "<f"), 7: ("bool", "<?"), 10: ("uint64", "<Q"), 11: ("int64", "<q"), 12: ("float64", "<d"),
}  # fmt: skip

BUFFER = 1 << 20
KEPT_ELEMENTS = 256
"""Arrays up to this length are kept; a vocabulary is only counted."""

MAX_ELEMENTS = 8_000_000
"""Elements of all arrays together; the largest vocabularies hold 262,144 tokens and about half a million merges."""

MAX_STRING = 64 << 20
MAX_KEPT = 64 << 20
"""Bytes of all strings that are kept."""


@dataclass(frozen=True, slots=True)
class LongArray:
    """An array that is too long to keep: what it holds, and how many."""

    type: str
    count: int

    def __str__(self) -> str:
        return f"{self.count} x {self.type}"


class Stream:
    """Reads forward through a file. Every method takes `what` it reads, for the message if that is not there."""

    def __init__(self, descriptor: int, size: int, where: str) -> None:
        self.where = where
        self._descriptor = descriptor
        self._size = size
        self._buffer = b""
        self._start = 0
        self._at = 0
        self._elements = 0
        self._kept = 0

    @property
    def position(self) -> int:
        """Bytes read so far."""
        return self._start + self._at

    def take(self, count: int, what: str) -> bytes:
        """The next `count` bytes. Raises `Incomplete` if the file ends before."""
        if self._at + count > len(self._buffer):
            self._fill(count, what)
        self._at += count
        return self._buffer[self._at - count : self._at]

    def peek(self, count: int, what: str) -> bytes:
        """The next `count` bytes, which are still the next afterwards."""
        found = self.take(count, what)
        self._at -= count
        return found

    def skip(self, count: int, what: str) -> None:
        """Pass over `count` bytes without reading them."""
        position = self.position
        if position + count > self._size:
            self._short(what)
        if self._at + count <= len(self._buffer):
            self._at += count
        else:
            self._buffer, self._start, self._at = b"", position + count, 0

    def u32(self, what: str) -> int:
        return int.from_bytes(self.take(4, what), "little")

    def u64(self, what: str) -> int:
        return int.from_bytes(self.take(8, what), "little")

    def count(self, what: str, limit: int) -> int:
        """A 64-bit count. Raises `BadCheckpoint` above `limit`."""
        value = self.u64(f"the number of {what}")
        if value > limit:
            self._lie(f"claims {value} {what}; {limit} is the most that is read")
        return value

    def text(self, what: str, limit: int = MAX_STRING) -> str:
        """A string: 64-bit length and UTF-8. Raises `BadCheckpoint` if it is longer than `limit` or not UTF-8."""
        raw = self.take(self._length(what, limit), what)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            self._lie(f"{what} is not UTF-8")

    def kept_text(self, what: str) -> str:
        """A string of the metadata. A value that is not UTF-8 is no reason to refuse a model: it is read with replacements."""
        raw = self.take(self._length(what, MAX_STRING), what)
        self._kept += len(raw)
        if self._kept > MAX_KEPT:
            self._lie(f"holds more than {MAX_KEPT} bytes of text in its metadata")
        return raw.decode(errors="replace")

    def scalar(self, kind: int, what: str) -> Any:
        if kind not in SCALARS:
            self._lie(f"{what} has the unknown type {kind}")
        layout = SCALARS[kind][1]
        return struct.unpack(layout, self.take(struct.calcsize(layout), what))[0]

    def array(self, what: str) -> list[Any] | LongArray:
        """An array as a list, or as `LongArray` if it is long. Arrays of arrays are refused, as llama.cpp does."""
        kind = self.u32(f"the type of {what}")
        count = self.u64(f"the length of {what}")
        self._elements += count
        if self._elements > MAX_ELEMENTS:
            self._lie(f"{what} claims {count} elements; {MAX_ELEMENTS} in all is the most that is read")
        if kind == STRING:
            if count <= KEPT_ELEMENTS:
                return [self.kept_text(what) for _ in range(count)]
            self._skip_strings(count, what)
            return LongArray("string", count)
        if kind not in SCALARS:
            self._lie(f"{what} is an array of arrays" if kind == ARRAY else f"{what} has elements of the unknown type {kind}")
        name, layout = SCALARS[kind]
        if count <= KEPT_ELEMENTS:
            return [self.scalar(kind, what) for _ in range(count)]
        self.skip(count * struct.calcsize(layout), what)
        return LongArray(name, count)

    def _skip_strings(self, count: int, what: str) -> None:
        """Pass over strings, which may be hundreds of thousands: those that lie in the buffer by a short loop of its own."""
        size_at = struct.Struct("<Q").unpack_from
        while count:
            buffer, at = self._buffer, self._at
            while count and at + 8 <= len(buffer):
                end = at + 8 + size_at(buffer, at)[0]
                if end > len(buffer):
                    break
                at, count = end, count - 1
            self._at = at
            if count:
                self.skip(self._length(what, MAX_STRING), what)
                count -= 1

    def _length(self, what: str, limit: int) -> int:
        value = self.u64(f"the length of {what}")
        if value > limit:
            self._lie(f"{what} claims {value} bytes; {limit} is the most that is read")
        return value

    def _fill(self, count: int, what: str) -> None:
        position = self.position
        if position + count > self._size:
            self._short(what)
        self._buffer = read_at(self._descriptor, position, max(count, BUFFER))
        self._start, self._at = position, 0
        if len(self._buffer) < count:
            self._short(what)

    def _short(self, what: str) -> NoReturn:
        fix = "wait for the copy to finish, or copy the file again"
        raise Incomplete(f"ends inside its header, in {what} ({self._size} bytes are there)", where=self.where, fix=fix)

    def _lie(self, what: str) -> NoReturn:
        raise BadCheckpoint(what, where=self.where, fix="copy or download the file again")
