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

from qconvd_ggml.tile import LANES, Scalar, Vector, fold, inline, levels, nearest_int, pick, shared

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
        inverse, low, w, rounded = fixed
        v = x[j * LANES + lane]
        q = nearest(inverse * (v - low))
        rounded[j * LANES + lane] = q
        wq = w[j * LANES + lane] * q
        return (q_sum + wq, qq_sum + wq * q, xq_sum + wq * v)

    @inline
    def error_step(j: Scalar, lane: Scalar, x: Vector, state: Scalar, fixed: Scalar) -> Scalar:
        w, rounded, (scale, other_scale), (minimum, other_minimum) = fixed
        one, other = j * LANES + lane, j * LANES + lane + LANES // 2
        e = scale * rounded[one] + minimum - x[one]
        f = other_scale * rounded[other] + other_minimum - x[other]
        a, b = state
        return a + w[one] * (abs(e) if magnitudes else e * e), b + w[other] * (abs(f) if magnitudes else f * f)

    start, sums, errors_of = fold(start_step, width), fold(sums_step, width), fold(error_step, width)

    @inline
    def error(x: Vector, w: Vector, rounded: Vector, scale: Vector, minimum: Vector, out: Vector) -> None:
        """The error of each lane: two at a time, as the additions of one wait for each other."""
        half, zero = LANES // 2, np.float32(0)
        for lane in range(half):
            both = (scale[lane], scale[lane + half]), (minimum[lane], minimum[lane + half])
            out[lane], out[lane + half] = errors_of(0, lane, x, (zero, zero), (w, rounded, *both))

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
        return determinant, pick(above, xq / qq, scale), pick(above, np.float32(0), minimum)

    @shared
    def run(x: Vector, w: Vector, total: Vector, scale: Vector, low: Vector, kept: Vector, shift: Vector) -> None:
        zero = np.float32(0)
        high, weighted, best = np.empty(LANES, np.float32), np.empty(LANES, np.float32), np.empty(LANES, np.float32)
        lowest, left = np.empty(LANES, np.float32), np.empty(LANES, np.int32)
        rounded = np.empty(width * LANES, np.float32)
        q_sums, qq_sums, xq_sums = np.empty(LANES, np.float32), np.empty(LANES, np.float32), np.empty(LANES, np.float32)
        inverses, scales, minimums = np.empty(LANES, np.float32), np.empty(LANES, np.float32), np.empty(LANES, np.float32)
        errors = np.empty(LANES, np.float32)
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
            # For the levels alone: the sums are not asked for, and not computed.
            sums(0, lane, x, (zero, zero, zero), (inverse, minimum, w, rounded))
        error(x, w, rounded, scale, low, best)
        for lane in range(LANES):
            if kept[lane] == np.float32(np.inf):
                best[lane] = exact_error(x, lane, kept[lane], shift[lane], w, scale[lane], low[lane])
        for k in range(steps + 1):
            numerator = np.float32(least) + np.float32(step) * np.float32(k) + most
            for lane in range(LANES):
                minimum = low[lane]
                inverse = numerator / (high[lane] - minimum)
                inverses[lane] = inverse
                q_sums[lane], qq_sums[lane], xq_sums[lane] = sums(
                    0, lane, x, (zero, zero, zero), (inverse, minimum, w, rounded)
                )
            some = np.int32(0)
            for lane in range(LANES):
                determinant, d, m = solve(q_sums[lane], qq_sums[lane], xq_sums[lane], total[lane], weighted[lane])
                within = abs(inverses[lane] * (lowest[lane] - low[lane])) < _REACH
                left[lane] = pick(within | (high[lane] == lowest[lane]), np.int32(0), np.int32(1))
                some = np.int32(some | left[lane])
                # A candidate without a solution is worse than any.
                scales[lane] = pick(within & (determinant > zero), d, np.float32(np.nan))
                minimums[lane] = m
            error(x, w, rounded, scales, minimums, errors)
            for lane in range(LANES):
                better = errors[lane] < best[lane]
                best[lane] = pick(better, errors[lane], best[lane])
                scale[lane] = pick(better, scales[lane], scale[lane])
                kept[lane] = pick(better, inverses[lane], kept[lane])
                shift[lane] = pick(better, low[lane], shift[lane])
                low[lane] = pick(better, minimums[lane], low[lane])
            if some == 0:
                continue
            for lane in range(LANES):
                if left[lane] == 0:
                    continue
                minimum = low[lane]
                inverse = numerator / (high[lane] - minimum)
                q, qq, xq = exact_sums(x, lane, inverse, minimum, w)
                determinant, d, m = solve(q, qq, xq, total[lane], weighted[lane])
                e = exact_error(x, lane, inverse, minimum, w, d, m)
                if determinant > zero and e < best[lane]:
                    best[lane], scale[lane], low[lane], kept[lane], shift[lane] = e, d, m, inverse, minimum

    return run
