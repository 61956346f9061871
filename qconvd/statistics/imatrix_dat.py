"""The older importance matrices (`.dat`, `.imatrix`): a count of entries, then name, calls and values of each, little-endian.

At the end may stand how many chunks of text it was made from, and which text. Source: llama.cpp, `common_imatrix_load_legacy`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from qconvd.checkpoints.files import opened, quoted, read_at
from qconvd.errors import BadCheckpoint
from qconvd.statistics.imatrix import AGAIN, Entry

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MAX_ENTRIES = 100_000
MAX_NAME = 1024


class _Place(NamedTuple):
    offset: int
    values: int
    calls: int


class DatImatrix:
    """As llama-imatrix wrote it until July 2025, and still does with `--output-format dat`."""

    def __init__(self, path: Path) -> None:
        self._where = str(path)
        self._places: dict[str, _Place] = {}
        with opened(path) as (descriptor, size):
            at = self._read(descriptor, size)
            self.chunks, self.datasets = _trailer(descriptor, at, size)
        # How many experts the values are of is not said.
        self.entries: Mapping[str, Entry] = {name: Entry(p.values, 1) for name, p in self._places.items()}

    def mean_square(self, descriptor: int, name: str) -> NDArray[np.float32]:
        import numpy as np

        calls, values = self._places[name].calls, self._values(descriptor, name)
        with np.errstate(all="ignore"):
            found = values / np.float32(calls) if calls > 0 else values
        return np.ascontiguousarray(found, np.float32)

    def square_sums(self, descriptor: int, name: str) -> NDArray[np.float32]:
        import numpy as np

        return np.append(self._values(descriptor, name), np.float32(self._places[name].calls)).reshape(1, -1)

    def unused(self, descriptor: int, name: str) -> int:  # noqa: ARG002
        return 0

    def _values(self, descriptor: int, name: str) -> NDArray[np.float32]:
        import numpy as np

        place = self._places[name]
        return np.frombuffer(read_at(descriptor, place.offset, 4 * place.values), "<f4")

    def _read(self, descriptor: int, size: int) -> int:
        count, at = self._int(descriptor, 0, size), 4
        if not 0 < count <= MAX_ENTRIES:
            self._wrong(f"is no importance matrix: it begins with neither GGUF nor a count of entries ({count})")
        for i in range(count):
            length = self._int(descriptor, at, size)
            if not 0 < length <= MAX_NAME:
                self._wrong(f"is no importance matrix: the name of entry {i + 1} claims {length} bytes")
            raw = read_at(descriptor, at + 4, length)
            name = raw.split(b"\0")[0].decode(errors="replace")
            at += 4 + length
            calls, values = self._int(descriptor, at, size), self._int(descriptor, at + 4, size)
            at += 8
            if values < 1:
                self._wrong(f"claims {values} values of {quoted(name)}")
            if at + 4 * values > size:
                self._wrong(f"ends inside the values of {quoted(name)}")
            if name in self._places:
                self._wrong(f"has {quoted(name)} twice")
            self._places[name] = _Place(at, values, calls)
            at += 4 * values
        return at

    def _int(self, descriptor: int, at: int, size: int) -> int:
        if at + 4 > size:
            self._wrong("ends before its entries do")
        return int.from_bytes(read_at(descriptor, at, 4), "little", signed=True)

    def _wrong(self, what: str) -> NoReturn:
        raise BadCheckpoint(what, where=self._where, fix=AGAIN)


def _trailer(descriptor: int, at: int, size: int) -> tuple[int, tuple[str, ...]]:
    """Chunks and data set; files from before 2024 have neither."""
    if at + 4 > size:
        return 0, ()
    chunks = int.from_bytes(read_at(descriptor, at, 4), "little", signed=True)
    length = int.from_bytes(read_at(descriptor, at + 4, 4), "little", signed=True)
    if not 0 < length <= size - at - 8:
        return chunks, ()
    return chunks, (read_at(descriptor, at + 8, min(length, MAX_NAME)).split(b"\0")[0].decode(errors="replace"),)
