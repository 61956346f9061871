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

from qconvd_ggml.tile import LANES, Scalar, Vector, fold, inline, levels, pick, shared

LEAST = np.float32(1e-15)
"""Groups of weights below this count as zero (ggml's GROUP_MAX_EPS)."""


def largest(width: int, lanes: int = LANES) -> Callable[..., Any]:
    """Of one lane's `width` weights, the largest magnitude and the first weight that has it: find(x, lane)."""

    @inline
    def step(j: Scalar, lane: Scalar, x: Vector, state: Scalar, fixed: Scalar) -> Scalar:  # noqa: ARG001
        magnitude, signed = state
        v = x[j * lanes + lane]
        a = abs(v)
        return (a if a > magnitude else magnitude, v if a > magnitude else signed)

    steps = fold(step, width)

    @inline
    def find(x: Vector, lane: Scalar) -> Scalar:
        return steps(0, lane, x, (np.float32(0), np.float32(0)), 0)

    return find


def level(half: int) -> Callable[[Any], Any]:
    """The level nearest to a number, as a float."""
    return levels(-half, half - 1)


def search(half: int, width: int, lanes: int = LANES) -> Callable[..., None]:
    """The search for groups of `width` weights, where an error counts `w`.

    Fills, per lane, the largest magnitude, the best scale and the inverse scale that it was found with. Groups that count
    as zero get a scale of zero.
    """
    nearest = level(half)

    @inline
    def fit_step(j: Scalar, lane: Scalar, x: Vector, state: Scalar, fixed: Scalar) -> Scalar:
        xq, qq = state
        inverse, w, wx = fixed
        q = nearest(inverse * x[j * lanes + lane])
        return (xq + wx[j * lanes + lane] * q, qq + w[j * lanes + lane] * q * q)

    @inline
    def three_step(j: Scalar, lane: Scalar, x: Vector, state: Scalar, fixed: Scalar) -> Scalar:
        # Three candidates side by side: their chains of additions wait for themselves only, and the loads are shared.
        (a, b, c), (aa, bb, cc) = state
        (i, k, m), w, wx = fixed
        v, weight, product = x[j * lanes + lane], w[j * lanes + lane], wx[j * lanes + lane]
        p, q, r = nearest(i * v), nearest(k * v), nearest(m * v)
        sums = (a + product * p, b + product * q, c + product * r)
        return sums, (aa + weight * p * p, bb + weight * q * q, cc + weight * r * r)

    find_largest, fit, fit_three = largest(width, lanes), fold(fit_step, width), fold(three_step, width)
    top = np.float32(half)

    @inline
    def better(found: Scalar, xq: Scalar, qq: Scalar, inverse: Scalar) -> Scalar:
        """The (scale, what it explains, inverse scale) to go on with, after one more candidate."""
        scale, best, kept = found
        taken = (qq > np.float32(0)) & (xq * xq > best * qq)
        s = xq / qq
        return pick(taken, s, scale), pick(taken, s * xq, best), pick(taken, inverse, kept)

    @shared
    def run(x: Vector, w: Vector, magnitude: Vector, scale: Vector, inverse: Vector) -> None:
        zero = np.float32(0)
        wx = np.empty(width * lanes, np.float32)
        for i in range(width * lanes):
            wx[i] = w[i] * x[i]
        signed, best = np.empty(lanes, np.float32), np.empty(lanes, np.float32)
        for lane in range(lanes):
            m, v = find_largest(x, lane)
            i = -top / v
            xq, qq = fit(0, lane, x, (zero, zero), (i, w, wx))
            s = xq / qq if qq != zero else zero
            magnitude[lane] = m
            signed[lane] = v
            inverse[lane] = i
            scale[lane] = s
            best[lane] = s * xq
        for first in (-9, -6, -3, 1, 4, 7):
            n0 = -(top + np.float32(0.1) * np.float32(first))
            n1 = -(top + np.float32(0.1) * np.float32(first + 1))
            n2 = -(top + np.float32(0.1) * np.float32(first + 2))
            for lane in range(lanes):
                tries = (n0 / signed[lane], n1 / signed[lane], n2 / signed[lane])
                xq3, qq3 = fit_three(0, lane, x, ((zero, zero, zero), (zero, zero, zero)), (tries, w, wx))
                found = (scale[lane], best[lane], inverse[lane])
                found = better(found, xq3[0], qq3[0], tries[0])
                found = better(found, xq3[1], qq3[1], tries[1])
                found = better(found, xq3[2], qq3[2], tries[2])
                scale[lane], best[lane], inverse[lane] = found
        for lane in range(lanes):
            scale[lane] = pick(magnitude[lane] >= LEAST, scale[lane], zero)

    return run
