"""Weights as 8-bit floats (E4M3 without infinities, OCP 8-bit floating point specification) with a scale per row or block.

A weight w is stored as w / scale, clamped to ±448 and rounded to nearest, ties to even. The scale is largest / 448, rounded to
the weights' own type, as in compressed-tensors (`calculate_qparams`).
"""

from __future__ import annotations

import numpy as np
from numba import types

from qconvd_compressed.kernels import CACHE
from qconvd_compressed.kernels.halves import (
    BYTES,
    HALVES,
    LANES,
    ROWS,
    SUMS,
    Scalar,
    Vector,
    epsilon,
    inline,
    largest,
    rounded,
    single,
    stored,
    tally,
    widen,
)  # fmt: skip

LARGEST = 448.0
FLOATS = types.void(ROWS, types.int64, types.int64, types.int64, BYTES, HALVES, SUMS)


@inline
def _code(x: Scalar) -> Scalar:
    """A number of ±448 at most as the nearest E4M3: sign, 4 bits of exponent with bias 7, 3 of mantissa."""
    bits = np.float32(x).view(np.uint32)
    size = np.uint32(bits & 0x7FFFFFFF)
    # Below 2^-6 the steps are 2^-9; rounding up to 2^-6 gives the code of the smallest normal number, as it should.
    small = np.uint32(np.int32(np.rint(abs(x) * np.float32(512.0))))
    normal = np.uint32(((size + 0x7FFFF + ((size >> 20) & 1)) >> 20) - (120 << 3))
    return np.uint8((small if size < np.uint32(0x3C800000) else normal) | ((bits >> 24) & 0x80))


@inline
def _value(code: Scalar) -> Scalar:
    """The number that a code other than NaN stands for."""
    size = np.uint32((code & 0x7F) << 20).view(np.float32) * np.float32(2.0**120)
    return np.uint32(np.float32(size).view(np.uint32) | (np.uint32(code & 0x80) << 24)).view(np.float32)


def _floats(x: Vector, half: Scalar, height: Scalar, width: Scalar, out: Vector, scales: Vector, sums: Vector) -> None:
    """`x`: (rows, columns), in blocks of `height` and `width`, the last of which may be smaller. `scales`: one of each."""
    rows, columns = x.shape
    w, y = np.empty(columns, np.float32), np.empty(columns, np.float32)
    parts = np.empty((3, LANES), np.float32)
    most = np.float32(LARGEST)
    for down in range(scales.shape[0]):
        first, last = down * height, min(rows, (down + 1) * height)
        for across in range(scales.shape[1]):
            start, stop = across * width, min(columns, (across + 1) * width)
            size = np.uint16(0)
            for r in range(first, last):
                size = max(size, largest(x[r, start:stop], half))
            s = rounded(single(size, half) / most, half)
            scales[down, across] = stored(s if s > np.float32(0.0) else epsilon(half), half)
        for r in range(first, last):
            widen(x[r], half, w, sums)
            for across in range(scales.shape[1]):
                s = single(scales[down, across], half)
                start, stop = across * width, min(columns, (across + 1) * width)
                v, read, codes = w[start:stop], y[start:stop], out[r, start:stop]
                for i in range(v.size):
                    # Adding 0, the zero point of compressed-tensors, makes a negative zero a positive one.
                    code = _code(min(max(v[i] / s + np.float32(0.0), -most), most))
                    codes[i] = code
                    read[i] = _value(code) * s
            tally(w, y, parts, sums)


floats = CACHE.entry(_floats, FLOATS)
