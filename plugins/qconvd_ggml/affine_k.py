"""Q2_K, Q4_K and Q5_K: super-blocks of 256 weights, each sub-block with a scale and a minimum of its own.

The algorithms of ggml's quantize_row_q{2,4,5}_K_ref and, with an importance matrix, of its quantize_row_q{2,4,5}_K_impl
(ggml-quants.c):

              sub-blocks   levels   scales and minimums   what an error counts
    Q2_K      16 of 16     0 … 3    4 bits                |x|, and errors by size
    Q4_K       8 of 32     0 … 15   6 bits                root mean square of the sub-block + |x|
    Q5_K       8 of 32     0 … 31   6 bits                the same

1. Per sub-block, a scale and a minimum are searched: affine.py.
2. Scales and minimums each become whole numbers of a 16-bit scale of the super-block: by rounding, or with an
   importance matrix by a search of their own (scales.py), where a sub-block counts the sum of its weights' counts.
3. Weights are rounded again with what a reader will see; where such a scale is zero, the levels of step 1 stay.

With an importance matrix an error counts importance * sqrt(s + x²), s being the mean square of the super-block, for Q4_K and
Q5_K twice that. A lane is a sub-block. What comes of super-blocks with NaN, infinite or huge weights is defined, but not
always what llama.cpp makes of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from qconvd_ggml import affine, k_layout
from qconvd_ggml.k_layout import SUPER
from qconvd_ggml.measure import STEP, measure
from qconvd_ggml.scales import positive_scales
from qconvd_ggml.tile import (
    LANES,
    Importance,
    Scalar,
    Vector,
    f16_bits,
    f16_value,
    fold,
    in_order,
    inline,
    kernel,
    load,
    load_importance,
    nearest_int,
    no_importance,
    put16,
    weighted_kernel,
)
from qconvd_ggml.weighting import super_block_squares, weigh

SUB_2, SUB_45 = 16, 32
"""Weights of a sub-block of Q2_K, and of Q4_K and Q5_K."""
LISTS = 16
"""Lists of scales, then of minimums, in a tile: one for each of eight super-blocks; Q2_K has four, and zeros for the rest."""


@inline
def _square_step(j: Scalar, lane: Scalar, x: Vector, state: Scalar, fixed: Scalar) -> Scalar:  # noqa: ARG001
    v = x[j * LANES + lane]
    return state + v * v


_squares = fold(_square_step, SUB_45)


@inline
def _count_2(x: Vector, w: Vector) -> None:
    for i in range(SUB_2 * LANES):
        w[i] = abs(x[i])


@inline
def _count_45(x: Vector, w: Vector) -> None:
    for lane in range(LANES):
        root = np.sqrt(_squares(0, lane, x, np.float32(0), 0) / np.float32(SUB_45))
        for j in range(SUB_45):
            w[j * LANES + lane] = root + abs(x[j * LANES + lane])


def _rounded_scales(top: int, count: int) -> Callable[..., None]:
    """Step 2 without an importance matrix: fills the levels `q` and the scale of each list, as scales.py does."""
    lanes = LISTS

    @inline
    def run(v: Vector, w: Vector, q: Vector, scale: Vector) -> None:  # noqa: ARG001
        for lane in range(lanes):
            most = np.float32(0)
            for k in range(count):
                most = v[k * lanes + lane] if v[k * lanes + lane] > most else most
            inverse = np.float32(top) / most if most > np.float32(0) else np.float32(0)
            scale[lane] = most / np.float32(top)
            for k in range(count):
                q[k * lanes + lane] = nearest_int(inverse * v[k * lanes + lane]) & np.int32(255)

    return run


class _Type(NamedTuple):
    """What tells the types apart; offsets are bytes of the super-block."""

    width: int
    top: int
    size: int
    d_at: int
    scales_at: int
    levels_at: int
    scale_top: int
    count: Any
    pack_scales: Any
    unpack_scale: Any
    pack: Any


_Q2_K = _Type(SUB_2, 3, 84, 80, 0, 16, 15, _count_2, k_layout.pack_scales_2, k_layout.unpack_scale_2, k_layout.pack_2)
_Q4_K = _Type(SUB_45, 15, 144, 0, 4, 16, 63, _count_45, k_layout.pack_scales_45, k_layout.unpack_scale_45, k_layout.pack_4)
_Q5_K = _Type(SUB_45, 31, 176, 0, 4, 16, 63, _count_45, k_layout.pack_scales_45, k_layout.unpack_scale_45, k_layout.pack_5)


def _super_blocks(kind_of: _Type, search: Any, weighted: bool = False, squares: int = 1, cap: int = 255) -> Callable[..., None]:
    """The whole kernel of one type, for the entry points below to call.

    `squares` is how often the mean square counts. Levels of scales that are no levels, which come of a scale below zero, are
    bytes as in ggml, taken as `cap` if above.
    """
    width, top, size, d_at, scales_at, levels_at, scale_top, count, pack_scales, unpack_scale, pack = kind_of
    groups_each, put_in_order = SUPER // width, in_order(width)
    blocks = LANES // groups_each
    weights = width * LANES
    find_scales = positive_scales(scale_top, groups_each, LISTS) if weighted else _rounded_scales(scale_top, groups_each)

    @inline
    def run(
        kind: Scalar, narrow: Vector, wide: Vector, importance: Importance, out: Vector, groups: Scalar, sums: Vector
    ) -> None:
        x, y, w = np.empty(weights, np.float32), np.empty(weights, np.float32), np.empty(weights, np.float32)
        q, turned = np.empty(weights, np.uint8), np.empty(weights, np.uint8)
        total, scale, low = np.empty(LANES, np.float32), np.empty(LANES, np.float32), np.empty(LANES, np.float32)
        inverse, shift = np.empty(LANES, np.float32), np.empty(LANES, np.float32)
        d, m, mean = np.empty(LANES, np.float32), np.empty(LANES, np.float32), np.empty(LANES, np.float32)
        values, counts = np.zeros(groups_each * LISTS, np.float32), np.zeros(groups_each * LISTS, np.float32)
        chosen, unit = np.empty(groups_each * LISTS, np.int32), np.empty(LISTS, np.float32)
        for start in range(0, groups, LANES):
            load(kind, narrow, wide, start, width, y, x)
            if weighted:
                load_importance(importance, start, width, y, w)
                super_block_squares(x, groups_each, width, mean)
                for lane in range(LANES):
                    mean[lane] = np.float32(squares) * mean[lane] / np.float32(SUPER)
                weigh(x, mean, width, w)
            else:
                count(x, w)
            search(x, w, total, scale, low, inverse, shift)
            for block in range(blocks):
                for k in range(groups_each):
                    lane = block * groups_each + k
                    values[k * LISTS + block] = scale[lane]
                    values[k * LISTS + LISTS // 2 + block] = -low[lane]
                    counts[k * LISTS + block] = total[lane]
                    counts[k * LISTS + LISTS // 2 + block] = total[lane]
            find_scales(values, counts, chosen, unit)
            for i in range(groups_each * LISTS):
                chosen[i] = min(chosen[i], np.int32(cap))
            tile = out[start // groups_each * size : (start + LANES) // groups_each * size]
            for block in range(blocks):
                at = block * size
                d16, m16 = f16_bits(unit[block]), f16_bits(unit[LISTS // 2 + block])
                put16(tile, at + d_at, d16)
                put16(tile, at + d_at + 2, m16)
                pack_scales(chosen, LISTS, block, tile, at + scales_at)
                for k in range(groups_each):
                    a, b = unpack_scale(tile, at + scales_at, k)
                    d[block * groups_each + k] = f16_value(d16) * a
                    m[block * groups_each + k] = f16_value(m16) * b
            for j in range(width):
                for lane in range(LANES):
                    v = x[j * LANES + lane]
                    again = min(max(nearest_int((v + m[lane]) / d[lane]), np.int32(0)), np.int32(top))
                    searched = min(max(nearest_int(inverse[lane] * (v - shift[lane])), np.int32(0)), np.int32(top))
                    level = again if d[lane] != np.float32(0) else searched
                    q[j * LANES + lane] = np.uint8(level)
                    y[j * LANES + lane] = d[lane] * np.float32(level) - m[lane]
            for part in range(0, weights, STEP * LANES):
                measure(x[part : part + STEP * LANES], y[part : part + STEP * LANES], sums)
            put_in_order(q, turned)
            pack(q, tile, size, levels_at)

    return run


_q2_k = _super_blocks(_Q2_K, affine.search(3, SUB_2, -0.5, 0.1, 15, magnitudes=True))
_q4_k = _super_blocks(_Q4_K, affine.search(15, SUB_45, -1.0, 0.1, 20), cap=63)
_q5_k = _super_blocks(_Q5_K, affine.search(31, SUB_45, -0.5, 0.1, 15), cap=63)
_q2_k_weighted = _super_blocks(_Q2_K, affine.search(3, SUB_2, -0.9, 0.05, 36), True)
_q4_k_weighted = _super_blocks(_Q4_K, affine.search(15, SUB_45, -0.9, 0.05, 36), True, 2)
_q5_k_weighted = _super_blocks(_Q5_K, affine.search(31, SUB_45, -0.9, 0.05, 36), True, 2, 63)


@kernel
def q2_k(kind: int, narrow: Vector, wide: Vector, out: Vector, groups: int, sums: Vector) -> None:
    """Q2_K: 84 bytes for 256 weights; a group is a sub-block of 16."""
    _q2_k(kind, narrow, wide, no_importance(wide), out, groups, sums)


@kernel
def q4_k(kind: int, narrow: Vector, wide: Vector, out: Vector, groups: int, sums: Vector) -> None:
    """Q4_K: 144 bytes for 256 weights; a group is a sub-block of 32."""
    _q4_k(kind, narrow, wide, no_importance(wide), out, groups, sums)


@kernel
def q5_k(kind: int, narrow: Vector, wide: Vector, out: Vector, groups: int, sums: Vector) -> None:
    """Q5_K: 176 bytes for 256 weights; a group is a sub-block of 32."""
    _q5_k(kind, narrow, wide, no_importance(wide), out, groups, sums)


@weighted_kernel
def q2_k_weighted(
    kind: int, narrow: Vector, wide: Vector, importance: Importance, out: Vector, groups: int, sums: Vector
) -> None:
    """Q2_K with an importance matrix."""
    _q2_k_weighted(kind, narrow, wide, importance, out, groups, sums)


@weighted_kernel
def q4_k_weighted(
    kind: int, narrow: Vector, wide: Vector, importance: Importance, out: Vector, groups: int, sums: Vector
) -> None:
    """Q4_K with an importance matrix."""
    _q4_k_weighted(kind, narrow, wide, importance, out, groups, sums)


@weighted_kernel
def q5_k_weighted(
    kind: int, narrow: Vector, wide: Vector, importance: Importance, out: Vector, groups: int, sums: Vector
) -> None:
    """Q5_K with an importance matrix."""
    _q5_k_weighted(kind, narrow, wide, importance, out, groups, sums)
