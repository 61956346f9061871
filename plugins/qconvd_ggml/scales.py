"""The search for a scale of levels 0 … top: ggml's make_qp_quants (ggml-quants.c).

The K types find the scales of sub-blocks with it, as whole numbers of one scale of the super-block; IQ2_XXS begins with it.

For numbers that are not negative, each with a weight of its own:

1. Of the nine scales max / (top + k/10), k = 0, -4 … -1, 1 … 4, take the one with the least weighted square error; the earlier
   on a tie.
2. Five times over all numbers: take a number out, find the level that the others' best scale (sum(w x q) / sum(w q q)) gives
   it, and keep that if it explains more.

Here a lane is one list of numbers, and `v[k * lanes + lane]` its k-th.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from qconvd_ggml.symmetric import LEAST
from qconvd_ggml.tile import Scalar, Vector, fold, inline, nearest_int, pick, shared


def positive_scales(top: int, count: int, lanes: int) -> Callable[..., None]:
    """run(v, w, q, scale): the levels of `count` numbers in each lane, int32 as a byte holds them, and each lane's scale."""
    most = np.int32(top)

    @inline
    def largest_step(k: Scalar, lane: Scalar, v: Vector, state: Scalar, fixed: Scalar) -> Scalar:  # noqa: ARG001
        x = v[k * lanes + lane]
        return state if state > x else x

    @inline
    def first_error_step(k: Scalar, lane: Scalar, v: Vector, state: Scalar, fixed: Scalar) -> Scalar:
        inverse, scale, w = fixed
        x = v[k * lanes + lane]
        e = x - scale * np.float32(nearest_int(inverse * x) & np.int32(255))
        return state + w[k * lanes + lane] * e * e

    @inline
    def error_step(k: Scalar, lane: Scalar, v: Vector, state: Scalar, fixed: Scalar) -> Scalar:
        inverse, scale, w = fixed
        x = v[k * lanes + lane]
        e = x - scale * np.float32(min(most, nearest_int(inverse * x)))
        return state + w[k * lanes + lane] * e * e

    @inline
    def improve(x: Scalar, weight: Scalar, before: Scalar, xq: Scalar, qq: Scalar) -> Scalar:
        level = np.float32(before)
        others_xq, others_qq = xq - weight * x * level, qq - weight * level * level
        found = min(most, nearest_int(x * others_qq / others_xq))
        level = np.float32(found)
        new_xq, new_qq = others_xq + weight * x * level, others_qq + weight * level * level
        taken = (others_xq > np.float32(0)) & (others_qq > np.float32(0)) & (found != before)
        taken &= new_xq * new_xq * qq > xq * xq * new_qq
        return new_xq if taken else xq, new_qq if taken else qq, found & np.int32(255) if taken else before

    largest, first_error, error = fold(largest_step, count), fold(first_error_step, count), fold(error_step, count)

    @shared
    def run(v: Vector, w: Vector, q: Vector, scale: Vector) -> None:
        zero = np.float32(0)
        limit, kept, best = np.empty(lanes, np.float32), np.empty(lanes, np.float32), np.empty(lanes, np.float32)
        xq, qq = np.empty(lanes, np.float32), np.empty(lanes, np.float32)
        for lane in range(lanes):
            high = largest(0, lane, v, zero, 0)
            inverse = np.float32(top) / high
            limit[lane] = high
            kept[lane] = inverse
            best[lane] = first_error(0, lane, v, zero, (inverse, np.float32(1) / inverse, w))
        for k in range(-4, 5):
            if k == 0:
                continue
            numerator = np.float32(0.1) * np.float32(k) + np.float32(top)
            for lane in range(lanes):
                inverse = numerator / limit[lane]
                e = error(0, lane, v, zero, (inverse, np.float32(1) / inverse, w))
                better = e < best[lane]
                best[lane] = pick(better, e, best[lane])
                kept[lane] = pick(better, inverse, kept[lane])
        # Numbers outside, lanes inside: each number waits for what became of the one before, but not for other lanes.
        for lane in range(lanes):
            xq[lane] = qq[lane] = zero
        for k in range(count):
            numbers, weights, levels = v[k * lanes :][:lanes], w[k * lanes :][:lanes], q[k * lanes :][:lanes]
            for lane in range(lanes):
                x, weight = numbers[lane], weights[lane]
                found = min(most, nearest_int(kept[lane] * x))
                levels[lane] = found & np.int32(255)
                xq[lane] += weight * x * np.float32(found)
                qq[lane] += weight * np.float32(found) * np.float32(found)
        for _ in range(5):
            for k in range(count):
                numbers, weights, levels = v[k * lanes :][:lanes], w[k * lanes :][:lanes], q[k * lanes :][:lanes]
                for lane in range(lanes):
                    a, b, level = improve(numbers[lane], weights[lane], levels[lane], xq[lane], qq[lane])
                    xq[lane] = a
                    qq[lane] = b
                    levels[lane] = level
        for lane in range(lanes):
            scale[lane] = xq[lane] / qq[lane] if (qq[lane] > zero) & (limit[lane] >= LEAST) else zero
        for k in range(count):
            for lane in range(lanes):
                q[k * lanes + lane] = q[k * lanes + lane] if limit[lane] >= LEAST else np.int32(0)

    return run
