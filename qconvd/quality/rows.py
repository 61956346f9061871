"""Rows of an artifact, decoded by its format and held against the model within the format's bound."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from qconvd.dtypes import FLOATS
from qconvd.engine.elements import to_float32
from qconvd.engine.evaluate import rows as evaluate
from qconvd.engine.expr import Expr, rows_columns
from qconvd.engine.operations import Operation
from qconvd.engine.plan import Plan, RowSplit, Unit, Whole
from qconvd.engine.source import Source
from qconvd.engine.statistics import Statistics
from qconvd.errors import BadCheckpoint, QconvdError
from qconvd.formats import Format, HoldsItself, HoldsParts, RowsAlike

PIECES = 5
"""Places of a unit that are sampled: the first rows, the last, and others evenly between."""
PIECE = 1 << 11
"""Weights at each of these places, if the unit may be split so finely: verifying must not cost what encoding does."""
TALL = 16 * PIECE
"""Weights in a unit's least piece from which on fewer places are sampled: one in 16, but first, middle and last in any case."""
AT_ONCE = 1 << 20
"""Weights that are decoded at a time where a unit is compared in full."""
HELD_AT_ONCE = 1 << 16
"""Weights that are compared at a time: what numpy makes on the way stays in the cache."""

CLEARLY = 1 - 2.0**-20
"""A share of the bound that is below 1 whatever float32 rounds."""

AnyArray: TypeAlias = npt.NDArray[Any]
Range: TypeAlias = tuple[int, int]


@dataclass
class Worst:
    """The largest deviation so far."""

    rows: int = 0
    error: float = 0.0
    share: float = 0.0
    tensor: str = ""


