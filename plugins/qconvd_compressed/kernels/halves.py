"""16-bit floats in kernels: as float32, back, and their range. `half` is 1 for float16, 0 for bfloat16.

Magnitudes are compared as integers, which for floats of one sign is the same order. What is not finite counts as zero.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numba
import numpy as np
from numba import types

Scalar: TypeAlias = Any
Vector: TypeAlias = Any

LANES = 16
"""Sums are kept in so many parts: SIMD that does not depend on how wide the CPU's is."""
ROWS = types.Array(types.uint16, 2, "C", readonly=True)
FLAT = types.Array(types.uint16, 1, "C", readonly=True)
BYTES = types.Array(types.uint8, 2, "C")
BYTES_FLAT = types.Array(types.uint8, 1, "C")
HALVES = types.Array(types.uint16, 2, "C")
SIGNED = types.Array(types.int8, 2, "C")
SINGLES = types.Array(types.float32, 1, "C")
SINGLES_READ = types.Array(types.float32, 1, "C", readonly=True)
SUMS = types.Array(types.float64, 1, "C")
"""square error, square, largest error, NaN, infinities"""


def inline(function: Any) -> Any:
    """A building block that becomes part of whoever calls it."""
    return numba.njit(error_model="numpy", forceinline=True)(function)


@inline
def infinite(half: Scalar) -> Scalar:
    """The bits of infinity: whatever is less is finite."""
    return np.uint16(0x7C00) if half else np.uint16(0x7F80)


@inline
def single(bits: Scalar, half: Scalar) -> Scalar:
    """A finite 16-bit float as float32, exactly."""
    if half:
        # Read as a float32 it has an exponent that is too small by 112.
        size = np.uint32((bits & 0x7FFF) << 13).view(np.float32) * np.float32(2.0**112)
        return np.uint32(np.float32(size).view(np.uint32) | ((bits & 0x8000) << 16)).view(np.float32)
    return np.uint32(np.uint32(bits) << 16).view(np.float32)


@inline
def rounded(x: Scalar, half: Scalar) -> Scalar:
    """`x` to the nearest 16-bit float, ties to even, as float32; beyond the range, the largest."""
    if half:
        if abs(x) < np.float32(2.0**-14):
            return np.float32(np.rint(x * np.float32(2.0**24)) * np.float32(2.0**-24))
        bits = np.float32(min(max(x, np.float32(-65504.0)), np.float32(65504.0))).view(np.uint32)
        return np.uint32((bits + 0xFFF + ((bits >> 13) & 1)) & 0xFFFFE000).view(np.float32)
    most = np.float32(3.3895313892515355e38)
    bits = np.float32(min(max(x, -most), most)).view(np.uint32)
    return np.uint32((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).view(np.float32)


@inline
def stored(x: Scalar, half: Scalar) -> Scalar:
    """The 16 bits of an `x` >= 0 that is such a float already."""
    bits = np.float32(x).view(np.uint32)
    if half:
        if x < np.float32(2.0**-14):
            return np.uint16(x * np.float32(2.0**24))
        return np.uint16((bits >> 13) - (112 << 10))
    return np.uint16(bits >> 16)


@inline
def epsilon(half: Scalar) -> Scalar:
    """What takes the place of a scale of zero, as in compressed-tensors: the step from 1 to the next number."""
    return np.float32(2.0**-10) if half else np.float32(2.0**-7)


@inline
def widen(x: Vector, half: Scalar, out: Vector, sums: Vector) -> None:
    """A row as float32, with 0 for what is not finite, which is counted."""
    limit, most = infinite(half), np.uint16(0)
    if half:
        for i in range(x.size):
            most = max(most, np.uint16(x[i] & 0x7FFF))
            out[i] = single(x[i], 1)
    else:
        for i in range(x.size):
            most = max(most, np.uint16(x[i] & 0x7FFF))
            out[i] = single(x[i], 0)
    if most < limit:
        return
    # Counting as it goes would keep SIMD busy with 64-bit numbers, for weights that next to no model has.
    for i in range(x.size):
        size = np.uint16(x[i] & 0x7FFF)
        sums[3] += size > limit
        sums[4] += size == limit
        if size >= limit:
            out[i] = np.float32(0.0)


@inline
def largest(x: Vector, half: Scalar) -> Scalar:
    """The greatest magnitude of finite weights, as bits."""
    limit, found = infinite(half), np.uint16(0)
    for i in range(x.size):
        found = max(found, np.uint16(x[i] & 0x7FFF))
    if found < limit:
        return found
    # Only where something is not finite is every weight asked.
    found = np.uint16(0)
    for i in range(x.size):
        size = np.uint16(x[i] & 0x7FFF)
        found = max(found, size if size < limit else np.uint16(0))
    return found


@inline
def lowest(x: Vector, half: Scalar) -> Scalar:
    """The greatest magnitude of finite negative weights, as bits: with the sign's bit set they are above all positive ones."""
    limit, found = infinite(half), np.uint16(0x8000)
    for i in range(x.size):
        found = max(found, x[i])
    found = np.uint16(found & 0x7FFF)
    if found < limit:
        return found
    found = np.uint16(0)
    for i in range(x.size):
        size = np.uint16(x[i] & 0x7FFF)
        found = max(found, size if size < limit and x[i] >= np.uint16(0x8000) else np.uint16(0))
    return found


@inline
def highest(x: Vector, half: Scalar) -> Scalar:
    """The greatest finite positive weight, as bits, which as signed integers are above those of all negative ones."""
    limit, signed = infinite(half), np.int16(0)
    for i in range(x.size):
        signed = max(signed, np.int16(x[i]))
    found = np.uint16(signed)
    if found < limit:
        return found
    found = np.uint16(0)
    for i in range(x.size):
        found = max(found, x[i] if x[i] < limit else np.uint16(0))
    return found


@inline
def tally(x: Vector, y: Vector, parts: Vector, sums: Vector) -> None:
    """Add a row's figures: `x` are weights, `y` is what is read instead. `parts`: (3, LANES), scratch."""
    parts[:] = np.float32(0.0)
    # Magnitudes are compared as integers: of the larger of two floats, written where one was, LLVM makes a masked store, which
    # is slow on AMD's processors.
    top = parts[2].view(np.int32)
    whole = x.size // LANES * LANES
    errors, squares = parts[0], parts[1]
    for at in range(0, whole, LANES):
        a, b = x[at : at + LANES], y[at : at + LANES]
        for lane in range(LANES):
            d = b[lane] - a[lane]
            errors[lane] += d * d
            squares[lane] += a[lane] * a[lane]
            size, before = np.float32(abs(d)).view(np.int32), top[lane]
            top[lane] = size if size > before else before
    for i in range(whole, x.size):
        d = y[i] - x[i]
        parts[0, 0] += d * d
        parts[1, 0] += x[i] * x[i]
        parts[2, 0] = max(parts[2, 0], abs(d))
    for lane in range(LANES):
        sums[0] += np.float64(parts[0, lane])
        sums[1] += np.float64(parts[1, lane])
        sums[2] = max(sums[2], np.float64(parts[2, lane]))
