"""Which rows and columns of the source a range of an expression's rows needs: index arithmetic, no data.

A region is a block of rows `r0:r1` and columns `c0:c1` of a tensor seen as a matrix (see `expr`). Every expression either
passes a region on (`Cast`), takes rows from somewhere else (`row_pieces`), or takes columns from somewhere else
(`column_pieces`); `engine/evaluate.py` follows the same pieces with data.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import lcm, prod
from typing import NamedTuple

import numpy as np

from qconvd.dtypes import BLOCKS
from qconvd.engine.elements import AnyArray, matrix, numpy_dtype
from qconvd.engine.expr import (
    Affine,
    Cast,
    Concat,
    Constant,
    Dequantize,
    Expr,
    Named,
    Permute,
    Read,
    Repeat,
    Reshape,
    Slice,
    Stack,
    Transpose,
    children,
)
from qconvd.engine.operations import Operation
from qconvd.errors import Unsupported


class Need(NamedTuple):
    """A block of a source tensor."""

    read: Read
    r0: int
    r1: int
    c0: int
    c1: int

    @property
    def nbytes(self) -> int:
        return (self.r1 - self.r0) * (self.c1 - self.c0) * numpy_dtype(self.read.dtype).itemsize


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """Rows (or columns) `start:stop` of `x`, of which `take` go to the places `put`; all of them in order if None."""

    x: Expr
    start: int
    stop: int
    take: AnyArray | None
    put: slice | AnyArray


def needs(expr: Expr, start: int, stop: int, operations: Mapping[str, Operation]) -> list[Need]:
    """The source blocks from which rows `start:stop` can be computed, merged where they touch, in the order of first use."""
    return merged(_needs(expr, start, stop, 0, matrix(expr.dtype, expr.shape)[1], operations))


def merged(blocks: Iterable[Need]) -> list[Need]:
    """The blocks without overlaps of whole rows; ranges of rows that touch become one, so that they are one read."""
    by_tensor: dict[tuple[str, int, int], list[Need]] = {}
    for block in blocks:
        by_tensor.setdefault((block.read.tensor, block.c0, block.c1), []).append(block)
    result: list[Need] = []
    for same in by_tensor.values():
        same.sort(key=lambda n: n.r0)
        first = len(result)
        for block in same:
            if len(result) > first and block.r0 <= result[-1].r1:
                result[-1] = result[-1]._replace(r1=max(result[-1].r1, block.r1))
            else:
                result.append(block)
    return [n for n in result if not any(n is not m and _covers(m, n) for m in result)] if len(by_tensor) > 1 else result


def row_pieces(expr: Expr, start: int, stop: int) -> list[Piece]:
    """Where rows `start:stop` of a Slice, Concat, Stack, Repeat or Permute come from, in rows of its children.

    Only for those that leave columns where they are; `moves_columns` tells.
    """
    if isinstance(expr, Slice):
        inner = prod(expr.x.shape[expr.axis + 1 : -1])
        pattern = [(expr.x, (expr.stop - expr.start) * inner, expr.x.shape[expr.axis] * inner, expr.start * inner)]
        return list(_segments(pattern, start, stop))
    if isinstance(expr, Concat):
        inner = prod(expr.shape[expr.axis + 1 : -1])
        return list(_segments([(x, x.shape[expr.axis] * inner, x.shape[expr.axis] * inner, 0) for x in expr.xs], start, stop))
    if isinstance(expr, Stack):
        rows = prod(expr.xs[0].shape[:-1])
        return list(_segments([(x, rows, rows, 0) for x in expr.xs], start, stop))
    if isinstance(expr, Repeat):
        inner = prod(expr.x.shape[expr.axis + 1 : -1])
        wanted = np.arange(start, stop)
        return list(_gathered(expr.x, wanted // inner // expr.times * inner + wanted % inner))
    if isinstance(expr, Permute):
        return list(_gathered(expr.x, _permuted_rows(expr, start, stop)))
    raise TypeError(f"{type(expr).__name__} does not move rows")


def column_pieces(expr: Expr, start: int, stop: int) -> list[Piece]:
    """Where columns `start:stop` of a Slice, Concat, Stack or Repeat along the last axis come from."""
    if isinstance(expr, Slice):
        return [Piece(expr.x, expr.start + start, expr.start + stop, None, slice(0, stop - start))]
    if isinstance(expr, Concat):
        return list(_segments([(x, x.shape[-1], 0, 0) for x in expr.xs], start, stop))
    if isinstance(expr, Stack):
        return list(_segments([(x, 1, 0, 0) for x in expr.xs], start, stop))
    if isinstance(expr, Repeat):
        source = np.arange(start, stop) // expr.times
        return [Piece(expr.x, int(source[0]), int(source[-1]) + 1, source - source[0], slice(0, stop - start))]
    raise TypeError(f"{type(expr).__name__} does not move columns")


def moves_columns(expr: Slice | Concat | Stack | Repeat) -> bool:
    """Whether the expression works along the last axis, that is inside rows. Packed rows cannot be cut: `Unsupported`."""
    inside = expr.shape[1:] == () if isinstance(expr, Stack) else expr.axis == len(expr.shape) - 1
    if inside and expr.dtype in BLOCKS:
        raise Unsupported(f"rows of {expr.dtype} blocks cannot be cut or joined", fix="dequantize first")
    return inside


def flat_rows(expr: Reshape, start: int, stop: int) -> tuple[int, int]:
    """The rows of a reshaped tensor's source that hold the elements of rows `start:stop`."""
    outer, inner = matrix(expr.dtype, expr.shape)[1], matrix(expr.dtype, expr.x.shape)[1]
    if outer != inner and expr.dtype in BLOCKS:
        raise Unsupported(f"rows of {expr.dtype} blocks cannot be reshaped", fix="dequantize first")
    return start * outer // inner, -(-stop * outer // inner)


