"""Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0: blocks of 32 weights with a 16-bit scale and, for the _1 types, a 16-bit minimum.

The algorithms of ggml's quantize_row_*_ref (ggml-quants.c):

    Q4_0, Q5_0   d = (the weight of largest magnitude) / -8 or -16, so that this weight is met exactly;
                 q = trunc(x/d + 8.5 or 16.5), at most 15 or 31; a reader sees d * (q - 8 or 16)
    Q4_1, Q5_1   m = min, d = (max - min) / 15 or 31; q = trunc((x - m)/d + 0.5); a reader sees d * q + m
    Q8_0         d = max |x| / 127; q = x/d rounded half away from zero; a reader sees d * q

q is found with d and m in float32, before they are rounded to 16 bits. On equal magnitudes the first weight decides the sign.
A NaN is never a largest or smallest weight and gets the q that llama.cpp's x86-64 build gives it, 0; a block with an infinite
weight gets an infinite d and, for lack of anything to divide by, whatever trunc(0 + 8.5) and the like give.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from qconvd_ggml.measure import STEP, measure
from qconvd_ggml.symmetric import largest
from qconvd_ggml.tile import (
    LANES,
    Scalar,
    Vector,
    f16_bits,
    f16_value,
    fold,
    in_order,
    inline,
    kernel,
    load,
    pair_nibbles,
    whole,
)

BLOCK = 32
_HUGE = np.float32(3.4028234663852886e38)
_SIGN, _NEARLY_HALF = np.uint32(0x80000000), np.float32(0.5 - 2.0**-25).view(np.uint32)


@inline
def _range_step(j: Scalar, lane: Scalar, x: Vector, state: Scalar, fixed: Scalar) -> Scalar:  # noqa: ARG001
    low, high = state
    v = x[j * LANES + lane]
    return (v if v < low else low, v if v > high else high)


_largest = largest(BLOCK)
_range = fold(_range_step, BLOCK)


@inline
def _inverse(d: Scalar) -> Scalar:
    return np.float32(1) / d if d != np.float32(0) else np.float32(0)


def _around_zero(bits: int) -> tuple[Any, Any, Any]:
    """Q4_0, Q5_0: scale, quantize, dequantize."""
    half = 1 << (bits - 1)
    top = np.int32(2 * half - 1)

    @inline
    def scale(x: Vector, lane: Scalar) -> Scalar:
        _, signed = _largest(x, lane)
        return signed / np.float32(-half), np.float32(0)

    @inline
    def quantize(v: Scalar, m: Scalar, inverse: Scalar) -> Scalar:  # noqa: ARG001
        return min(top, whole(v * inverse + np.float32(half + 0.5)))

    @inline
    def dequantize(q: Scalar, d: Scalar, m: Scalar) -> Scalar:  # noqa: ARG001
        # Without the outer cast the difference has 64 bits, which AVX2 cannot turn into floats.
        return d * np.float32(np.int32(q - np.int32(half)))

    return scale, quantize, dequantize


def _above_minimum(bits: int) -> tuple[Any, Any, Any]:
    """Q4_1, Q5_1: scale and minimum, quantize, dequantize."""
    top = np.int32((1 << bits) - 1)

    @inline
    def scale(x: Vector, lane: Scalar) -> Scalar:
        low, high = _range(0, lane, x, (_HUGE, -_HUGE), 0)
        return (high - low) / np.float32(top), low

    @inline
    def quantize(v: Scalar, m: Scalar, inverse: Scalar) -> Scalar:
        return min(top, whole((v - m) * inverse + np.float32(0.5)))

    @inline
    def dequantize(q: Scalar, d: Scalar, m: Scalar) -> Scalar:
        return d * np.float32(q) + m

    return scale, quantize, dequantize


@inline
def _scale_8(x: Vector, lane: Scalar) -> Scalar:
    magnitude, _ = _largest(x, lane)
    return magnitude / np.float32(127), np.float32(0)


@inline
def _quantize_8(v: Scalar, m: Scalar, inverse: Scalar) -> Scalar:  # noqa: ARG001
    # The largest float below a half, with the sign of what it is added to: the sum, cut off, is rounded half away from zero.
    scaled = np.float32(v * inverse)
    nearly_half = np.uint32(np.uint32(scaled.view(np.uint32) & _SIGN) | _NEARLY_HALF).view(np.float32)
    return whole(scaled + nearly_half)


@inline
def _dequantize_8(q: Scalar, d: Scalar, m: Scalar) -> Scalar:  # noqa: ARG001
    return d * np.float32(q)


def packing(bits: int, has_minimum: bool) -> tuple[int, Callable[..., None]]:
    """The bytes of a block, and what writes those of a tile from its levels, scales and minimums: pack(q, d16, m16, out)."""
    header = 4 if has_minimum else 2
    size = header + BLOCK * bits // 8
    each = BLOCK if bits == 8 else BLOCK // 2
    """Bytes of a block that hold a level, or two nibbles."""
    put_in_order = in_order(BLOCK)

    @inline
    def pack(q: Vector, d16: Vector, m16: Vector, out: Vector) -> None:
        low, once = np.empty(each * LANES, np.uint8), np.empty(each * LANES, np.uint8)
        if bits == 8:
            put_in_order(q, once)
        else:
            pair_nibbles(q, low, once)
        fifth = np.zeros(LANES, np.uint32)
        if bits == 5:
            for j in range(BLOCK):
                for lane in range(LANES):
                    fifth[lane] |= np.uint32(q[j * LANES + lane] >> np.uint8(4)) << np.uint32(j)
        # By words of 16 bits, of which a block has a whole number.
        words, levels = out.view(np.uint16), (q if bits == 8 else low).view(np.uint16)
        at = 0
        for lane in range(LANES):
            words[at] = d16[lane]
            at += 1
            if has_minimum:
                words[at] = m16[lane]
                at += 1
            if bits == 5:
                words[at] = np.uint16(fifth[lane] & np.uint32(0xFFFF))
                words[at + 1] = np.uint16(fifth[lane] >> np.uint32(16))
                at += 2
            for i in range(each // 2):
                words[at + i] = levels[lane * (each // 2) + i]
            at += each // 2

    return size, pack


def _blocks(bits: int, has_minimum: bool, scale: Any, quantize: Any, dequantize: Any) -> Callable[..., None]:
    """The whole kernel of one type, for the entry points below to call."""
    size, pack = packing(bits, has_minimum)

    @inline
    def run(kind: Scalar, narrow: Vector, wide: Vector, out: Vector, groups: Scalar, sums: Vector) -> None:
        x, y = np.empty(BLOCK * LANES, np.float32), np.empty(BLOCK * LANES, np.float32)
        q = np.empty(BLOCK * LANES, np.uint8)
        d16, m16 = np.empty(LANES, np.uint16), np.empty(LANES, np.uint16)
        d, m = np.empty(LANES, np.float32), np.empty(LANES, np.float32)
        low, inverse = np.empty(LANES, np.float32), np.empty(LANES, np.float32)
        for first in range(0, groups, LANES):
            load(kind, narrow, wide, first, BLOCK, y, x)
            for lane in range(LANES):
                full, minimum = scale(x, lane)
                low[lane] = minimum
                inverse[lane] = _inverse(full)
                d16[lane] = f16_bits(full)
                m16[lane] = f16_bits(minimum)
                d[lane] = f16_value(d16[lane])
                m[lane] = f16_value(m16[lane])
            for j in range(BLOCK):
                for lane in range(LANES):
                    level = quantize(x[j * LANES + lane], low[lane], inverse[lane])
                    q[j * LANES + lane] = np.uint8(level)
                    y[j * LANES + lane] = dequantize(level, d[lane], m[lane])
            for start in range(0, BLOCK * LANES, STEP * LANES):
                measure(x[start : start + STEP * LANES], y[start : start + STEP * LANES], sums)
            pack(q, d16, m16, out[first * size : (first + LANES) * size])

    return run


_q4_0 = _blocks(4, False, *_around_zero(4))
_q5_0 = _blocks(5, False, *_around_zero(5))
_q4_1 = _blocks(4, True, *_above_minimum(4))
_q5_1 = _blocks(5, True, *_above_minimum(5))
_q8_0 = _blocks(8, False, _scale_8, _quantize_8, _dequantize_8)


@kernel
def q4_0(kind: int, narrow: Vector, wide: Vector, out: Vector, groups: int, sums: Vector) -> None:
    """Q4_0: 18 bytes a block."""
    _q4_0(kind, narrow, wide, out, groups, sums)


@kernel
def q4_1(kind: int, narrow: Vector, wide: Vector, out: Vector, groups: int, sums: Vector) -> None:
    """Q4_1: 20 bytes a block."""
    _q4_1(kind, narrow, wide, out, groups, sums)


@kernel
def q5_0(kind: int, narrow: Vector, wide: Vector, out: Vector, groups: int, sums: Vector) -> None:
    """Q5_0: 22 bytes a block."""
    _q5_0(kind, narrow, wide, out, groups, sums)


@kernel
def q5_1(kind: int, narrow: Vector, wide: Vector, out: Vector, groups: int, sums: Vector) -> None:
    """Q5_1: 24 bytes a block."""
    _q5_1(kind, narrow, wide, out, groups, sums)


@kernel
def q8_0(kind: int, narrow: Vector, wide: Vector, out: Vector, groups: int, sums: Vector) -> None:
    """Q8_0: 34 bytes a block."""
    _q8_0(kind, narrow, wide, out, groups, sums)
