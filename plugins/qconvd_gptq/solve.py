"""One linear: weights and a Hessian to codes, scales and zero points.

    solve   GPTQ: columns one after the other, each making up for the errors of those before
    nearest round to nearest on the same grid, without a Hessian

Weights are (rows, columns) = (out features, in features). A block of rows is solved at a time, so memory is a few times ROWS
times columns, and within it: blocks of columns get what all columns before them feed back in one matrix product, halves of
blocks what the other half does, and so on; single columns only what is left within PANEL of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from qconvd.api import Hessian, QconvdError, UnitReport, add_rounded_products, as_float32, bfloat16_pays
from qconvd_gptq.factor import Factor, Order, factor, inverse_of
from qconvd_gptq.kernels import ready
from qconvd_gptq.parts import in_parts

Singles: TypeAlias = NDArray[np.float32]
ActOrder: TypeAlias = Literal["none", "static", "desc_act"]
ROWS = 1024
"""Rows that are solved together: wide enough for matrix products, and not the whole matrix."""
BLOCK, PANEL = 512, 32
"""Columns that get the feedback of all before them in one product, and columns that are left to the kernel."""
ROUNDED = 128 * 128
"""Ratios from which on feedback is multiplied in bfloat16, where that takes less time: fewer take as long in float32."""
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
    w: Weights,
    hessian: Hessian,
    grid: Grid,
    *,
    order: ActOrder = "static",
    damp: float = 0.01,
    rounded: bool = True,
    where: str = "",
) -> Solved:
    """Quantize `w` so that its outputs change least on what `hessian` was gathered from.

    `order`: `none` solves columns as they stand, `desc_act` those with large activations first, and groups are columns that are
    solved one after the other (`g_idx` is shuffled); both find a group's scale when its first column is reached. `static`
    solves as `desc_act` does, with groups of neighbouring columns whose scales are those of the weights as they were. `damp` is
    the share of the mean diagonal that is added to the diagonal; more if the factorisation fails. `rounded`: feedback is
    multiplied in bfloat16 and summed up in float32, on processors that are faster with it; it moves weights by a small part
    of what rounding to the grid does, and the output error by the square of that.

    Raises `QconvdError` naming `where` for a Hessian of another size or that is not finite, and where the result is not.
    """
    check_columns(hessian, w.array.shape[1], where)
    dynamic, by = column_order(order, grid)
    made = factor(hessian, by, damp, where)
    rounded = rounded and bfloat16_pays()
    return _Linear(w, grid, made, made.columns, dynamic=dynamic, rounded=rounded, where=where).solved()


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
        self,
        w: Weights,
        grid: Grid,
        made: Factor | None,
        order: NDArray[np.int64],
        *,
        dynamic: bool,
        rounded: bool = False,
        where: str,
    ) -> None:
        self.w, self.grid, self.factor, self.order, self.dynamic, self.where = w, grid, made, order, dynamic, where
        self.rounded = rounded
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
        self._held: Singles | None = None
        self._no_pivots = np.zeros(columns, np.float32)

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
        # From here on, `w` holds weights, and below what is solved already their errors.
        w, largest, square, nan, inf = self._transposed(first, last)
        self._scale = np.empty((len(self.members), last - first), np.float32)
        self._zero = np.empty_like(self._scale)
        self._limit = largest * np.float32(WIDEST) if self.dynamic else np.full(last - first, np.inf, np.float32)
        self._sums = np.zeros(3)
        if not self.dynamic:
            for g in range(len(self.members)):
                self._find(g, w, self.members[g])
        for a, b in self._blocks():
            x = w[a:b].copy()
            self._feed(w, x, a, b, self.columns)
            if self.dynamic:
                self._within(w, x, a, first, self.width, self._group)
            else:
                self._within(w, x, a, first, PANEL, self._panel)
        self.scales[:, first:last] = self._scale
        self.zeros[:, first:last] = self._zero
        output, squared, error = self._sums
        if np.isnan(squared) or not np.isfinite(error):
            raise QconvdError(
                "solving gave weights that are not finite", where=self.where, fix="raise damp_percent, or take `method: rtn`"
            )
        self.output_error += float(output) if self.factor else 0.0
        # A scale that float16 cannot hold leaves weights more than a grid's width away.
        beyond = self._scale >= 65504
        overflows = int(
            sum((np.abs(w[m]) > self._scale[g])[:, beyond[g]].sum() for g, m in enumerate(self.members) if beyond[g].any())
        )
        return UnitReport(w.size, float(squared), square, float(error), overflows, 0, nan, inf)

    def _transposed(self, first: int, last: int) -> tuple[Singles, Singles, float, int, int]:
        """Some rows as (columns in their order, rows), without NaN and infinite weights.

        And the largest magnitude of each row, the sum of squares, and how many were NaN and infinite.
        """
        part = self.w.rows(first, last)
        w, largest = self._memory(last - first), np.empty(last - first, np.float32)
        square, nan, inf = np.zeros(1), 0, 0
        kernel: Any = ready("transposed")
        kernel(part, self.order, w, largest, square)
        if not np.isfinite(square[0]) and not np.isfinite(part).all():
            nan, inf = int(np.isnan(part).sum()), int(np.isinf(part).sum())
            square[0] = 0
            kernel(np.where(np.isfinite(part), part, np.float32(0)), self.order, w, largest, square)
        return w, largest, float(square[0]), nan, inf

    def _memory(self, rows: int) -> Singles:
        """For the weights of some rows; the same again for the next."""
        if self._held is None:
            self._held = np.empty(self.columns * rows, np.float32)
        part: Singles = self._held[: self.columns * rows].reshape(self.columns, rows)
        return part

    def _blocks(self) -> Iterator[tuple[int, int]]:
        """Blocks of positions from the last to the first; where scales are found on the way, none cuts a group."""
        width = max(self.width, BLOCK // self.width * self.width) if self.dynamic else BLOCK
        # Groups count from the column that is solved first: the short one, if any, is at the lowest positions.
        for end in range(self.columns, 0, -width):
            yield max(0, end - width), end

    def _within(
        self, w: Singles, x: Singles, a: int, first: int, unit: int, solve: Callable[[Singles, Singles, int, int], None]
    ) -> None:
        """`solve` units of positions, the last first.

        They are as many from `a` on as `x` has, which has what all after these feed back.
        """
        if len(x) <= unit:
            solve(w, x, a, first)
            return
        # By halves, so that products are as large as can be; units count from the end.
        later = -(-len(x) // unit) // 2 * unit
        middle = a + len(x) - later
        self._within(w, x[-later:], middle, first, unit, solve)
        self._feed(w, x[:-later], a, middle, middle + later)
        self._within(w, x[:-later], a, first, unit, solve)

    def _group(self, w: Singles, x: Singles, a: int, first: int) -> None:
        """A group whose scale is found now that it is reached."""
        b = a + len(x)
        self._find(int(self.group[a]), self._ahead(w[a:b], x, a, b), np.arange(len(x)))
        self._within(w, x, a, first, PANEL, self._panel)

    def _feed(self, w: Singles, x: Singles, start: int, since: int, until: int) -> None:
        """Add to `x`, which is positions from `start` on, what the errors of positions since to until - 1 give them."""
        if self.factor and since < until:
            ratio, errors = self.factor.ratio[since:until, start : start + len(x)], w[since:until]

            def feed(first: int, last: int) -> None:
                if self.rounded and ratio.size >= ROUNDED:
                    add_rounded_products(ratio, errors[:, first:last], x[:, first:last])
                else:
                    x[:, first:last] += ratio.T @ errors[:, first:last]

            in_parts(x.shape[1], ratio.size, feed)

    def _ahead(self, w: Singles, x: Singles, lowest: int, end: int) -> Singles:
        """What the columns of a group will be when each is reached, if those before it in the group are not rounded at all.

        `x` has what is fed back from columns before the group, but not what the group's own columns, once they moved away from
        the weights by that, pass on to each other. In the authors' form of the feedback it comes by itself.
        """
        if self.factor is None or end == self.columns:
            return x
        moved: Singles = inverse_of(self.factor.ratio[lowest:end, lowest:end]).T @ (x - w)
        moved += w
        return moved

    def _panel(self, w: Singles, x: Singles, a: int, first: int) -> None:
        """A few positions, one after the other."""
        these = slice(a, a + len(x))
        ratio, pivots = (self.factor.ratio[these, these], self.factor.pivots) if self.factor else (x[:0, :0], self._no_pivots)
        kernel: Any = ready("columns")
        kernel(
            w[these], x, ratio, self._scale, self._zero, self.group[these], 1 << self.grid.bits, int(self.factor is not None),
            pivots[these], self.order[these], self.codes, first, self._sums,
        )  # fmt: skip

    def _find(self, group: int, x: Singles, index: NDArray[np.int64]) -> None:
        """Scales and zero points of a group that is rows `index` of `x`."""
        from qconvd_gptq.kernels import grid as kernels

        grid = kernels.Grid(1 << self.grid.bits, int(self.grid.symmetric), self.grid.lowest_zero)
        out = (self._scale[group], self._zero[group])
        kernel: Any = ready("search" if self.grid.norm else "find")
        norm = (np.float32(self.grid.norm),) if self.grid.norm else ()
        kernel(x, index, grid, *norm, self._limit, *out)
