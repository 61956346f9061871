"""The journal of one target: which rows are on disk for certain, so that a killed task goes on where it was.

Lines of JSON. The first says what the journal belongs to; each further one records rows whose bytes were synced before the
line was written. A line that was torn by a crash is dropped, and what it spoke of is done again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qconvd.engine.durable import write_whole
from qconvd.engine.plan import UnitReport

JOURNAL = "journal.jsonl"
"""Its name in a target's work folder."""
VERSION = 2


@dataclass(frozen=True, slots=True)
class Record:
    """Rows of a unit that are written: a checksum per output, and what encoding them did."""

    unit: str
    rows: tuple[int, int]
    sums: tuple[int, ...]
    report: UnitReport
    figures: Mapping[str, float] = field(default_factory=dict)
    fallback: str = ""


@dataclass(frozen=True, slots=True)
class Header:
    """What a journal belongs to. It is only of use to a run with the same plan, versions and source."""

    digest: str
    source: Any
    grid: Mapping[str, tuple[int, int]]
    """Per unit: rows per chunk, and rows after which the cutting starts anew."""


class Journal:
    """`journal.jsonl`, open for appending."""

    def __init__(self, descriptor: int, header: Header, records: list[Record]) -> None:
        self.header = header
        self.records = records
        self._descriptor = descriptor

    @classmethod
    def create(cls, path: Path, header: Header) -> Journal:
        """A new journal; it appears under its name with its header in it, or not at all."""
        line = {"journal": VERSION, "digest": header.digest, "source": header.source, "grid": header.grid}
        write_whole(path, (json.dumps(line, separators=(",", ":")) + "\n").encode())
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        return cls(descriptor, header, [])

    @classmethod
    def open(cls, path: Path) -> Journal | None:
        """The journal of an earlier run, without what a crash left torn at its end; None if there is none of use."""
        found = _read(path)
        if found is None:
            return None
        header, records, length = found
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        os.ftruncate(descriptor, length)
        return cls(descriptor, header, records)

    @staticmethod
    def records_in(path: Path) -> list[Record]:
        """What a journal that nobody writes any more records; nothing if it is of no use."""
        found = _read(path)
        return found[1] if found else []

    def append(self, records: Iterable[Record]) -> None:
        """Record rows, on disk when this returns. Their data must have been synced before."""
        lines = ({"u": r.unit, "r": r.rows, "c": r.sums, "e": r.report, **_more(r)} for r in records)
        text = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines)
        rest = memoryview(text.encode())
        while rest:
            rest = rest[os.write(self._descriptor, rest) :]
        os.fsync(self._descriptor)

    def close(self) -> None:
        os.close(self._descriptor)


def _read(path: Path) -> tuple[Header, list[Record], int] | None:
    """A journal's header and records, and the length of what is whole."""
    try:
        lines = _whole_lines(path.read_bytes())
    except FileNotFoundError:
        return None
    length, first = next(lines, (0, {}))
    if first.get("journal") != VERSION:
        return None
    try:
        header = Header(first["digest"], first["source"], {unit: (a, b) for unit, (a, b) in first["grid"].items()})
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
    records = []
    for end, line in lines:
        try:
            records.append(_record(line))
        except (KeyError, TypeError, ValueError):
            break
        length = end
    return header, records, length


def _more(record: Record) -> dict[str, Any]:
    """What few records have."""
    more = {"f": dict(record.figures), "b": record.fallback}
    return {key: value for key, value in more.items() if value}


def _record(line: Mapping[str, Any]) -> Record:
    first, last = line["r"]
    return Record(
        line["u"], (first, last), tuple(line["c"]), UnitReport(*line["e"]), dict(line.get("f", {})), str(line.get("b", ""))
    )


def _whole_lines(data: bytes) -> Iterator[tuple[int, dict[str, Any]]]:
    """(offset after the line, its content) for each line up to the first that is torn or no JSON object."""
    start = 0
    while (end := data.find(b"\n", start)) >= 0:
        try:
            line = json.loads(data[start:end])
        except ValueError:
            return
        if not isinstance(line, dict):
            return
        yield end + 1, line
        start = end + 1
