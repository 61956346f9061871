"""Q6_K: super-blocks of 256 weights, sixteen sub-blocks of 16 with an 8-bit scale each, one 16-bit scale over them.

The algorithm of ggml's quantize_row_q6_K_ref and make_qx_quants (ggml-quants.c), without an importance matrix:

1. Per sub-block, with x_max the weight of largest magnitude: for each of the nineteen inverse scales -(32 + k/10) / x_max,
   k = 0, -9 … -1, 1 … 9, round all weights to q in -32 … 31, and take the scale that then has the least error weighted
   by x squared, sum(x² x q) / sum(x² q q). The inverse scale that explains most wins; on a tie the earlier one.
2. The super-block's scale is (the sub-scale of largest magnitude) / -128, rounded to a half; sub-scales are
   rounded to 8 bits of it.
3. Weights are rounded again with the scales that a reader will see; where such a scale is zero, the q of step 1 stays.

A lane is a sub-block, so a tile holds four super-blocks. A super-block with NaN or infinite weights, or with weights so large
that their cube overflows (beyond about 2e12), gets defined bytes that a reader sees as zeros, infinities or NaN; llama.cpp
rounds NaN by its bit pattern there, so only for the default NaN are the bytes its own.
"""

from __future__ import annotations

import numpy as np

from qconvd_ggml.measure import measure
from qconvd_ggml.tile import LANES, Scalar, Vector, f16_bits, f16_value, fold, inline, kernel, load, put16, shared, whole

SUB = 16
"""Weights of a sub-block, and sub-blocks of a super-block."""
SIZE = 210
_LEAST = np.float32(1e-15)
"""Sub-blocks and scales below this count as zero (ggml's GROUP_MAX_EPS)."""
_LOW, _HIGH = np.float32(-32), np.float32(31)


@inline
def _largest_step(j: Scalar, lane: Scalar, x: Vector, state: Scalar, fixed: Scalar) -> Scalar:  # noqa: ARG001
    magnitude, signed = state
    v = x[j * LANES + lane]
    a = abs(v)
    return (a if a > magnitude else magnitude, v if a > magnitude else signed)


@inline
def _level(v: Scalar) -> Scalar:
    """The q nearest to v, as a float; NaN gives -32."""
    q = np.rint(v)
    q = q if q > _LOW else _LOW
    return q if q < _HIGH else _HIGH


@inline
def _fit_step(j: Scalar, lane: Scalar, x: Vector, state: Scalar, inverse: Scalar) -> Scalar:
    xq, qq = state
    v = x[j * LANES + lane]
    q = _level(inverse * v)
    weight = v * v
    return (xq + weight * v * q, qq + weight * q * q)


_largest = fold(_largest_step, SUB)
_fit = fold(_fit_step, SUB)


@shared
def _search(x: Vector, magnitude: Vector, scale: Vector, inverse: Vector) -> None:
    """Step 1 for a tile: fills the largest magnitude, the best scale and the inverse scale it was found with, per lane."""
    zero = np.float32(0)
    signed, best = np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    for lane in range(LANES):
        m, v = _largest(0, lane, x, (zero, zero), 0)
        i = np.float32(-32) / v
        xq, qq = _fit(0, lane, x, (zero, zero), i)
        s = xq / qq if qq != zero else zero
        magnitude[lane] = m
        signed[lane] = v
        inverse[lane] = i
        scale[lane] = s
        best[lane] = s * xq
    for k in range(-9, 10):
        if k == 0:
            continue
        top = -(np.float32(32) + np.float32(0.1) * np.float32(k))
        for lane in range(LANES):
            i = top / signed[lane]
            xq, qq = _fit(0, lane, x, (zero, zero), i)
            better = (qq > zero) & (xq * xq > best[lane] * qq)
            s = xq / qq
            scale[lane] = s if better else scale[lane]
            best[lane] = s * xq if better else best[lane]
            inverse[lane] = i if better else inverse[lane]
    for lane in range(LANES):
        scale[lane] = scale[lane] if magnitude[lane] >= _LEAST else zero


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
    if most < _LEAST:
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


@inline
def _pack(q: Vector, first: Scalar, out: Vector, at: Scalar) -> None:
    """The q of a super-block: 128 bytes of low nibbles, 64 bytes of high bit pairs."""
    for half in range(2):
        for pair in range(2):
            for j in range(SUB):
                lane = j * LANES + first + 8 * half + pair
                a, b, c, e = q[lane], q[lane + 2], q[lane + 4], q[lane + 6]
                y = at + SUB * pair + j
                out[y + 64 * half] = np.uint8((a & np.uint8(15)) | np.uint8(c << np.uint8(4)))
                out[y + 64 * half + 32] = np.uint8((b & np.uint8(15)) | np.uint8(e << np.uint8(4)))
                low = np.uint8((a >> np.uint8(4)) | np.uint8((b >> np.uint8(4)) << np.uint8(2)))
                high = np.uint8(np.uint8((c >> np.uint8(4)) << np.uint8(4)) | np.uint8((e >> np.uint8(4)) << np.uint8(6)))
                out[y + 128 + 32 * half] = np.uint8(low | high)


@kernel
def q6_k(kind: int, narrow: Vector, wide: Vector, out: Vector, groups: int, sums: Vector) -> None:
    """Q6_K: 210 bytes for 256 weights; a group is a sub-block of 16."""
    x, y = np.empty(SUB * LANES, np.float32), np.empty(SUB * LANES, np.float32)
    q = np.empty(SUB * LANES, np.uint8)
    magnitude, scale = np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    inverse, d = np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    live = np.empty(LANES, np.float32)
    for first in range(0, groups, LANES):
        load(kind, narrow, wide, first, SUB, y, x)
        _search(x, magnitude, scale, inverse)
        tile = out[first // SUB * SIZE : (first + LANES) // SUB * SIZE]
        for block in range(LANES // SUB):
            alive = _scales(scale, block * SUB, tile, block * SIZE, d)
            for lane in range(block * SUB, block * SUB + SUB):
                # Where the scale is zero the search's q stays; nothing was searched where all weights are (nearly) zero.
                searched = alive & (magnitude[lane] >= _LEAST)
                live[lane] = np.float32(1) if alive & (searched | (d[lane] != np.float32(0))) else np.float32(0)
        for j in range(SUB):
            for lane in range(LANES):
                v = x[j * LANES + lane]
                scaled = v / d[lane] if d[lane] != np.float32(0) else v * inverse[lane]
                scaled = scaled if scaled == scaled else np.float32(0)
                level = _level(scaled)
                y[j * LANES + lane] = d[lane] * level
                q[j * LANES + lane] = np.uint8(
                    np.int32(level + np.float32(32) if live[lane] > np.float32(0) else np.float32(0))
                )
        measure(x, y, sums)
        for block in range(LANES // SUB):
            _pack(q, block * SUB, tile, block * SIZE)
