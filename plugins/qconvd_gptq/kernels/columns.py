"""Columns in the order in which they are solved: each is rounded, and what it lost is made up for by those after it."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numba import types

from qconvd_gptq.kernels import CACHE
from qconvd_gptq.kernels.grid import LANES

Scalar: TypeAlias = Any
Vector: TypeAlias = Any

_read = types.Array(types.float32, 2, "C", readonly=True)
_write = types.Array(types.float32, 2, "C")
_strided = types.Array(types.float32, 2, "A", readonly=True)
_index = types.Array(types.int64, 1, "C", readonly=True)
_row = types.Array(types.float32, 1, "C", readonly=True)
_rows = types.Array(types.float32, 1, "C")
_codes = types.Array(types.uint8, 2, "C")
_sums = types.Array(types.float64, 1, "C")
TRANSPOSED = types.void(_read, _index, _write, _rows, _sums)
COLUMNS = types.void(
    _write, _read, _strided, _read, _read, _index, types.int64, types.int64, _row, _index, _codes, types.int64, _sums
)
BLOCK, STRIP = 64, 16
"""Rows and columns that are turned at once: a strip is a line of the cache, read once and written once."""
_SCALE, _ZERO, _X, _W, _FED, _CODE, _COUNTED, _SQUARES, _LARGEST, _T = range(10)


@CACHE.block
def _take(source: Vector, out: Vector) -> None:
    for r in range(source.size):
        out[r] = source[r]


def _transposed(w: Vector, order: Vector, out: Vector, largest: Vector, square: Vector) -> None:
    """`out[i, r] = w[r, order[i]]`; `largest[r]` becomes the largest magnitude of a row, `square[0]` the sum of all squares.

    The sum is not finite if a weight is not.
    """
    rows, columns = w.shape
    place = np.empty(columns, np.int64)
    for i in range(columns):
        place[order[i]] = i
    tile, line = np.zeros((BLOCK, STRIP), np.float32), np.zeros((3, BLOCK), np.float32)
    for r0 in range(0, rows, BLOCK):
        lanes = min(BLOCK, rows - r0)
        line[:] = np.float32(0.0)
        tile[:] = np.float32(0.0)
        for k0 in range(0, columns, STRIP):
            count = min(STRIP, columns - k0)
            for r in range(lanes):
                _take(w[r0 + r, k0 : k0 + count], tile[r])
            for k in range(count):
                for r in range(BLOCK):
                    line[0, r] = tile[r, k]
                for r in range(BLOCK):
                    line[1, r] += line[0, r] * line[0, r]
                    line[2, r] = max(line[2, r], abs(line[0, r]))
                _take(line[0, :lanes], out[place[k0 + k], r0 : r0 + lanes])
            # Long sums of squares in float64.
            for r in range(lanes):
                square[0] += np.float64(line[1, r])
            line[1] = np.float32(0.0)
        _take(line[2, :lanes], largest[r0 : r0 + lanes])


transposed = CACHE.entry(_transposed, TRANSPOSED)


@CACHE.block
def _fed(errors: Vector, ratio: Vector, i: Scalar, sums: Vector) -> None:
    """What column `i` takes of the errors of those after it, four at a time: sums stay in registers."""
    n = errors.shape[0]
    for r in range(LANES):
        sums[r] = np.float32(0.0)
    k = i + 1
    while k + 3 < n:
        a, b, c, d = ratio[k, i], ratio[k + 1, i], ratio[k + 2, i], ratio[k + 3, i]
        for r in range(LANES):
            sums[r] += errors[k, r] * a + errors[k + 1, r] * b + errors[k + 2, r] * c + errors[k + 3, r] * d
        k += 4
    while k < n:
        a = ratio[k, i]
        for r in range(LANES):
            sums[r] += errors[k, r] * a
        k += 1


@CACHE.block
def _round(t: Vector, most: Scalar, pivot: Scalar) -> None:
    """LANES weights of a column: what they are rounded to, what that loses, and the sums of it."""
    for r in range(LANES):
        s, z, v = t[_SCALE, r], t[_ZERO, r], t[_X, r] + t[_FED, r]
        q = min(max(np.rint(v / s) + z, np.float32(0.0)), most)
        y = (q - z) * s
        left, error = v - y, t[_W, r] - y
        t[_CODE, r] = q
        t[_W, r] = error
        t[_COUNTED, r] += left * left * pivot
        t[_SQUARES, r] += error * error
        t[_LARGEST, r] = max(t[_LARGEST, r], abs(error))


def _columns(
    w: Vector, x: Vector, ratio: Vector, scale: Vector, zero: Vector, group: Vector, levels: Scalar, feed: Scalar,
    pivots: Vector, order: Vector, codes: Vector, first: Scalar, sums: Vector,
) -> None:  # fmt: skip
    """Round columns, the last first.

    `w`: (n, rows), the weights; becomes weight less what is read. `x`: (n, rows), the weights with what is fed back from
    columns solved before. `ratio`: (n, n), how much of the error of column i column j < i takes.
    `scale` and `zero`: (groups, rows); `group`: (n,), which of them. Without `feed`, nothing is passed on. Codes go to the rows
    `order` of `codes`, from column `first` on.

    Added to `sums`: squares of x less what is read, each times its column's of `pivots`; squares of the weights' errors. Its
    third becomes the largest of these errors, if that is larger. A weight that is no number makes the second no number.
    """
    n, rows = w.shape
    most = np.float32(levels - 1)
    errors = np.zeros((n, LANES), np.float32)
    # One array for all that is computed with: where there are many, LLVM does not prove that none overlaps another.
    t = np.zeros((_T, LANES), np.float32)
    for at in range(0, rows, LANES):
        lanes = min(LANES, rows - at)
        for r in range(LANES):
            t[_COUNTED, r] = np.float32(0.0)
            t[_SQUARES, r] = np.float32(0.0)
            t[_LARGEST, r] = np.float32(0.0)
            t[_SCALE, r] = np.float32(1.0)
        for i in range(n - 1, -1, -1):
            if feed:
                _fed(errors, ratio, i, t[_FED])
            g = group[i]
            _take(scale[g, at : at + lanes], t[_SCALE])
            _take(zero[g, at : at + lanes], t[_ZERO])
            _take(x[i, at : at + lanes], t[_X])
            _take(w[i, at : at + lanes], t[_W])
            _round(t, most, pivots[i])
            _take(t[_W], errors[i])
            _take(t[_W, :lanes], w[i, at : at + lanes])
            code = codes[order[i], first + at : first + at + lanes]
            for r in range(lanes):
                code[r] = np.uint8(t[_CODE, r])
        for r in range(lanes):
            sums[0] += np.float64(t[_COUNTED, r])
            sums[1] += np.float64(t[_SQUARES, r])
            sums[2] = max(sums[2], np.float64(t[_LARGEST, r]))


# Fused multiplications change the last bits of what is fed back, nothing of what is rounded without it.
columns = CACHE.entry(_columns, COLUMNS, fastmath={"contract"})
