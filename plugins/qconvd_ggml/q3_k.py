"""Q3_K: super-blocks of 256 weights, sixteen sub-blocks of 16 with a 6-bit scale each, one 16-bit scale over them.

The algorithm of ggml's quantize_row_q3_K_ref and make_q3_quants (ggml-quants.c), levels being -4 … 3:

1. Per sub-block, with x_max the weight of largest magnitude: round all weights to levels of x_max / -4. Then, five times over:
   take a weight out, find the level that the others' best scale (sum(x² x q) / sum(x² q q)) gives it, and keep that if it
   explains more.
2. The super-block's scale is (the sub-scale of largest magnitude) / -32, rounded to a half; sub-scales are rounded to 6
   bits of it.
3. Weights are rounded again with the scales that a reader will see; where such a scale is zero, the levels of step 1 stay.

With an importance matrix (quantize_row_q3_K_impl) an error counts importance * sqrt(s + x²), s being twice the mean square of
the super-block; step 1 is the search of symmetric.py, and so is step 2, over the sub-scales, each counting the sum of what
its weights count. A lane is a sub-block.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from qconvd_ggml.k_layout import pack_3, pack_scales_3
from qconvd_ggml.measure import measure
from qconvd_ggml.symmetric import LEAST, largest, level, search
from qconvd_ggml.tile import (
    LANES,
    Importance,
    Scalar,
    Vector,
    f16_bits,
    f16_value,
    in_order,
    inline,
    kernel,
    load,
    load_importance,
    nearest_int,
    no_importance,
    pick,
    put16,
    shared,
    weighted_kernel,
)
from qconvd_ggml.weighting import super_block_squares, weigh

SUB = 16
"""Weights of a sub-block, and sub-blocks of a super-block."""
SIZE = 110
_BLOCKS = LANES // SUB
_level = level(4)
_in_order = in_order(SUB)
_largest = largest(SUB)
_search = search(4, SUB)
_LISTS = 16
"""Lanes of the search over scales: one per super-block, and zeros, so that they fill a register."""
_search_scales = search(32, SUB, _LISTS)
_scale_level = level(32)


@inline
def _improve(v: Scalar, before: Scalar, xq: Scalar, qq: Scalar) -> Scalar:
    weight = v * v
    others_xq, others_qq = xq - weight * v * before, qq - weight * before * before
    found = np.float32(min(max(nearest_int(v * others_qq / others_xq), np.int32(-4)), np.int32(3)))
    new_xq, new_qq = others_xq + weight * v * found, others_qq + weight * found * found
    taken = (others_xq > np.float32(0)) & (found != before) & (new_qq > np.float32(0))
    taken &= new_xq * new_xq * qq > xq * xq * new_qq
    return pick(taken, new_xq, xq), pick(taken, new_qq, qq), pick(taken, found, before)


@shared
def _fit(x: Vector, magnitude: Vector, scale: Vector, q: Vector) -> None:
    """Step 1 without an importance matrix: levels as floats, and scales."""
    zero = np.float32(0)
    xq, qq, inverse = np.zeros(LANES, np.float32), np.zeros(LANES, np.float32), np.empty(LANES, np.float32)
    before, squares = np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    for lane in range(LANES):
        m, v = _largest(x, lane)
        magnitude[lane] = m
        inverse[lane] = np.float32(-4) / v
    # Weights outside, lanes inside: each weight waits for what became of the one before, but not for other lanes.
    for j in range(SUB):
        weights, levels = x[j * LANES : (j + 1) * LANES], q[j * LANES : (j + 1) * LANES]
        for lane in range(LANES):
            v = weights[lane]
            level = _level(inverse[lane] * v)
            levels[lane] = level
            xq[lane] += v * v * v * level
            qq[lane] += v * v * level * level
    for _ in range(5):
        for lane in range(LANES):
            before[lane] = xq[lane]
            squares[lane] = qq[lane]
        for j in range(SUB):
            weights, levels = x[j * LANES : (j + 1) * LANES], q[j * LANES : (j + 1) * LANES]
            for lane in range(LANES):
                a, b, level = _improve(weights[lane], levels[lane], xq[lane], qq[lane])
                xq[lane] = a
                qq[lane] = b
                levels[lane] = level
        changed = False
        for lane in range(LANES):
            changed |= (before[lane] != xq[lane]) | (squares[lane] != qq[lane])
        if not changed:
            break
    for lane in range(LANES):
        scale[lane] = xq[lane] / qq[lane] if (qq[lane] > zero) & (magnitude[lane] >= LEAST) else zero


@shared
def _fit_weighted(x: Vector, w: Vector, magnitude: Vector, scale: Vector, q: Vector, total: Vector) -> None:
    """The same with one; also fills the sums of what weights count."""
    inverse = np.empty(LANES, np.float32)
    _search(x, w, magnitude, scale, inverse)
    for lane in range(LANES):
        total[lane] = np.float32(0)
    for j in range(SUB):
        for lane in range(LANES):
            q[j * LANES + lane] = _level(inverse[lane] * x[j * LANES + lane])
            total[lane] += w[j * LANES + lane]


@inline
def _rounded_scales(scale: Vector, chosen: Vector, unit: Vector) -> None:
    """Step 2 without an importance matrix: levels of the scales, 0 … 63, as chosen[k * super-blocks + super-block]."""
    for block in range(_BLOCKS):
        most, signed = np.float32(0), np.float32(0)
        for k in range(SUB):
            s = scale[block * SUB + k]
            signed = s if abs(s) > most else signed
            most = abs(s) if abs(s) > most else most
        inverse = np.float32(-32) / signed
        unit[block] = np.float32(1) / inverse if most > np.float32(0) else np.float32(0)
        for k in range(SUB):
            q = min(max(nearest_int(inverse * scale[block * SUB + k]), np.int32(-32)), np.int32(31)) + np.int32(32)
            chosen[k * _BLOCKS + block] = q if most > np.float32(0) else np.int32(0)


@inline
def _searched_scales(scale: Vector, total: Vector, chosen: Vector, unit: Vector) -> None:
    """The same with one."""
    values, counts = np.zeros(SUB * _LISTS, np.float32), np.zeros(SUB * _LISTS, np.float32)
    magnitude, inverse = np.empty(_LISTS, np.float32), np.empty(_LISTS, np.float32)
    for block in range(_BLOCKS):
        for k in range(SUB):
            values[k * _LISTS + block] = scale[block * SUB + k]
            counts[k * _LISTS + block] = total[block * SUB + k]
    _search_scales(values, counts, magnitude, unit, inverse)
    for k in range(SUB):
        for block in range(_BLOCKS):
            q = np.int32(_scale_level(inverse[block] * values[k * _LISTS + block])) + np.int32(32)
            chosen[k * _BLOCKS + block] = q if magnitude[block] >= LEAST else np.int32(0)


def _super_blocks(weighted: bool) -> Callable[..., None]:
    """The whole kernel, for the entry points below to call."""

    @inline
    def run(
        kind: Scalar, narrow: Vector, wide: Vector, importance: Importance,
        out: Vector, groups: Scalar, sums: Vector,
    ) -> None:  # fmt: skip
        x, y, w = np.empty(SUB * LANES, np.float32), np.empty(SUB * LANES, np.float32), np.empty(SUB * LANES, np.float32)
        found = np.empty(SUB * LANES, np.float32)
        q, turned = np.empty(SUB * LANES, np.uint8), np.empty(SUB * LANES, np.uint8)
        magnitude, scale, d = np.empty(LANES, np.float32), np.empty(LANES, np.float32), np.empty(LANES, np.float32)
        total, mean = np.empty(LANES, np.float32), np.empty(LANES, np.float32)
        chosen, unit = np.empty(LANES, np.int32), np.empty(_LISTS, np.float32)
        for start in range(0, groups, LANES):
            load(kind, narrow, wide, start, SUB, y, x)
            if weighted:
                load_importance(importance, start, SUB, y, w)
                super_block_squares(x, SUB, SUB, mean)
                for lane in range(LANES):
                    mean[lane] = np.float32(2) * mean[lane] / np.float32(SUB * SUB)
                weigh(x, mean, SUB, w)
                _fit_weighted(x, w, magnitude, scale, found, total)
                _searched_scales(scale, total, chosen, unit)
            else:
                _fit(x, magnitude, scale, found)
                _rounded_scales(scale, chosen, unit)
            tile = out[start // SUB * SIZE : (start + LANES) // SUB * SIZE]
            for block in range(_BLOCKS):
                half = f16_bits(unit[block])
                put16(tile, block * SIZE + 108, half)
                pack_scales_3(chosen, _BLOCKS, block, tile, block * SIZE + 96)
                for k in range(SUB):
                    d[block * SUB + k] = f16_value(half) * np.float32(chosen[k * _BLOCKS + block] - np.int32(32))
            for j in range(SUB):
                for lane in range(LANES):
                    again = min(max(nearest_int(x[j * LANES + lane] / d[lane]), np.int32(-4)), np.int32(3))
                    # Where the scale is zero; nothing was searched where all weights are (nearly) zero.
                    kept = np.int32(found[j * LANES + lane]) if magnitude[lane] >= LEAST else np.int32(-4)
                    final = again if d[lane] != np.float32(0) else kept
                    y[j * LANES + lane] = d[lane] * np.float32(final)
                    q[j * LANES + lane] = np.uint8(final + np.int32(4))
            measure(x, y, sums)
            _in_order(q, turned)
            pack_3(q, tile, SIZE, 0)

    return run


_plain, _weighted = _super_blocks(False), _super_blocks(True)


@kernel
def q3_k(kind: int, narrow: Vector, wide: Vector, out: Vector, groups: int, sums: Vector) -> None:
    """Q3_K: 110 bytes for 256 weights; a group is a sub-block of 16."""
    _plain(kind, narrow, wide, no_importance(wide), out, groups, sums)


@weighted_kernel
def q3_k_weighted(
    kind: int, narrow: Vector, wide: Vector, importance: Importance, out: Vector, groups: int, sums: Vector
) -> None:
    """Q3_K with an importance matrix."""
    _weighted(kind, narrow, wide, importance, out, groups, sums)
