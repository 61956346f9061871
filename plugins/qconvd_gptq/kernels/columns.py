"""Columns in the order in which they are solved: each is rounded, and what it lost is made up for by those after it."""

from __future__ import annotations

from typing import Any, TypeAlias

import numba
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
_codes = types.Array(types.uint8, 2, "C")
TRANSPOSED = types.void(_read, _index, _write)
COLUMNS = types.void(_write, _write, _strided, _read, _read, _index, types.int64, types.int64, _codes)
BLOCK = 32


def _transposed(w: Vector, order: Vector, out: Vector) -> None:
    """`out[i, r] = w[r, order[i]]`."""
    for r0 in range(0, w.shape[0], BLOCK):
        r1 = min(w.shape[0], r0 + BLOCK)
        for i0 in range(0, order.size, BLOCK):
            for i in range(i0, min(order.size, i0 + BLOCK)):
                k = order[i]
                for r in range(r0, r1):
                    out[i, r] = w[r, k]


transposed = CACHE.entry(_transposed, TRANSPOSED)


@numba.njit(error_model="numpy", forceinline=True)
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


def _columns(
    w: Vector, x: Vector, ratio: Vector, scale: Vector, zero: Vector, group: Vector, levels: Scalar, feed: Scalar, codes: Vector
) -> None:
    """Round columns, the last first.

    `w`: (n, rows), the weights; becomes weight less what is read. `x`: (n, rows), the weights with what is fed back from
    columns solved before; becomes x less what is read. `ratio`: (n, n), how much of the error of column i column j < i takes.
    `scale` and `zero`: (groups, rows); `group`: (n,), which of them. `codes`: (n, rows), written. Without `feed`, nothing is
    passed on.
    """
    n, rows = w.shape
    most = np.float32(levels - 1)
    errors, sums = np.zeros((n, LANES), np.float32), np.zeros(LANES, np.float32)
    for at in range(0, rows, LANES):
        lanes = min(LANES, rows - at)
        for i in range(n - 1, -1, -1):
            if feed:
                _fed(errors, ratio, i, sums)
                for r in range(lanes):
                    x[i, at + r] += sums[r]
            g = group[i]
            for r in range(lanes):
                s, z, v = scale[g, at + r], zero[g, at + r], x[i, at + r]
                q = min(max(np.rint(v / s) + z, np.float32(0.0)), most)
                y = (q - z) * s
                codes[i, at + r] = np.uint8(q)
                x[i, at + r] = v - y
                w[i, at + r] = w[i, at + r] - y
            for r in range(lanes):
                errors[i, r] = w[i, at + r]


# Fused multiplications change the last bits of what is fed back, nothing of what is rounded without it.
columns = CACHE.entry(_columns, COLUMNS, fastmath={"contract"})
