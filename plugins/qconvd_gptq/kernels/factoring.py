"""Corners of a factorisation: L D L^T of some columns, in float64 within, and inverses of unit lower triangles."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numba import types

from qconvd_gptq.kernels import CACHE

Scalar: TypeAlias = Any
Vector: TypeAlias = Any

_hessian = types.Array(types.float32, 2, "C", readonly=True)
_order = types.Array(types.int64, 1, "C", readonly=True)
_whole = types.Array(types.float32, 2, "C")
_part = types.Array(types.float32, 2, "A")
_read = types.Array(types.float32, 2, "A", readonly=True)
_row = types.Array(types.float32, 1, "C")


def _ordered(h: Vector, order: Vector, added: Scalar, alone: Scalar, out: Vector) -> None:
    """`out[i, j] = h[order[i], order[j]]` up to the diagonal, and zeros beyond it.

    The diagonal gets `added`; where it is not above zero it becomes `alone`.
    """
    for i in range(order.size):
        row = h[order[i]]
        for j in range(i + 1):
            out[i, j] = row[order[j]]
        for j in range(i + 1, order.size):
            out[i, j] = np.float32(0.0)
        out[i, i] = out[i, i] + added if out[i, i] > np.float32(0.0) else alone


ordered = CACHE.entry(_ordered, types.void(_hessian, _order, types.float32, types.float32, _whole))


def _corner(a: Vector, pivots: Vector, inverse: Vector) -> Scalar:
    """Make `a`, of which the lower triangle counts, the unit lower L of L D L^T; `pivots` becomes D, `inverse` that of L.

    False if there is none: a pivot is not above zero, or no number.
    """
    n = a.shape[0]
    u = np.empty((n, n), np.float64)
    for i in range(n):
        for j in range(i + 1):
            u[j, i] = a[i, j]
    for j in range(n):
        pivot = u[j, j]
        if not (pivot > 0.0 and pivot < np.inf) or np.float32(pivot) == np.float32(0.0):
            return False
        pivots[j] = pivot
        a[j, j] = np.float32(1.0)
        for i in range(j):
            a[i, j] = np.float32(0.0)
        for i in range(j + 1, n):
            ratio = u[j, i] / pivot
            for c in range(i, n):
                u[i, c] -= ratio * u[j, c]
            a[i, j] = ratio
    _invert(a, inverse)
    return True


@CACHE.block
def _invert(a: Vector, inverse: Vector) -> None:
    n = a.shape[0]
    row = np.empty(n, np.float64)
    whole = np.zeros((n, n), np.float64)
    for i in range(n):
        for j in range(i):
            row[j] = 0.0
        for k in range(i):
            ratio = np.float64(a[i, k])
            for j in range(k + 1):
                row[j] -= ratio * whole[k, j]
        for j in range(i):
            whole[i, j] = row[j]
        whole[i, i] = 1.0
    for i in range(n):
        for j in range(n):
            inverse[i, j] = whole[i, j]


corner = CACHE.entry(_corner, types.boolean(_part, _row, _part))


def _inverted(a: Vector, inverse: Vector) -> None:
    """`inverse` of the unit lower triangle `a`."""
    _invert(a, inverse)


inverted = CACHE.entry(_inverted, types.void(_read, _part))
