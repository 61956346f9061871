"""What a finished run wrote, for whoever checks it: headers, and the checksum of every piece as it left the encoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from qconvd.engine.checksum import Checksum, checksum
from qconvd.engine.journal import JOURNAL, Journal
from qconvd.engine.layout import Layout
from qconvd.engine.plan import Plan
from qconvd.errors import BadCheckpoint


@dataclass(frozen=True)
class Written:
    """A data file: its header, and (start, stop, checksum) of what is behind it, in its order. Between them are zeros."""

    header: bytes
    pieces: tuple[tuple[int, int, int], ...]


def written(work: Path, plan: Plan) -> Mapping[str, Written] | None:
    """The data files of a target's work folder by their paths. None if its journal does not tell all of them."""
    records = Journal.records_in(work / JOURNAL)
    layout = Layout(plan)
    found: list[list[tuple[int, int, int]]] = [[] for _ in plan.files]
    for record in {(r.unit, r.rows): r for r in records}.values():
        if record.unit not in layout.units or len(record.sums) != len(layout.units[record.unit].outputs):
            return None
        for (index, offset, nbytes), value in zip(
            layout.pieces(layout.units[record.unit], record.rows), record.sums, strict=True
        ):
            if nbytes:
                found[index].append((offset, offset + nbytes, value))
    for file, pieces in zip(plan.files, found, strict=True):
        pieces.sort()
        overlap = any(a[1] > b[0] for a, b in pairwise(pieces))
        if overlap or sum(stop - start for start, stop, _ in pieces) != sum(p.nbytes for p in file.tensors):
            return None
        pieces += [(place, place + len(data), checksum(data)) for place, data in layout.between(file).items()]
        pieces.sort()
    return {f.path: Written(layout.header(f), tuple(pieces)) for f, pieces in zip(plan.files, found, strict=True)}


class Follow:
    """Takes a file's bytes from front to back, as a hash does, and holds them against what was written."""

    def __init__(self, path: Path, wanted: Written) -> None:
        self._path = path
        self._header = wanted.header
        self._pieces = iter(wanted.pieces)
        self._piece = next(self._pieces, None)
        self._sum = Checksum()
        self._at = 0

    def update(self, data: Any) -> None:
        """The next bytes. Raises `BadCheckpoint` if they are not those that were written."""
        rest = memoryview(data)
        while rest:
            rest = rest[self._take(rest) :]

    def finish(self) -> None:
        """There are no more bytes. Raises `BadCheckpoint` if some are missing."""
        if self._piece is not None or self._at < len(self._header):
            raise self._wrong(self._at, self._at)

    def _take(self, data: memoryview) -> int:
        """Look at the first part of `data`, as far as one piece, the header or a gap goes; returns its length."""
        if self._at < len(self._header):
            count = min(len(data), len(self._header) - self._at)
            if data[:count] != self._header[self._at : self._at + count]:
                raise self._wrong(0, len(self._header))
        elif self._piece is None:
            count = len(data)
        elif self._at < self._piece[0]:
            count = min(len(data), self._piece[0] - self._at)
        else:
            start, stop, value = self._piece
            count = min(len(data), stop - self._at)
            self._sum.update(data[:count])
            if self._at + count == stop:
                if self._sum.value() != value:
                    raise self._wrong(start, stop)
                self._piece, self._sum = next(self._pieces, None), Checksum()
        self._at += count
        return count

    def _wrong(self, start: int, stop: int) -> BadCheckpoint:
        what = f"has other bytes than were written, at {start} to {stop}"
        return BadCheckpoint(what, where=str(self._path), fix="convert it again")
