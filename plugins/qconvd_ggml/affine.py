"""The search for a scale and a minimum of levels above it: ggml's make_qkx2_quants and make_qkx3_quants (ggml-quants.c).

With levels q in 0 … top, weights x and what an error counts w:

1. Start with minimum = min(x, 0) and scale = (max - minimum) / top.
2. For each of the inverse scales (least + k * step + top) / (max - minimum), k = 0 … steps: round all weights to levels, and
   solve for the scale and the minimum that have the least weighted square error with these levels; a minimum above zero is
   taken as zero. If the error is less than the best so far, keep them; the inverse scales of later k are then found with the
   new minimum, but the old maximum.

A group whose weights are all equal, or too close for float32 to divide by their range, gets a scale of zero.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from qconvd_ggml.tile import LANES, Scalar, Vector, fold, inline, levels, nearest_int, shared

_REACH = np.float32(4e6)
"""Beyond this, ggml's nearest_int is no rounding any more; such lanes are done one by one."""


def search(top: int, width: int, least: float, step: float, steps: int, magnitudes: bool = False) -> Callable[..., None]:
    """The search for groups of `width` weights: run(x, w, total, scale, low, kept, shift).

    Fills, per lane, the sum of `w`, the scale and the minimum (never above zero); the levels are those of kept * (x - shift).
    With `magnitudes`, errors count by size, not squared.
    """
    nearest = levels(0, top)

    @inline
    def start_step(j: Scalar, lane: Scalar, x: Vector, state: Scalar, w: Vector) -> Scalar:
        low, high, total, weighted = state
        v, weight = x[j * LANES + lane], w[j * LANES + lane]
        return (v if v < low else low, v if v > high else high, total + weight, weighted + weight * v)

    @inline
    def sums_step(j: Scalar, lane: Scalar, x: Vector, state: Scalar, fixed: Scalar) -> Scalar:
        q_sum, qq_sum, xq_sum = state
        inverse, low, w = fixed
        v = x[j * LANES + lane]
        q = nearest(inverse * (v - low))
        wq = w[j * LANES + lane] * q
        return (q_sum + wq, qq_sum + wq * q, xq_sum + wq * v)

    @inline
    def error_step(j: Scalar, lane: Scalar, x: Vector, state: Scalar, fixed: Scalar) -> Scalar:
        inverse, low, w, scale, minimum = fixed
        v = x[j * LANES + lane]
        # The same rounding as in sums_step: the compiler keeps what it found there.
        e = scale * nearest(inverse * (v - low)) + minimum - v
        return state + w[j * LANES + lane] * (abs(e) if magnitudes else e * e)

    start, sums, error = fold(start_step, width), fold(sums_step, width), fold(error_step, width)
    most = np.float32(top)

    @inline
    def exact_level(v: Scalar) -> Scalar:
        return np.float32(min(max(nearest_int(v), np.int32(0)), np.int32(top)))

    @shared
    def exact_sums(x: Vector, lane: Scalar, inverse: Scalar, low: Scalar, w: Vector) -> Scalar:
        q_sum = qq_sum = xq_sum = np.float32(0)
        for j in range(width):
            v = x[j * LANES + lane]
            q = exact_level(inverse * (v - low))
            wq = w[j * LANES + lane] * q
            q_sum += wq
            qq_sum += wq * q
            xq_sum += wq * v
        return q_sum, qq_sum, xq_sum

    @shared
    def exact_error(x: Vector, lane: Scalar, inverse: Scalar, low: Scalar, w: Vector, scale: Scalar, minimum: Scalar) -> Scalar:
        total = np.float32(0)
        for j in range(width):
            v = x[j * LANES + lane]
            e = scale * exact_level(inverse * (v - low)) + minimum - v
            total += w[j * LANES + lane] * (abs(e) if magnitudes else e * e)
        return total

    @inline
    def solve(q: Scalar, qq: Scalar, xq: Scalar, total: Scalar, weighted: Scalar) -> Scalar:
        """The determinant, which must be above zero, and the scale and minimum of least squares."""
        determinant = total * qq - q * q
        scale, minimum = (total * xq - weighted * q) / determinant, (qq * weighted - q * xq) / determinant
        above = minimum > np.float32(0)
        return determinant, xq / qq if above else scale, np.float32(0) if above else minimum

    @shared
    def run(x: Vector, w: Vector, total: Vector, scale: Vector, low: Vector, kept: Vector, shift: Vector) -> None:
        zero = np.float32(0)
        high, weighted, best = np.empty(LANES, np.float32), np.empty(LANES, np.float32), np.empty(LANES, np.float32)
        lowest, left = np.empty(LANES, np.float32), np.empty(LANES, np.float32)
        for lane in range(LANES):
            v = x[lane]
            minimum, maximum, t, s = start(0, lane, x, (v, v, zero, zero), w)
            lowest[lane] = minimum
            minimum = zero if minimum > zero else minimum
            inverse = most / (maximum - minimum)
            d = np.float32(1) / inverse
            high[lane] = maximum
            weighted[lane] = s
            total[lane] = t
            scale[lane] = d
            low[lane] = minimum
            kept[lane] = inverse
            shift[lane] = minimum
            best[lane] = error(0, lane, x, zero, (inverse, minimum, w, d, minimum))
        for lane in range(LANES):
            if kept[lane] == np.float32(np.inf):
                best[lane] = exact_error(x, lane, kept[lane], shift[lane], w, scale[lane], low[lane])
        for k in range(steps + 1):
            numerator = np.float32(least) + np.float32(step) * np.float32(k) + most
            for lane in range(LANES):
                minimum = low[lane]
                inverse = numerator / (high[lane] - minimum)
                q, qq, xq = sums(0, lane, x, (zero, zero, zero), (inverse, minimum, w))
                determinant, d, m = solve(q, qq, xq, total[lane], weighted[lane])
                e = error(0, lane, x, zero, (inverse, minimum, w, d, m))
                within = abs(inverse * (lowest[lane] - minimum)) < _REACH
                better = within & (determinant > zero) & (e < best[lane])
                best[lane] = e if better else best[lane]
                scale[lane] = d if better else scale[lane]
                low[lane] = m if better else minimum
                kept[lane] = inverse if better else kept[lane]
                shift[lane] = minimum if better else shift[lane]
                left[lane] = zero if within | (high[lane] == lowest[lane]) else np.float32(1)
            for lane in range(LANES):
                if left[lane] == zero:
                    continue
                minimum = low[lane]
                inverse = numerator / (high[lane] - minimum)
                q, qq, xq = exact_sums(x, lane, inverse, minimum, w)
                determinant, d, m = solve(q, qq, xq, total[lane], weighted[lane])
                e = exact_error(x, lane, inverse, minimum, w, d, m)
                if determinant > zero and e < best[lane]:
                    best[lane], scale[lane], low[lane], kept[lane], shift[lane] = e, d, m, inverse, minimum

    return run
