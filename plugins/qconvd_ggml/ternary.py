"""TQ1_0 and TQ2_0: -1, 0 or 1 times the largest magnitude of 256 weights (quantize_row_tq1_0_ref and tq2_0 in ggml-quants.c).

Meant for models that were trained to three values. q = x/d rounded half away from zero. TQ2_0 takes two bits for q + 1; TQ1_0
packs five of them in a byte, as a fraction: the byte is ceil(n * 256 / 243) for the number n that they make in base 3, so a
reader gets the digits by multiplying by 3 and taking what overflows. There is no search, and no use for an importance matrix.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from qconvd_ggml.measure import STEP, measure
from qconvd_ggml.symmetric import largest
from qconvd_ggml.tile import LANES, Scalar, Vector, f16_bits, f16_value, inline, kernel, load, put16

SUB = 32
PER = 8
"""Weights of a lane, and lanes of a block."""
SIZE_1, SIZE_2 = 54, 66


_largest = largest(SUB)


@inline
def _round(x: Vector, q: Vector, y: Vector, half: Vector) -> None:
    """Fills, for a tile, q + 1 of each weight, what a reader sees, and each block's scale in 16 bits."""
    most, inverse, d = np.empty(LANES, np.float32), np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    for lane in range(LANES):
        most[lane], _ = _largest(x, lane)
    for first in range(0, LANES, PER):
        top = np.float32(0)
        for lane in range(first, first + PER):
            top = max(top, most[lane])
        half[first // PER] = f16_bits(top)
        for lane in range(first, first + PER):
            inverse[lane] = np.float32(1) / top if top != np.float32(0) else np.float32(0)
            d[lane] = f16_value(half[first // PER])
    for j in range(SUB):
        for lane in range(LANES):
            v = x[j * LANES + lane] * inverse[lane]
            # Beyond 2 is only the infinity that the inverse of a subnormal makes; ggml takes that for 0.
            far = (abs(v) >= np.float32(0.5)) & (abs(v) < np.float32(2))
            level = np.float32(0) if not far else (np.float32(-1) if v < np.float32(0) else np.float32(1))
            q[j * LANES + lane] = np.uint8(np.int32(level) + np.int32(1))
            y[j * LANES + lane] = d[lane] * level


@inline
def _five(a: Scalar, b: Scalar, c: Scalar, d: Scalar, e: Scalar) -> Scalar:
    """Five base 3 digits, the first the highest, as a fraction of 256."""
    n = (((np.uint32(a) * 3 + np.uint32(b)) * 3 + np.uint32(c)) * 3 + np.uint32(d)) * 3 + np.uint32(e)
    return np.uint8((n * 256 + 242) // 243)


@inline
def _pack_1(q: Vector, half: Vector, tile: Vector) -> None:
    for block in range(LANES // PER):
        at, lane = block * SIZE_1, block * PER
        for j in range(32):
            k = j * LANES + lane
            tile[at + j] = _five(q[k], q[k + 1], q[k + 2], q[k + 3], q[k + 4])
        for j in range(16):
            k, later = j * LANES + lane, (j + 16) * LANES + lane
            tile[at + 32 + j] = _five(q[k + 5], q[later + 5], q[k + 6], q[later + 6], q[k + 7])
        for j in range(4):
            k = (16 + j) * LANES + lane + 7
            tile[at + 48 + j] = _five(q[k], q[k + 4 * LANES], q[k + 8 * LANES], q[k + 12 * LANES], np.uint8(0))
        put16(tile, at + 52, half[block])


@inline
def _pack_2(q: Vector, half: Vector, tile: Vector) -> None:
    for block in range(LANES // PER):
        for part in range(2):
            for j in range(32):
                k = j * LANES + block * PER + 4 * part
                low = q[k] | np.uint8(q[k + 1] << np.uint8(2))
                high = np.uint8(q[k + 2] << np.uint8(4)) | np.uint8(q[k + 3] << np.uint8(6))
                tile[block * SIZE_2 + 32 * part + j] = np.uint8(low | high)
        put16(tile, block * SIZE_2 + 64, half[block])


def _blocks(size: int, pack: Any) -> Callable[..., None]:
    """The whole kernel of one type, for the entry points below to call."""

    @inline
    def run(kind: Scalar, narrow: Vector, wide: Vector, out: Vector, groups: Scalar, sums: Vector) -> None:
        x, y, q = np.empty(SUB * LANES, np.float32), np.empty(SUB * LANES, np.float32), np.empty(SUB * LANES, np.uint8)
        half = np.empty(LANES // PER, np.uint16)
        for first in range(0, groups, LANES):
            load(kind, narrow, wide, first, SUB, y, x)
            _round(x, q, y, half)
            for start in range(0, SUB * LANES, STEP * LANES):
                measure(x[start : start + STEP * LANES], y[start : start + STEP * LANES], sums)
            pack(q, half, out[first // PER * size : (first + LANES) // PER * size])

    return run


_tq1_0 = _blocks(SIZE_1, _pack_1)
_tq2_0 = _blocks(SIZE_2, _pack_2)


@kernel
def tq1_0(kind: int, narrow: Vector, wide: Vector, out: Vector, groups: int, sums: Vector) -> None:
    """TQ1_0: 54 bytes for 256 weights; a group is 32 of them."""
    _tq1_0(kind, narrow, wide, out, groups, sums)


@kernel
def tq2_0(kind: int, narrow: Vector, wide: Vector, out: Vector, groups: int, sums: Vector) -> None:
    """TQ2_0: 66 bytes for 256 weights; a group is 32 of them."""
    _tq2_0(kind, narrow, wide, out, groups, sums)
