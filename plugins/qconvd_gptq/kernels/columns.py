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
    for at in range(0, rows, LANES):
        lanes = min(LANES, rows - at)
        for i in range(n - 1, -1, -1):
            g = group[i]
            for r in range(lanes):
                s, z, v = scale[g, at + r], zero[g, at + r], x[i, at + r]
                q = min(max(np.rint(v / s) + z, np.float32(0.0)), most)
                y = (q - z) * s
                codes[i, at + r] = np.uint8(q)
                x[i, at + r] = v - y
                w[i, at + r] = w[i, at + r] - y
            if feed:
                for j in range(i):
                    a = ratio[i, j]
                    for r in range(lanes):
                        x[j, at + r] += w[i, at + r] * a


# Fused multiplications change the last bits of what is fed back, nothing of what is rounded without it.
columns = CACHE.entry(_columns, COLUMNS, fastmath={"contract"})
