"""Q4_0, Q4_1, Q5_0 and Q5_1 with an importance matrix.

The algorithms of ggml's quantize_row_*_impl (ggml-quants.c): scales are searched for the least error, where an error counts
importance * sqrt(mean square of the row + x²).

    Q4_0, Q5_0   symmetric.py; the levels are those that the best scale was found with
    Q4_1, Q5_1   affine.py; the same, with the minimum
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from qconvd_ggml import affine
from qconvd_ggml.legacy import BLOCK, packing
from qconvd_ggml.measure import STEP, measure
from qconvd_ggml.symmetric import LEAST, level, search
from qconvd_ggml.tile import (
    LANES,
    Importance,
    Scalar,
    Vector,
    f16_bits,
    f16_value,
    inline,
    load,
    load_importance,
    nearest_int,
    weighted_kernel,
)
from qconvd_ggml.weighting import row_mean_squares, weigh


def _around_zero(bits: int) -> Callable[..., None]:
    """The whole kernel of Q4_0 or Q5_0, for the entry points below to call."""
    half = 1 << (bits - 1)
    size, pack = packing(bits, False)
    fit, nearest = search(half, BLOCK), level(half)

    @inline
    def run(
        kind: Scalar, narrow: Vector, wide: Vector, importance: Importance, out: Vector, groups: Scalar, sums: Vector
    ) -> None:
        x, y = np.empty(BLOCK * LANES, np.float32), np.empty(BLOCK * LANES, np.float32)
        w, q = np.empty(BLOCK * LANES, np.float32), np.empty(BLOCK * LANES, np.uint8)
        magnitude, scale = np.empty(LANES, np.float32), np.empty(LANES, np.float32)
        inverse, d, mean = np.empty(LANES, np.float32), np.empty(LANES, np.float32), np.empty(LANES, np.float32)
        d16 = np.empty(LANES, np.uint16)
        for start in range(0, groups, LANES):
            load(kind, narrow, wide, start, BLOCK, y, x)
            load_importance(importance, start, BLOCK, y, w)
            row_mean_squares(importance, start, BLOCK, mean)
            weigh(x, mean, BLOCK, w)
            fit(x, w, magnitude, scale, inverse)
            for lane in range(LANES):
                d16[lane] = f16_bits(scale[lane])
                d[lane] = f16_value(d16[lane])
            for j in range(BLOCK):
                for lane in range(LANES):
                    # Where all weights are (nearly) zero nothing was searched and the levels are 0.
                    searched = nearest(inverse[lane] * x[j * LANES + lane])
                    found = searched if magnitude[lane] >= LEAST else np.float32(-half)
                    y[j * LANES + lane] = d[lane] * found
                    q[j * LANES + lane] = np.uint8(np.int32(found) + np.int32(half))
            for part in range(0, BLOCK * LANES, STEP * LANES):
                measure(x[part : part + STEP * LANES], y[part : part + STEP * LANES], sums)
            pack(q, d16, d16, out[start * size : (start + LANES) * size])

    return run


def _above_minimum(bits: int) -> Callable[..., None]:
    """The whole kernel of Q4_1 or Q5_1."""
    top = (1 << bits) - 1
    size, pack = packing(bits, True)
    fit = affine.search(top, BLOCK, -0.9, 0.05, 36)

    @inline
    def run(
        kind: Scalar, narrow: Vector, wide: Vector, importance: Importance, out: Vector, groups: Scalar, sums: Vector
    ) -> None:
        x, y = np.empty(BLOCK * LANES, np.float32), np.empty(BLOCK * LANES, np.float32)
        w, q = np.empty(BLOCK * LANES, np.float32), np.empty(BLOCK * LANES, np.uint8)
        total, scale, low = np.empty(LANES, np.float32), np.empty(LANES, np.float32), np.empty(LANES, np.float32)
        inverse, shift, mean = np.empty(LANES, np.float32), np.empty(LANES, np.float32), np.empty(LANES, np.float32)
        d16, m16 = np.empty(LANES, np.uint16), np.empty(LANES, np.uint16)
        d, m = np.empty(LANES, np.float32), np.empty(LANES, np.float32)
        for start in range(0, groups, LANES):
            load(kind, narrow, wide, start, BLOCK, y, x)
            load_importance(importance, start, BLOCK, y, w)
            row_mean_squares(importance, start, BLOCK, mean)
            weigh(x, mean, BLOCK, w)
            fit(x, w, total, scale, low, inverse, shift)
            for lane in range(LANES):
                d16[lane] = f16_bits(scale[lane])
                m16[lane] = f16_bits(low[lane])
                d[lane] = f16_value(d16[lane])
                m[lane] = f16_value(m16[lane])
            for j in range(BLOCK):
                for lane in range(LANES):
                    searched = nearest_int(inverse[lane] * (x[j * LANES + lane] - shift[lane]))
                    found = min(max(searched, np.int32(0)), np.int32(top))
                    y[j * LANES + lane] = d[lane] * np.float32(found) + m[lane]
                    q[j * LANES + lane] = np.uint8(found)
            for part in range(0, BLOCK * LANES, STEP * LANES):
                measure(x[part : part + STEP * LANES], y[part : part + STEP * LANES], sums)
            pack(q, d16, m16, out[start * size : (start + LANES) * size])

    return run


_q4_1 = _above_minimum(4)
_q5_1 = _above_minimum(5)
_q4_0 = _around_zero(4)
_q5_0 = _around_zero(5)


@weighted_kernel
def q4_0(kind: int, narrow: Vector, wide: Vector, importance: Importance, out: Vector, groups: int, sums: Vector) -> None:
    """Q4_0 with an importance matrix."""
    _q4_0(kind, narrow, wide, importance, out, groups, sums)


@weighted_kernel
def q5_0(kind: int, narrow: Vector, wide: Vector, importance: Importance, out: Vector, groups: int, sums: Vector) -> None:
    """Q5_0 with an importance matrix."""
    _q5_0(kind, narrow, wide, importance, out, groups, sums)


@weighted_kernel
def q4_1(kind: int, narrow: Vector, wide: Vector, importance: Importance, out: Vector, groups: int, sums: Vector) -> None:
    """Q4_1 with an importance matrix."""
    _q4_1(kind, narrow, wide, importance, out, groups, sums)


@weighted_kernel
def q5_1(kind: int, narrow: Vector, wide: Vector, importance: Importance, out: Vector, groups: int, sums: Vector) -> None:
    """Q5_1 with an importance matrix."""
    _q5_1(kind, narrow, wide, importance, out, groups, sums)
