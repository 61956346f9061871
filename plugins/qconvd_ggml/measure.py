"""What encoding did to the numbers, summed while the tile is still in the first-level cache."""

from __future__ import annotations

import numpy as np

from qconvd.api import UnitReport
from qconvd_ggml.tile import LANES, Scalar, Vector, fold, inline, pick, shared

SQUARE_ERROR, SQUARE, MAX_SQUARE_ERROR, OVERFLOWS, UNDERFLOWS, NAN, INF, SUMS = range(8)
"""Rows of a kernel's last argument, a float64 array of SUMS * LANES elements: each lane keeps sums of its own."""
STEP = 16
"""Weights per lane that are measured at a time."""
_LEAST, _MOST = np.float32(1e-24), np.float32(1e34)


@inline
def _within(error: Scalar, square: Scalar) -> Scalar:
    return (square > _LEAST) & (square < _MOST) & (error < _MOST)


@inline
def _step(j: Scalar, lane: Scalar, x: Vector, state: Scalar, y: Vector) -> Scalar:
    error, square, most = state
    v = x[j * LANES + lane]
    e = y[j * LANES + lane] - v
    e *= e
    return error + e, square + v * v, e if e > most else most


_sums = fold(_step, STEP)


@shared
def measure(x: Vector, y: Vector, sums: Vector) -> None:
    """Add what became of STEP * LANES weights `x` of a tile: `y` is what a reader will see in their place.

    A lane's sixteen squares are summed in float32, these in float64. Where float32 has not the range (tiny, huge, NaN,
    infinite), and only there, every weight is looked at in float64: `exact`.
    """
    zero = np.float32(0)
    left = 0
    for lane in range(LANES):
        error, square, most = _sums(0, lane, x, (zero, zero, zero), y)
        within = _within(error, square)
        sums[SQUARE_ERROR * LANES + lane] += np.float64(error if within else zero)
        sums[SQUARE * LANES + lane] += np.float64(square if within else zero)
        largest, before = np.float64(most if within else zero), sums[MAX_SQUARE_ERROR * LANES + lane]
        sums[MAX_SQUARE_ERROR * LANES + lane] = pick(largest > before, largest, before)
        left += 0 if within else 1
    if left:
        exact(x, y, sums)


@shared
def exact(x: Vector, y: Vector, sums: Vector) -> None:
    """Add the lanes that `measure` leaves out. What is not finite, before or after, is counted and adds nothing to the sums."""
    zero = np.float32(0)
    for lane in range(LANES):
        error, square, _ = _sums(0, lane, x, (zero, zero, zero), y)
        if _within(error, square):
            continue
        for j in range(STEP):
            v = np.float64(x[j * LANES + lane])
            e = np.float64(y[j * LANES + lane]) - v
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
