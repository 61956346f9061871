"""What rounding to nearest would have cost, so that a manifest says what calibrating was good for."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qconvd.api import Hessian
from qconvd_gptq.solve import Grid, Solved, Weights, nearest

ROWS = 64
"""Rows that are looked at, spread evenly: little beside solving a wide linear. One with no more is known exactly."""


def nearest_error(w: Weights, solved: Solved, hessian: Hessian, grid: Grid) -> float:
    """`solved.output_error` if the linear had been rounded to nearest on the same grid; 0 where that is not known.

    The solver's own error times how much worse rounding is in some rows: in that, rows differ far less than in their errors.
    """
    rows = np.unique(np.linspace(0, len(w.array) - 1, min(ROWS, len(w.array))).astype(np.int64))
    some = Weights(np.ascontiguousarray(w.array[rows]), w.dtype)
    there = some.rows(0, len(rows))
    there = np.where(np.isfinite(there), there, np.float32(0))
    added = np.float32(solved.damp) * hessian.array.diagonal().mean(dtype=np.float64).astype(np.float32)
    ours = _error(there - _decoded(solved, rows), hessian.array, added)
    rounded = _error(there - _decoded(nearest(some, grid), np.arange(len(rows))), hessian.array, added)
    return solved.output_error * rounded / ours if ours > 0 else 0.0


def _decoded(solved: Solved, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Some rows as a reader has them, in float32."""
    codes, zeros, scales = solved.codes[:, rows], solved.zeros[:, rows], solved.scales[:, rows]
    part = Solved(codes, scales, zeros, solved.g_idx)
    return part.dequantized().astype(np.float32)


def _error(e: NDArray[np.float32], h: NDArray[np.float32], added: np.float32) -> float:
    """tr(E (H + added I) E^T)."""
    return float(np.einsum("rk,rk->", e @ h + added * e, e, dtype=np.float64))
