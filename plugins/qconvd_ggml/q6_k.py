"""Q6_K: super-blocks of 256 weights, sixteen sub-blocks of 16 with an 8-bit scale each, one 16-bit scale over them.

The algorithm of ggml's quantize_row_q6_K_ref and quantize_row_q6_K_impl (ggml-quants.c):

1. Per sub-block, a scale is searched for levels in -32 … 31 (symmetric.py), where an error counts x squared, or with an
   importance matrix the importance alone.
2. The super-block's scale is (the sub-scale of largest magnitude) / -128, rounded to a half; sub-scales are
   rounded to 8 bits of it.
3. Weights are rounded again with the scales that a reader will see; where such a scale is zero, the level of step 1 stays.

A lane is a sub-block, so a tile holds four super-blocks. A super-block with NaN or infinite weights, or with weights so large
that their cube overflows (beyond about 2e12), gets defined bytes that a reader sees as zeros, infinities or NaN; llama.cpp
rounds NaN by its bit pattern there, so only for the default NaN are the bytes its own.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from qconvd_ggml.k_layout import pack_6
from qconvd_ggml.measure import measure
from qconvd_ggml.symmetric import LEAST, level, search
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
    put16,
    weighted_kernel,
    whole,
)

SUB = 16
"""Weights of a sub-block, and sub-blocks of a super-block."""
SIZE = 210
_search = search(32, SUB)
_level = level(32)
_in_order = in_order(SUB)


@inline
def _scales(scale: Vector, first: Scalar, out: Vector, at: Scalar, d: Vector) -> Scalar:
    """Step 2 for the super-block whose first lane is `first`; fills d with its sub-scales as read. False if all is zero."""
    most = np.float32(0)
    signed = np.float32(0)
    for k in range(SUB):
        s = scale[first + k]
        if abs(s) > most:
            most = abs(s)
            signed = s
    if most < LEAST:
        for k in range(SUB):
            out[at + 192 + k] = np.uint8(0)
            d[first + k] = np.float32(0)
        put16(out, at + 208, np.uint16(0))
        return False
    inverse = np.float32(-128) / signed
    half = f16_bits(np.float32(1) / inverse)
    value = f16_value(half)
    for k in range(SUB):
        q = min(np.int32(127), whole(np.rint(inverse * scale[first + k])))
        out[at + 192 + k] = np.uint8(q)
        d[first + k] = value * np.float32(np.int8(q))
    put16(out, at + 208, half)
    return True


def _super_blocks(weighted: bool) -> Callable[..., None]:
    """The whole kernel, for the entry points below to call."""

    @inline
    def run(
        kind: Scalar, narrow: Vector, wide: Vector, importance: Importance,
        out: Vector, groups: Scalar, sums: Vector,
    ) -> None:  # fmt: skip
        x, y, w = np.empty(SUB * LANES, np.float32), np.empty(SUB * LANES, np.float32), np.empty(SUB * LANES, np.float32)
        q, turned = np.empty(SUB * LANES, np.uint8), np.empty(SUB * LANES, np.uint8)
        magnitude, scale = np.empty(LANES, np.float32), np.empty(LANES, np.float32)
        inverse, d = np.empty(LANES, np.float32), np.empty(LANES, np.float32)
        live = np.empty(LANES, np.float32)
        for first in range(0, groups, LANES):
            load(kind, narrow, wide, first, SUB, y, x)
            if weighted:
                load_importance(importance, first, SUB, y, w)
            else:
                for i in range(SUB * LANES):
                    w[i] = x[i] * x[i]
            _search(x, w, magnitude, scale, inverse)
            tile = out[first // SUB * SIZE : (first + LANES) // SUB * SIZE]
            for block in range(LANES // SUB):
                alive = _scales(scale, block * SUB, tile, block * SIZE, d)
                for lane in range(block * SUB, block * SUB + SUB):
                    # Where the scale is zero the search's level stays; where weights are (nearly) zero, nothing was searched.
                    searched = alive & (magnitude[lane] >= LEAST)
                    live[lane] = np.float32(1) if alive & (searched | (d[lane] != np.float32(0))) else np.float32(0)
            for j in range(SUB):
                for lane in range(LANES):
                    v = x[j * LANES + lane]
                    again = min(max(nearest_int(v / d[lane]), np.int32(-32)), np.int32(31))
                    kept = np.int32(_level(v * inverse[lane]))
                    found = again if d[lane] != np.float32(0) else kept
                    y[j * LANES + lane] = d[lane] * np.float32(found)
                    q[j * LANES + lane] = np.uint8(found + np.int32(32) if live[lane] > np.float32(0) else np.int32(0))
            measure(x, y, sums)
            _in_order(q, turned)
            pack_6(q, tile, SIZE, 0)

    return run


_plain, _weighted = _super_blocks(False), _super_blocks(True)


@kernel
def q6_k(kind: int, narrow: Vector, wide: Vector, out: Vector, groups: int, sums: Vector) -> None:
    """Q6_K: 210 bytes for 256 weights; a group is a sub-block of 16."""
    _plain(kind, narrow, wide, no_importance(wide), out, groups, sums)


@weighted_kernel
def q6_k_weighted(
    kind: int, narrow: Vector, wide: Vector, importance: Importance, out: Vector, groups: int, sums: Vector
) -> None:
    """Q6_K with an importance matrix."""
    _weighted(kind, narrow, wide, importance, out, groups, sums)
