"""MXFP4: 32 weights as 4-bit floats share a power of two (OCP Microscaling Formats; quantize_row_mxfp4_ref in ggml-quants.c).

The exponent byte is e = floor(log2(max |x|)) - 2 + 127, so that the largest weight lies between 4 and 8 of a range that ends
at 6. A reader sees 2^(e-127) times the nearest of 0, 1/2, 1, 3/2, 2, 3, 4, 6 with the weight's sign; in the middle the smaller
one. There is no search, and no use for an importance matrix.

ggml takes log2f, which is rounded to float32: just below a power of two it gives the whole number, and e is one more.
_ROUNDED_UP holds from which mantissa on. As in ggml, e is the low byte of the sum, so a block below 2^-125 gets a
huge power of two and zeros; so does one with an infinite weight get e = 0.
"""

from __future__ import annotations

import numpy as np

from qconvd_ggml.measure import STEP, measure
from qconvd_ggml.symmetric import largest
from qconvd_ggml.tile import LANES, Scalar, Vector, inline, kernel, load, pair_nibbles

BLOCK = 32
SIZE = 17
_BETWEEN = tuple(np.float32(v) for v in (0.5, 1.5, 2.5, 3.5, 5, 7, 10))
"""Above these multiples of half the block's power of two the next level is nearer."""
_DOUBLED = tuple(np.float32(v) for v in (0, 1, 2, 3, 4, 6, 8, 12))
_LEAST_EXPONENT = -149
_MANTISSA = (1 << 23) - 1


def _rounded_up() -> Vector:
    """Per exponent from -149 to 127, the least 23-bit mantissa whose float32 logarithm is the next whole number."""
    exponents = np.arange(_LEAST_EXPONENT, 128)
    mantissas = np.arange(_MANTISSA - 255, _MANTISSA + 1)
    logarithm = exponents[:, None] + np.log2(1 + mantissas / 2.0**23)
    below = (logarithm.astype(np.float32) < exponents[:, None] + 1).sum(axis=1)
    return (mantissas[0] + below).astype(np.uint32)


_ROUNDED_UP = _rounded_up()
_largest = largest(BLOCK)


@inline
def _exponent(most: Scalar) -> Scalar:
    """The byte e for a block whose largest magnitude is `most`."""
    if most == np.float32(0) or most > np.float32(3.4028234663852886e38):
        return np.uint8(0)
    # Subnormals are scaled up so that they too have an exponent in their bits.
    small = most < np.float32(2.0**-126)
    bits = np.float32(most * np.float32(2.0**64) if small else most).view(np.uint32)
    exponent = np.int32(bits >> np.uint32(23)) - np.int32(191 if small else 127)
    above = np.uint32(bits & np.uint32(_MANTISSA)) >= _ROUNDED_UP[exponent - _LEAST_EXPONENT]
    return np.uint8((exponent + (1 if above else 0) + 125) & 255)


@inline
def _half_power(e: Scalar) -> Scalar:
    """2^(e - 128) as float32."""
    bits = np.uint32(0x00200000) << np.uint32(e) if e < 2 else (np.uint32(e) - np.uint32(1)) << np.uint32(23)
    return np.uint32(bits).view(np.float32)


@kernel
def mxfp4(kind: int, narrow: Vector, wide: Vector, out: Vector, groups: int, sums: Vector) -> None:
    """MXFP4: 17 bytes a block."""
    x, y = np.empty(BLOCK * LANES, np.float32), np.empty(BLOCK * LANES, np.float32)
    q = np.empty(BLOCK * LANES, np.uint8)
    pairs, turned = np.empty(BLOCK // 2 * LANES, np.uint8), np.empty(BLOCK // 2 * LANES, np.uint8)
    most, d = np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    for first in range(0, groups, LANES):
        load(kind, narrow, wide, first, BLOCK, y, x)
        tile = out[first * SIZE : (first + LANES) * SIZE]
        for lane in range(LANES):
            most[lane], _ = _largest(x, lane)
        for lane in range(LANES):
            e = _exponent(most[lane])
            tile[lane * SIZE] = e
            d[lane] = _half_power(e)
        for j in range(BLOCK):
            for lane in range(LANES):
                v = x[j * LANES + lane]
                a, unit = abs(v), d[lane]
                level, value = np.uint8(0), np.float32(0)
                for i in range(7):
                    above = a > _BETWEEN[i] * unit
                    level += np.uint8(1) if above else np.uint8(0)
                    value = _DOUBLED[i + 1] if above else value
                negative = (v < np.float32(0)) & (level > np.uint8(0))
                q[j * LANES + lane] = np.uint8(level | (np.uint8(8) if negative else np.uint8(0)))
                y[j * LANES + lane] = unit * (-value if negative else value)
        for start in range(0, BLOCK * LANES, STEP * LANES):
            measure(x[start : start + STEP * LANES], y[start : start + STEP * LANES], sums)
        pair_nibbles(q, pairs, turned)
        for lane in range(LANES):
            at = lane * SIZE + 1
            for j in range(BLOCK // 2):
                tile[at + j] = pairs[lane * (BLOCK // 2) + j]
