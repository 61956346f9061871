"""Expressions evaluated on the CPU: any range of rows, reading no more of the source than that range needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np

from qconvd.engine.elements import AnyArray, cast, matrix, numpy_dtype, to_float32
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
from qconvd.engine.regions import (
    batches,
    column_pieces,
    flat_rows,
    keeps_columns,
    moves_columns,
    operand_rows,
    operation,
    row_pieces,
    without_column_move,
)
from qconvd.errors import QconvdError

TILE = 256
"""Source rows that a transposition copies at a time: their cache lines stay in the first-level cache meanwhile."""


class Blocks(Protocol):
    """Where source bytes come from: a `Source`, or a `Window` of it."""

    def block(self, read: Read, r0: int, r1: int, c0: int, c1: int) -> AnyArray:
        """Rows `r0:r1`, columns `c0:c1` as stored; not to be written to."""
        ...


def rows(expr: Expr, start: int, stop: int, source: Blocks, operations: Mapping[str, Operation]) -> AnyArray:
    """Rows `start:stop` of an expression: a C-contiguous (stop - start, columns) array of its dtype, not to be written to.

    BF16 comes as uint16, 8-bit floats and packed blocks as uint8. Raises `BadCheckpoint` where the source cannot be read and
    `Unsupported` where no plugin knows an operation.
    """
    array = np.ascontiguousarray(_block(expr, start, stop, 0, matrix(expr.dtype, expr.shape)[1], source, operations))
    view = array.view()
    view.flags.writeable = False
    return view


def footprint(expr: Expr, count: int) -> int:
    """The most bytes that evaluating `count` rows holds at a time, beyond the source bytes themselves."""
    if isinstance(expr, Read):
        return 0
    total, columns = matrix(expr.dtype, expr.shape)
    own = count * columns * numpy_dtype(expr.dtype).itemsize
    scale = count / max(1, total)
    inner = [footprint(x, max(1, -(-int(matrix(x.dtype, x.shape)[0] * scale) // 1))) for x in children(expr)]
    if isinstance(expr, Reshape):
        return inner[0] if keeps_columns(expr) else own + inner[0]
    if isinstance(expr, Cast):
        return own + count * columns * 8 + inner[0]
    if isinstance(expr, Dequantize | Named):
        return own + sum(inner)
    return own + max(inner, default=0)


def _block(expr: Expr, r0: int, r1: int, c0: int, c1: int, source: Blocks, operations: Mapping[str, Operation]) -> AnyArray:
    def block(x: Expr, r0: int, r1: int, c0: int, c1: int) -> AnyArray:
        return _block(x, r0, r1, c0, c1, source, operations)

    if isinstance(expr, Read):
        return source.block(expr, r0, r1, c0, c1)
    if isinstance(expr, Constant):
        values = np.frombuffer(expr.payload(), numpy_dtype(expr.dtype))
        return values.reshape(matrix(expr.dtype, expr.shape))[r0:r1, c0:c1]
    if isinstance(expr, Affine):
        values = to_float32(block(expr.x, r0, r1, c0, c1), expr.x.dtype)
        with np.errstate(over="ignore", invalid="ignore"):
            values *= np.float32(expr.scale)
            values += np.float32(expr.offset)
        return values
    if isinstance(expr, Cast):
        return cast(block(expr.x, r0, r1, c0, c1), expr.x.dtype, expr.dtype)
    if isinstance(expr, Reshape):
        if keeps_columns(expr):
            return block(expr.x, r0, r1, c0, c1)
        first, last = flat_rows(expr, r0, r1)
        columns, inner = matrix(expr.dtype, expr.shape)[1], matrix(expr.dtype, expr.x.shape)[1]
        flat = np.ascontiguousarray(block(expr.x, first, last, 0, inner)).reshape(-1)
        start = r0 * columns - first * inner
        return flat[start : start + (r1 - r0) * columns].reshape(r1 - r0, columns)[:, c0:c1]
    if isinstance(expr, Transpose):
        out = _empty(expr, r0, r1, c0, c1)
        for row, left, right, put in batches(expr, r0, r1):
            _transpose(block(expr.x, row + c0, row + c1, left, right), out[put])
        return out
    if isinstance(expr, Permute) and expr.axes[-1] != len(expr.axes) - 1:
        return block(without_column_move(expr), r0, r1, c0, c1)
    if isinstance(expr, Dequantize | Named):
        return _operate(expr, r0, r1, source, operations)[:, c0:c1]
    if isinstance(expr, Slice | Concat | Stack | Repeat) and moves_columns(expr):
        return _columns(expr, r0, r1, c0, c1, source, operations)
    pieces = row_pieces(expr, r0, r1)
    if len(pieces) == 1 and isinstance(pieces[0].put, slice):
        array = block(pieces[0].x, pieces[0].start, pieces[0].stop, c0, c1)
        return array if pieces[0].take is None else array[pieces[0].take]
    out = _empty(expr, r0, r1, c0, c1)
    for piece in pieces:
        array = block(piece.x, piece.start, piece.stop, c0, c1)
        out[piece.put] = array if piece.take is None else array[piece.take]
    return out


def _columns(expr: Expr, r0: int, r1: int, c0: int, c1: int, source: Blocks, operations: Mapping[str, Operation]) -> AnyArray:
    pieces = column_pieces(expr, c0, c1)
    if len(pieces) == 1 and pieces[0].take is None:
        return _block(pieces[0].x, r0, r1, pieces[0].start, pieces[0].stop, source, operations)
    out = _empty(expr, r0, r1, c0, c1)
    for piece in pieces:
        array = _block(piece.x, r0, r1, piece.start, piece.stop, source, operations)
        out[:, piece.put] = array if piece.take is None else array[:, piece.take]
    return out


def _operate(expr: Dequantize | Named, r0: int, r1: int, source: Blocks, operations: Mapping[str, Operation]) -> AnyArray:
    ranges = operand_rows(expr, r0, r1, operations)
    operands = [rows(x, *span, source, operations) for x, span in zip(expr.xs, ranges, strict=True)]
    who = operation(expr, operations)
    result: AnyArray = who.apply(operands, expr.options or {}, r0, r1)
    wanted = (r1 - r0, matrix(expr.dtype, expr.shape)[1])
    if result.shape != wanted or result.dtype != numpy_dtype(expr.dtype):
        raise QconvdError(
            f"the operation {who.name!r} returned {result.dtype} {result.shape} where {expr.dtype} {wanted} was due",
            fix="this is a defect of the plugin that provides it",
        )
    return result


def _transpose(array: AnyArray, out: AnyArray) -> None:
    for first in range(0, array.shape[0], TILE):
        out[:, first : first + TILE] = array[first : first + TILE].T


def _empty(expr: Expr, r0: int, r1: int, c0: int, c1: int) -> AnyArray:
    return np.empty((r1 - r0, c1 - c0), numpy_dtype(expr.dtype))