def keeps_columns(expr: Reshape) -> bool:
    """Whether rows stay rows: only the axes before the last one change."""
    return expr.shape[-1:] == expr.x.shape[-1:]


def batches(expr: Transpose, start: int, stop: int) -> Iterator[tuple[int, int, int, slice]]:
    """For rows `start:stop` of `(…, b, a)`, per matrix touched: its first source row, its columns, the rows they become."""
    if expr.dtype in BLOCKS:
        raise Unsupported(f"rows of {expr.dtype} blocks cannot be transposed", fix="dequantize first")
    b, a = expr.shape[-2:]
    for batch in range(start // b, -(-stop // b)):
        first, last = max(start, batch * b), min(stop, (batch + 1) * b)
        yield batch * a, first - batch * b, last - batch * b, slice(first - start, last - start)


def without_column_move(expr: Permute) -> Expr:
    """A permutation that moves the last axis, as two that keep it around a transpose."""
    last = len(expr.axes) - 1
    place = expr.axes.index(last)
    rest = tuple(a for a in expr.axes[:-1] if a != last)
    turned = Transpose(Permute(expr.x, (*rest, expr.axes[-1], last)))
    return Permute(turned, (*range(place), last - 1, *range(place, last - 1), last))


def grain(expr: Expr) -> int:
    """Rows in multiples of which chunks of the expression share no source row, as far as that is cheap to know."""
    if isinstance(expr, Permute):
        if expr.axes[-1] != len(expr.axes) - 1:
            return 1
        fixed = next((i for i, a in enumerate(expr.axes) if i != a), len(expr.axes))
        return lcm(prod(expr.shape[fixed:-1]), grain(expr.x))
    if isinstance(expr, Reshape) and not keeps_columns(expr):
        outer, inner = matrix(expr.dtype, expr.shape)[1], matrix(expr.dtype, expr.x.shape)[1]
        return lcm(inner * grain(expr.x), outer) // outer
    if isinstance(expr, Repeat) and not moves_columns(expr):
        return expr.times * prod(expr.x.shape[expr.axis + 1 : -1])
    if isinstance(expr, Dequantize | Named | Transpose):
        return 1
    return lcm(*(grain(x) for x in children(expr)))


def period(expr: Expr) -> int:
    """Rows after which the expression goes on with another source tensor (one expert of a stack); all rows if it does not."""
    if isinstance(expr, Stack) and not moves_columns(expr):
        return prod(expr.xs[0].shape[:-1])
    if isinstance(expr, Concat) and expr.axis == 0 and not moves_columns(expr) and len({x.shape for x in expr.xs}) == 1:
        return prod(expr.xs[0].shape[:-1])
    if isinstance(expr, Affine | Cast) or (isinstance(expr, Reshape) and keeps_columns(expr)):
        return period(expr.x)
    return prod(expr.shape[:-1])


def _needs(expr: Expr, r0: int, r1: int, c0: int, c1: int, operations: Mapping[str, Operation]) -> Iterator[Need]:
    if isinstance(expr, Read):
        yield Need(expr, r0, r1, c0, c1)
    elif isinstance(expr, Affine | Cast):
        yield from _needs(expr.x, r0, r1, c0, c1, operations)
    elif isinstance(expr, Reshape):
        if keeps_columns(expr):
            yield from _needs(expr.x, r0, r1, c0, c1, operations)
        else:
            yield from _needs(expr.x, *flat_rows(expr, r0, r1), 0, matrix(expr.dtype, expr.x.shape)[1], operations)
    elif isinstance(expr, Transpose):
        for row, first, last, _ in batches(expr, r0, r1):
            yield from _needs(expr.x, row + c0, row + c1, first, last, operations)
    elif isinstance(expr, Permute) and expr.axes[-1] != len(expr.axes) - 1:
        yield from _needs(without_column_move(expr), r0, r1, c0, c1, operations)
    elif isinstance(expr, Dequantize | Named):
        for x, rows in zip(expr.xs, operand_rows(expr, r0, r1, operations), strict=True):
            yield from _needs(x, *rows, 0, matrix(x.dtype, x.shape)[1], operations)
    elif isinstance(expr, Permute) or (not isinstance(expr, Constant) and not moves_columns(expr)):
        for piece in row_pieces(expr, r0, r1):
            yield from _needs(piece.x, piece.start, piece.stop, c0, c1, operations)
    elif not isinstance(expr, Constant):
        for piece in column_pieces(expr, c0, c1):
            yield from _needs(piece.x, r0, r1, piece.start, piece.stop, operations)


def operation(expr: Dequantize | Named, operations: Mapping[str, Operation]) -> Operation:
    """Who computes a `Dequantize` or `Named`; raises `Unsupported` if no plugin does."""
    name = expr.scheme if isinstance(expr, Dequantize) else expr.name
    try:
        return operations[name]
    except KeyError:
        fix = "install the plugin that the plan was made with"
        raise Unsupported(f"no plugin provides the operation {name!r}", fix=fix) from None


def operand_rows(
    expr: Dequantize | Named, start: int, stop: int, operations: Mapping[str, Operation]
) -> Sequence[tuple[int, int]]:
    """The rows of each operand that rows `start:stop` need, as the operation says."""
    return operation(expr, operations).rows([x.shape for x in expr.xs], expr.options or {}, start, stop)


def _segments(pattern: Sequence[tuple[Expr, int, int, int]], start: int, stop: int) -> Iterator[Piece]:
    """Pieces of a repeated sequence of runs: (child, run length, child's rows per repetition, child's first row)."""
    length = sum(run for _, run, _, _ in pattern)
    for turn in range(start // length, -(-stop // length)):
        base = turn * length
        for x, run, stride, shift in pattern:
            first, last = max(start, base), min(stop, base + run)
            if first < last:
                source = turn * stride + shift - base
                yield Piece(x, source + first, source + last, None, slice(first - start, last - start))
            base += run


def _permuted_rows(expr: Permute, start: int, stop: int) -> AnyArray:
    lead = expr.x.shape[:-1]
    wanted = np.arange(start, stop)
    if not lead:
        return wanted
    places: list[AnyArray] = [wanted] * len(lead)
    for axis, place in zip(expr.axes[:-1], np.unravel_index(wanted, expr.shape[:-1]), strict=True):
        places[axis] = place
    return np.ravel_multi_index(tuple(places), lead)


def _gathered(x: Expr, source: AnyArray) -> Iterator[Piece]:
    """Rows in any order: one piece if they lie close together, else one for each run of neighbours."""
    low, high = int(source.min()), int(source.max()) + 1
    if high - low <= 2 * len(source):
        yield Piece(x, low, high, source - low, slice(0, len(source)))
        return
    order = np.argsort(source, kind="stable")
    sorted_rows = source[order]
    breaks = np.flatnonzero(np.diff(sorted_rows) > 1) + 1
    for rows, places in zip(np.split(sorted_rows, breaks), np.split(order, breaks), strict=True):
        yield Piece(x, int(rows[0]), int(rows[-1]) + 1, rows - rows[0], places)


def _covers(a: Need, b: Need) -> bool:
    return a.read.tensor == b.read.tensor and a.r0 <= b.r0 and b.r1 <= a.r1 and a.c0 <= b.c0 and b.c1 <= a.c1
