"""One linear: weights and a Hessian to codes, scales and zero points.

    solve   GPTQ: columns one after the other, each making up for the errors of those before
    nearest round to nearest on the same grid, without a Hessian

Weights are (rows, columns) = (out features, in features). A block of rows is solved at a time, so memory is a few times ROWS
times columns, and within it: blocks of columns get what all columns before them feed back in one matrix product; single columns
only what is left within PANEL of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from qconvd.api import Hessian, QconvdError, UnitReport, as_float32
from qconvd_gptq.factor import Factor, Order, factor
from qconvd_gptq.kernels import ready
from qconvd_gptq.parts import in_parts

Singles: TypeAlias = NDArray[np.float32]
ActOrder: TypeAlias = Literal["none", "static", "desc_act"]
ROWS = 1024
"""Rows that are solved together: wide enough for matrix products, and not the whole matrix."""
BLOCK, PANEL = 128, 32
"""Columns that get the feedback of all before them in one product, and columns that are left to the kernel."""
WIDEST = 16.0
"""No group's range is wider than this many times the largest weight of its row, whatever is fed back to it."""


@dataclass(frozen=True, slots=True)
class Grid:
    """How a linear is to be quantized."""

    bits: int
    group_size: int
    """Columns that share a scale; -1 for all of them. The last group may be shorter."""
    symmetric: bool = True
    lowest_zero: int = 1
    """The least zero point: 1 where the checkpoint stores zero points less one, else 0."""
    norm: float = 0.0
    """Above 0: ranges are shrunk where that lowers the sum of |error| ** norm."""

    def groups(self, columns: int) -> int:
        return 1 if self.group_size < 0 else -(-columns // self.group_size)

    def width(self, columns: int) -> int:
        return columns if self.group_size < 0 else min(self.group_size, columns)


@dataclass(frozen=True, slots=True)
class Weights:
    """A linear as the engine hands it over: (rows, columns) = (out features, in features), BF16 as uint16 bit patterns."""

    array: NDArray[Any]
    dtype: str = "F32"

    def rows(self, first: int, last: int) -> Singles:
        return np.ascontiguousarray(as_float32(self.array[first:last], self.dtype))


@dataclass(frozen=True, slots=True)
class Solved:
    """A linear as codes: W[n, k] is read as (codes[k, n] - zeros[g_idx[k], n]) * scales[g_idx[k], n]."""

    codes: NDArray[np.uint8]
    """(columns, rows)."""
    scales: NDArray[np.float16]
    """(groups, rows)."""
    zeros: NDArray[np.uint8]
    """(groups, rows)."""
    g_idx: NDArray[np.int32]
    """(columns,)."""
    report: UnitReport = field(default_factory=UnitReport)
    output_error: float = 0.0
    """tr((W - Q) H (W - Q)^T) with the damped Hessian; 0 where there is none."""
    damp: float = 0.0

    def dequantized(self) -> NDArray[np.float16]:
        """(rows, columns), as a reader in float16 has it."""
        whole = self.codes.astype(np.float32)
        whole -= self.zeros.astype(np.float32)[self.g_idx]
        whole *= self.scales.astype(np.float32)[self.g_idx]
        return np.ascontiguousarray(whole.T.astype(np.float16))


def nearest(w: Weights, grid: Grid, where: str = "") -> Solved:
    """Round `w` to the nearest point of its group's grid; the same bytes on any machine."""
    order = np.arange(w.array.shape[1])[::-1].copy()
    return _Linear(w, grid, None, order, dynamic=False, where=where).solved()


def solve(
    w: Weights, hessian: Hessian, grid: Grid, *, order: ActOrder = "static", damp: float = 0.01, where: str = ""
) -> Solved:
    """Quantize `w` so that its outputs change least on what `hessian` was gathered from.

    `order`: `none` solves columns as they stand, `desc_act` those with large activations first, and groups are columns that are
    solved one after the other (`g_idx` is shuffled); both find a group's scale when its first column is reached. `static`
    solves as `desc_act` does, with groups of neighbouring columns whose scales are those of the weights as they were. `damp` is
    the share of the mean diagonal that is added to the diagonal; more if the factorisation fails.

    Raises `QconvdError` naming `where` for a Hessian of another size or that is not finite, and where the result is not.
    """
    check_columns(hessian, w.array.shape[1], where)
    dynamic, by = column_order(order, grid)
    made = factor(hessian, by, damp, where)
    return _Linear(w, grid, made, made.columns, dynamic=dynamic, where=where).solved()


def check_columns(hessian: Hessian, columns: int, where: str) -> None:
    """Raise `QconvdError` unless the statistics are of a linear with so many inputs."""
    if hessian.columns != columns:
        raise QconvdError(f"has {columns} columns, its statistics have {hessian.columns}", where=where)


def column_order(order: ActOrder, grid: Grid) -> tuple[bool, Order]:
    """Whether scales are found while columns are solved, and in which order these are."""
    dynamic = order == "none" or (order == "desc_act" and grid.group_size > 0)
    return dynamic, "none" if order == "none" else "activation"


class _Linear:
    """Arrays of one linear while it is solved. Positions count columns as in `Factor`: the one that is solved last is 0."""

    def __init__(
        self, w: Weights, grid: Grid, made: Factor | None, order: NDArray[np.int64], *, dynamic: bool, where: str
    ) -> None:
        self.w, self.grid, self.factor, self.order, self.dynamic, self.where = w, grid, made, order, dynamic, where
        rows, columns = w.array.shape
        self.columns, self.width = columns, grid.width(columns)
        groups = grid.groups(columns)
        solved_at = columns - 1 - np.arange(columns)
        self.group = (solved_at if dynamic else order) // self.width
        """Of each position."""
        self.members = [np.flatnonzero(self.group == g) for g in range(groups)]
        self.codes = np.empty((columns, rows), np.uint8)
        self.scales = np.empty((groups, rows), np.float16)
        self.zeros = np.empty((groups, rows), np.uint8)
        self.output_error = 0.0

    def solved(self) -> Solved:
        report = UnitReport()
        for first in range(0, len(self.w.array), ROWS):
            report += self._rows(first, min(len(self.w.array), first + ROWS))
        g_idx = np.empty(self.columns, np.int32)
        g_idx[self.order] = self.group
        damp = self.factor.damp if self.factor else 0.0
        return Solved(self.codes, self.scales, self.zeros, g_idx, report, self.output_error, damp)

    def _rows(self, first: int, last: int) -> UnitReport:
        """Solve some rows; what becomes of them is written to the arrays of the whole."""
        part = self.w.rows(first, last)
        finite = np.isfinite(part)
        nan = inf = 0
        if not finite.all():
            nan, inf = int(np.isnan(part).sum()), int(np.isinf(part).sum())
            part = np.where(finite, part, np.float32(0))
        # From here on, `w` holds weights, and below what is solved already their errors.
        w = np.empty((self.columns, last - first), np.float32)
        ready("transposed")(part, self.order, w)
        square, largest = _square(w), np.abs(part).max(axis=1, initial=0)
        del part, finite
        self._scale = np.empty((len(self.members), last - first), np.float32)
        self._zero = np.empty_like(self._scale)
        self._limit = largest * np.float32(WIDEST) if self.dynamic else np.full(last - first, np.inf, np.float32)
        if not self.dynamic:
            for g in range(len(self.members)):
                self._find(g, w, self.members[g])
        for a, b in self._blocks():
            self._block(w, a, b, first)
        self.scales[:, first:last] = self._scale
        self.zeros[:, first:last] = self._zero
        error = float(np.abs(w).max(initial=0))
        if not np.isfinite(error):
            raise QconvdError(
                "solving gave weights that are not finite", where=self.where, fix="raise damp_percent, or take `method: rtn`"
            )
        # A scale that float16 cannot hold leaves weights more than a grid's width away.
        beyond = self._scale >= 65504
        overflows = int(
            sum((np.abs(w[m]) > self._scale[g])[:, beyond[g]].sum() for g, m in enumerate(self.members) if beyond[g].any())
        )
        return UnitReport(w.size, _square(w), square, error, overflows, 0, nan, inf)

    def _blocks(self) -> Iterator[tuple[int, int]]:
        """Blocks of positions from the last to the first; where scales are found on the way, none cuts a group."""
        width = max(self.width, BLOCK // self.width * self.width) if self.dynamic else BLOCK
        # Groups count from the column that is solved first: the short one, if any, is at the lowest positions.
        for end in range(self.columns, 0, -width):
            yield max(0, end - width), end

    def _block(self, w: Singles, a: int, b: int, first: int) -> None:
        """Positions a to b - 1: feedback of all columns solved before, then panel by panel."""
        x = w[a:b].copy()
        self._feed(w, x, a, b, b, self.columns)
        end = b
        while end > a:
            start, known = max(a, end - PANEL), b
            if self.dynamic:
                members = self.members[self.group[end - 1]]
                lowest, known = int(members[0]), int(members[-1]) + 1
                start = max(start, lowest)
                if known == end:
                    self._feed(w, x[lowest - a : end - a], lowest, end, end, b)
                    ahead = self._ahead(w[lowest:end], x[lowest - a : end - a], lowest, end)
                    self._find(int(self.group[end - 1]), ahead, np.arange(end - lowest))
            self._feed(w, x[start - a : end - a], start, end, end, known)
            self._panel(w, x[start - a : end - a], start, end, first)
            end = start

    def _feed(self, w: Singles, x: Singles, start: int, end: int, since: int, until: int) -> None:
        """Add to `x`, which is positions start to end - 1, what the errors of positions since to until - 1 give them."""
        if self.factor and since < until:
            ratio, errors = self.factor.ratio[since:until, start:end].T, w[since:until]

            def feed(first: int, last: int) -> None:
                x[:, first:last] += ratio @ errors[:, first:last]

            in_parts(x.shape[1], ratio.size, feed)

    def _ahead(self, w: Singles, x: Singles, lowest: int, end: int) -> Singles:
        """What the columns of a group will be when each is reached, if those before it in the group are not rounded at all.

        `x` has what is fed back from columns before the group, but not what the group's own columns, once they moved away from
        the weights by that, pass on to each other. In the authors' form of the feedback it comes by itself.
        """
        if self.factor is None or end == self.columns:
            return x
        moved: Singles = np.linalg.inv(self.factor.ratio[lowest:end, lowest:end]).T @ (x - w)
        moved += w
        return moved

    def _panel(self, w: Singles, x: Singles, start: int, end: int, first: int) -> None:
        codes = np.empty(x.shape, np.uint8)
        ratio = self.factor.ratio[start:end, start:end] if self.factor else x[:0, :0]
        group = np.ascontiguousarray(self.group[start:end])
        kernel: Any = ready("columns")
        kernel(w[start:end], x, ratio, self._scale, self._zero, group, 1 << self.grid.bits, int(self.factor is not None), codes)
        self.codes[self.order[start:end], first : first + x.shape[1]] = codes
        if self.factor:
            each = np.einsum("kr,kr->k", x, x)
            self.output_error += float(each.astype(np.float64) @ self.factor.pivots[start:end])

    def _find(self, group: int, x: Singles, index: NDArray[np.int64]) -> None:
        """Scales and zero points of a group that is rows `index` of `x`."""
        from qconvd_gptq.kernels import grid as kernels

        grid = kernels.Grid(1 << self.grid.bits, int(self.grid.symmetric), self.grid.lowest_zero)
        out = (self._scale[group], self._zero[group])
        kernel: Any = ready("search" if self.grid.norm else "find")
        norm = (np.float32(self.grid.norm),) if self.grid.norm else ()
        kernel(x, index, grid, *norm, self._limit, *out)


def _square(w: Singles) -> float:
    return float(np.einsum("kr,kr->k", w, w).sum(dtype=np.float64))
