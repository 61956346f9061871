"""The search for a scale of levels around zero: ggml's make_qx_quants (ggml-quants.c).

With x_max the weight of largest magnitude and levels q in -half … half - 1: for each of the nineteen inverse scales
-(half + k/10) / x_max, k = 0, -9 … -1, 1 … 9, round all weights to levels and take the scale that then has the least weighted
error, sum(w x q) / sum(w q q). The inverse scale that explains most wins; on a tie the earlier one. On equal magnitudes
the first weight is x_max.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from qconvd_ggml.tile import LANES, Scalar, Vector, fold, inline, shared

LEAST = np.float32(1e-15)
"""Groups of weights below this count as zero (ggml's GROUP_MAX_EPS)."""


@inline
def largest_step(j: Scalar, lane: Scalar, x: Vector, state: Scalar, fixed: Scalar) -> Scalar:  # noqa: ARG001
    """For a fold: the largest magnitude, and the first weight that has it."""
    magnitude, signed = state
    v = x[j * LANES + lane]
    a = abs(v)
    return (a if a > magnitude else magnitude, v if a > magnitude else signed)


def level(half: int) -> Callable[[Any], Any]:
    """The level nearest to a number, as a float; NaN gives -half."""
    low, high = np.float32(-half), np.float32(half - 1)

    @inline
    def nearest(v: Scalar) -> Scalar:
        q = np.rint(v)
        q = q if q > low else low
        return q if q < high else high

    return nearest


def search(half: int, width: int) -> Callable[..., None]:
    """The search for groups of `width` weights, where an error counts `w`.

    Fills, per lane, the largest magnitude, the best scale and the inverse scale that it was found with. Groups that count
    as zero get a scale of zero.
    """
    nearest = level(half)

    @inline
    def fit_step(j: Scalar, lane: Scalar, x: Vector, state: Scalar, fixed: Scalar) -> Scalar:
        xq, qq = state
        inverse, w = fixed
        v = x[j * LANES + lane]
        weight = w[j * LANES + lane]
        q = nearest(inverse * v)
        return (xq + weight * v * q, qq + weight * q * q)

    largest, fit = fold(largest_step, width), fold(fit_step, width)
    top = np.float32(half)

    @shared
    def run(x: Vector, w: Vector, magnitude: Vector, scale: Vector, inverse: Vector) -> None:
        zero = np.float32(0)
        signed, best = np.empty(LANES, np.float32), np.empty(LANES, np.float32)
        for lane in range(LANES):
            m, v = largest(0, lane, x, (zero, zero), 0)
            i = -top / v
            xq, qq = fit(0, lane, x, (zero, zero), (i, w))
            s = xq / qq if qq != zero else zero
            magnitude[lane] = m
            signed[lane] = v
            inverse[lane] = i
            scale[lane] = s
            best[lane] = s * xq
        for k in range(-9, 10):
            if k == 0:
                continue
            numerator = -(top + np.float32(0.1) * np.float32(k))
            for lane in range(LANES):
                i = numerator / signed[lane]
                xq, qq = fit(0, lane, x, (zero, zero), (i, w))
                better = (qq > zero) & (xq * xq > best[lane] * qq)
                s = xq / qq
                scale[lane] = s if better else scale[lane]
                best[lane] = s * xq if better else best[lane]
                inverse[lane] = i if better else inverse[lane]
        for lane in range(LANES):
            scale[lane] = scale[lane] if magnitude[lane] >= LEAST else zero

    return run