class Comparison:
    """An artifact's files and the model, open for reading. Use as a context manager."""

    def __init__(self, folder: Path, plan: Plan, source: Source, fmt: Format, operations: Mapping[str, Operation]) -> None:
        self.worst = Worst()
        self._folder = folder
        self._plan = plan
        self._source = source
        self._statistics = Statistics()
        self._format = fmt
        self._operations = operations
        self._places = {p.tensor: (f.path, p.offset) for f in plan.files for p in f.tensors}
        self._files: dict[str, int] = {}

    def __enter__(self) -> Comparison:
        """Raises `QconvdError` if a file of statistics is not the one that the plan was made with."""
        self._statistics.open(self._plan)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._statistics.close()
        while self._files:
            os.close(self._files.popitem()[1])

    def sample(self, unit: Unit) -> None:
        """Compare a few rows of a unit, always the same ones. Raises `QconvdError` naming file, tensor, row and figures."""
        if self._holds_parts(unit):
            return
        total, columns = unit.shape
        alike = isinstance(self._format, RowsAlike) and self._format.rows_alike and not unit.statistics
        together = alike and all(rows_columns(x.shape)[0] == total for x in unit.inputs)
        some: list[Range] = []
        for rows in sampled(unit):
            if some and not (together and (rows[1] - rows[0] + sum(b - a for a, b in some)) * columns <= HELD_AT_ONCE):
                self._compare(unit, some)
                some = []
            some.append(rows)
        if some:
            self._compare(unit, some)

    def full(self, unit: Unit) -> None:
        """Compare every row of a unit. Raises as `sample` does."""
        total, columns = unit.shape
        step = _multiple(unit) * max(1, AT_ONCE // (_multiple(unit) * max(1, columns)))
        for first in range(0, total, step):
            self._compare(unit, [(first, min(total, first + step))])

    def _compare(self, unit: Unit, places: Sequence[Range]) -> None:
        """One range of rows, or several that the format takes for one."""
        total = unit.shape[0]
        data = [
            b"".join(self._bytes(t.name, t.nbytes * a // total, t.nbytes * b // total) for a, b in places) for t in unit.outputs
        ]
        stored = [self._stored(x, places, total) for x in unit.inputs]
        numbers = np.concatenate([np.arange(a, b) for a, b in places])
        rows = places[0] if len(places) == 1 else (0, len(numbers))
        if self._holds_itself(unit, rows, data, stored):
            self.worst.rows += len(numbers)
            return
        wanted = [to_float32(x, e.dtype) if e.dtype in FLOATS else x for x, e in zip(stored, unit.inputs, strict=True)]
        stats = self._statistics.of(self._plan, unit)
        if not unit.inputs:
            wanted = [stats[r.key] for r in unit.statistics]
        decoded = self._format.decode(unit, rows, data)
        bounds = self._format.bound(unit, rows, wanted, stats)
        for index, (x, y, bound) in enumerate(zip(wanted, decoded, bounds, strict=True)):
            if y is None:
                continue
            step = max(1, HELD_AT_ONCE // max(1, x.shape[1])) if y.shape == x.shape == bound.shape else max(1, len(x))
            for first in range(0, len(x), step):
                some = slice(first, first + step)
                # An input with other rows than the unit's is here as a whole.
                named = numbers[some] if len(x) == len(numbers) else np.arange(len(x))[some]
                self._hold(unit, index, named, x[some], y[some], bound[some])
        self.worst.rows += len(numbers)

    def _holds_parts(self, unit: Unit) -> bool:
        """Whether the format says of a few rows of a unit that is encoded whole that they are within their bounds."""
        if not isinstance(unit.rows, Whole) or not isinstance(self._format, HoldsParts):
            return False
        parts, total = self._format.parts(unit), unit.shape[0]
        if parts is None or PIECES * parts.rows > total:
            return False
        for rows in _places(total // parts.rows, parts.rows, total, PIECES):
            data = [
                self._bytes(t.name, *((0, t.nbytes) if i in parts.whole else (t.nbytes * r // total for r in rows)))
                for i, t in enumerate(unit.outputs)
            ]
            if not self._holds_itself(unit, rows, data, [self._stored(x, [rows], total) for x in unit.inputs]):
                return False
            self.worst.rows += rows[1] - rows[0]
        return True

    def _holds_itself(self, unit: Unit, rows: Range, data: Sequence[bytes], stored: Sequence[AnyArray]) -> bool:
        """Whether the format says of these rows that all is within its bounds. If not, they are looked at here."""
        if not isinstance(self._format, HoldsItself) or unit.statistics:
            return False
        found = self._format.held(unit, rows, data, stored)
        return found is not None and self._is_clear(float(found[0]), float(found[1]), unit.outputs[0].name)

    def _stored(self, expr: Expr, places: Sequence[Range], total: int) -> AnyArray:
        """Rows of an input: those of the unit, or all if it has another number of them."""
        ranges = places if rows_columns(expr.shape)[0] == total else [_all(expr.shape)]
        parts = [evaluate(expr, *rows, self._source, self._operations) for rows in ranges]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _hold(self, unit: Unit, index: int, numbers: AnyArray, x: AnyArray, y: AnyArray, bound: AnyArray) -> None:
        """`numbers` are those of the rows."""
        name = unit.outputs[min(index, len(unit.outputs) - 1)].name
        origin = "the model has" if unit.inputs else "calibration gathered"
        where = f"{self._folder / self._places[name][0]}, tensor {name}"
        if y.shape != x.shape:
            fix = f"this is a defect of the format {self._format.name}"
            what = f"rows {numbers[0]} to {numbers[-1]} decode to {y.shape}, {origin} {x.shape}"
            raise QconvdError(what, where=where, fix=fix)
        if self._clearly_within(x, y, bound, name):
            return
        with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
            error = np.abs(y.astype(np.float64) - x.astype(np.float64))
            # Blocks of a packed type that hold a NaN or an infinity of the model have no bound.
            odd = ~np.isfinite(x).all(axis=1, keepdims=True)
            wrong = ~((error <= bound) | (x == y) | odd)
            if wrong.any():
                row, column = (int(i[0]) for i in np.nonzero(wrong))
                raise QconvdError(
                    f"row {numbers[row]}, column {column} holds {y[row, column]:.9g}, {origin} {x[row, column]:.9g}: "
                    f"{self._format.name} may differ by {bound[row, column]:.3g} there",
                    where=where,
                    fix="convert it again; if it stays, this is a defect of the format, please report it",
                )
            finite = np.where(np.isfinite(error) & ~odd, error, 0)
            shares = np.where(bound > 0, finite / bound, 0)
        self._keep(float(finite.max(initial=0)), float(shares.max(initial=0)), name)

    def _clearly_within(self, x: AnyArray, y: AnyArray, bound: AnyArray, name: str) -> bool:
        """Whether all is finite and so far below its bound that float32 is precise enough to see it: nearly always."""
        if x.dtype != np.float32 or y.dtype != np.float32 or not x.size or x.shape != bound.shape:
            return False
        with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
            error = np.subtract(y, x)
            largest = float(np.abs(error, out=error).max())
            most = float(np.divide(error, bound, out=error).max())
        # A bound of zero gives NaN or infinity; so does whatever is not finite.
        return self._is_clear(largest, most, name)

    def _is_clear(self, error: float, share: float, name: str) -> bool:
        """Whether these figures say that all is within its bounds; then they are kept."""
        clear = error < np.inf and share < CLEARLY
        if clear:
            self._keep(error, share, name)
        return clear

    def _keep(self, error: float, share: float, name: str) -> None:
        self.worst.error = max(self.worst.error, error)
        if share > self.worst.share:
            self.worst.share, self.worst.tensor = share, name

    def _bytes(self, tensor: str, start: int, stop: int) -> bytes:
        path, offset = self._places[tensor]
        if path not in self._files:
            self._files[path] = os.open(self._folder / path, os.O_RDONLY | os.O_CLOEXEC)
        parts = []
        while start < stop:
            part = os.pread(self._files[path], stop - start, offset + start)
            if not part:
                raise BadCheckpoint("ends before the tensor does", where=f"{self._folder / path}, tensor {tensor}")
            parts.append(part)
            start += len(part)
        return b"".join(parts)


def sampled(unit: Unit) -> Iterator[Range]:
    """Ranges of rows that can be decoded by themselves: the first, the last, and others evenly between."""
    (total, columns), step = unit.shape, 1 if isinstance(unit.rows, RowSplit) and unit.rows.single else _multiple(unit)
    step *= max(1, PIECE // max(1, step * columns))
    count = -(-total // step)
    places = PIECES if step * columns < TALL else min(PIECES, max(3, count // 16))
    yield from _places(count, step, total, places)


def _places(count: int, step: int, total: int, places: int) -> Iterator[Range]:
    """Some of `count` pieces of `step` rows: the first, the last, and others evenly between."""
    for piece in sorted({round(i * (count - 1) / (places - 1)) for i in range(places)}) if count else ():
        yield piece * step, min(total, (piece + 1) * step)


def _multiple(unit: Unit) -> int:
    return max(1, unit.shape[0]) if isinstance(unit.rows, Whole) else unit.rows.multiple


def _all(shape: tuple[int, ...]) -> Range:
    return 0, rows_columns(shape)[0]
