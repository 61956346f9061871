"""What encoding did to the numbers, summed while the tile is still in the first-level cache."""

from __future__ import annotations

import numpy as np

from qconvd.api import UnitReport
from qconvd_ggml.tile import LANES, Scalar, Vector, fold, inline, shared

SQUARE_ERROR, SQUARE, MAX_SQUARE_ERROR, OVERFLOWS, UNDERFLOWS, NAN, INF, SUMS = range(8)
"""Rows of a kernel's last argument, a float64 array of SUMS * LANES elements: each lane keeps sums of its own."""
STEP = 16
"""Weights per lane that are measured at a time."""
_LEAST, _MOST = np.float32(1e-24), np.float32(1e34)


@inline
def _step(j: Scalar, lane: Scalar, x: Vector, state: Scalar, y: Vector) -> Scalar:
    error, square, most = state
    v = x[j * LANES + lane]
    e = y[j * LANES + lane] - v
    e *= e
    return (error + e, square + v * v, e if e > most else most)


_sums = fold(_step, STEP)


@shared
def measure(x: Vector, y: Vector, sums: Vector) -> None:
    """Add what became of STEP * LANES weights `x` of a tile: `y` is what a reader will see in their place.

    Sixteen squares are summed in float32, these in float64. Where float32 has not the range (tiny, huge, NaN, infinite), and
    only there, every weight is looked at in float64: `exact`.
    """
    zero = np.float32(0)
    errors, squares, most = np.empty(LANES, np.float32), np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    odd = 0
    for lane in range(LANES):
        e, s, m = _sums(0, lane, x, (zero, zero, zero), y)
        errors[lane] = e
        squares[lane] = s
        most[lane] = m
        odd += 0 if (s > _LEAST) & (s < _MOST) & (e < _MOST) else 1
    if odd:
        exact(x, y, sums)
        return
    for lane in range(LANES):
        sums[SQUARE_ERROR * LANES + lane] += np.float64(errors[lane])
        sums[SQUARE * LANES + lane] += np.float64(squares[lane])
        sums[MAX_SQUARE_ERROR * LANES + lane] = max(sums[MAX_SQUARE_ERROR * LANES + lane], np.float64(most[lane]))


@shared
def exact(x: Vector, y: Vector, sums: Vector) -> None:
    """The same for any numbers. What is not finite, before or after, is counted and adds nothing to the sums."""
    for i in range(STEP * LANES):
        lane = i % LANES
        v = np.float64(x[i])
        e = np.float64(y[i]) - v
        if np.isnan(v):
            sums[NAN * LANES + lane] += 1
        elif np.isinf(v):
            sums[INF * LANES + lane] += 1
        elif not np.isfinite(e):
            sums[OVERFLOWS * LANES + lane] += 1
        else:
            sums[SQUARE_ERROR * LANES + lane] += e * e
            sums[SQUARE * LANES + lane] += v * v
            sums[MAX_SQUARE_ERROR * LANES + lane] = max(sums[MAX_SQUARE_ERROR * LANES + lane], e * e)


def report(weights: int, sums: Vector) -> UnitReport:
    """The sums of all lanes as the report that the engine adds up."""
    lanes = sums.reshape(SUMS, LANES)
    total = lanes.sum(axis=1)
    counts = (int(total[row]) for row in (OVERFLOWS, UNDERFLOWS, NAN, INF))
    most = float(np.sqrt(lanes[MAX_SQUARE_ERROR].max()))
    return UnitReport(weights, float(total[SQUARE_ERROR]), float(total[SQUARE]), most, *counts)
