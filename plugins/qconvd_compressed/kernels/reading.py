"""Weights of bitsandbytes' types held against the model: decoding and bounds in one go. Shares nothing with codebook.py.

With double quantization linears are verified whole, so verifying must not cost more than encoding. Where something is odd,
decoder.py and bounds.py are asked, which say the same in numpy.
"""

from __future__ import annotations

import numpy as np
from numba import types

from qconvd_compressed.kernels import CACHE
from qconvd_compressed.kernels.halves import FLAT, SINGLES_READ, Scalar, Vector

_codes = types.Array(types.uint8, 1, "C", readonly=True)
_pairs = types.Array(types.uint64, 1, "C", readonly=True)
_found = types.Array(types.int32, 1, "C")
LARGEST = types.void(FLAT, types.int64, types.Array(types.uint16, 1, "C"))
HELD = types.void(
    FLAT, SINGLES_READ, types.int64, _codes, _pairs, SINGLES_READ, SINGLES_READ, SINGLES_READ, SINGLES_READ, _found
)


def _codebook_largest(x: Vector, width: Scalar, most: Vector) -> None:
    """The largest of each block of 16-bit floats, finite or not. Both are bits: without signs they are in the same order."""
    for block in range(most.size):
        part = x[block * width : (block + 1) * width]
        found = np.uint16(0)
        for i in range(part.size):
            size = np.uint16(part[i] & np.uint16(0x7FFF))
            found = size if size > found else found
        most[block] = found


def _codebook_held(
    x: Vector,
    halves: Vector,
    width: Scalar,
    codes: Vector,
    table: Vector,
    read: Vector,
    most: Vector,
    coarse: Vector,
    off: Vector,
    found: Vector,
) -> None:
    """`x`: finite float16 bits, and `halves`, (65536,), the number of each; or bfloat16 bits, and nothing.

    `table`: (256,), the two numbers of each byte of `codes`; `read`: what those of each block of `width`, which is even, are
    multiplied by. `most`: the largest of each block of `x`; `coarse`: how far `read` may be from it; `off`: see bounds.py.
    `found`: the largest deviation and the largest share of a bound, as the bits of float32, which are raised. What is no number
    is above all numbers there.
    """
    parts = (off.size - 1) // 2
    least, last = np.float32(-parts), np.float32(parts)
    place, bounds = np.empty(width, np.int32), np.ones(width, np.float32)
    w, numbers = np.zeros(width, np.float32), np.zeros(width, np.float32)
    bits, pairs, shares, errors = w.view(np.uint32), numbers.view(np.uint64), bounds.view(np.int32), numbers.view(np.int32)
    top, top_share = np.zeros(width, np.int32), np.zeros(width, np.int32)
    for block in range(most.size):
        start, stop = block * width, min(x.size, (block + 1) * width)
        stored, bytes_ = x[start:stop], codes[start // 2 : (stop + 1) // 2]
        if halves.size:
            for i in range(stored.size):
                w[i] = halves[stored[i]]
        else:
            for i in range(stored.size):
                bits[i] = np.uint32(stored[i]) << np.uint32(16)
        for i in range(bytes_.size):
            pairs[i] = table[bytes_[i]]
        size, apart, scale = most[block], coarse[block], read[block]
        # Of tiny weights the reciprocal would be infinite.
        up = np.float32(2.0**64) if size < np.float32(1e-30) else np.float32(1)
        to_place = last / (size * up if size > np.float32(0) else np.float32(1))
        for i in range(stored.size):
            at = np.rint(w[i] * up * to_place)
            at = at if at < last else last
            place[i] = np.int32(at if at > least else least)
        for i in range(stored.size):
            bounds[i] = off[place[i] + parts]
        for i in range(stored.size):
            bounds[i] = bounds[i] * size + apart + (abs(w[i]) * np.float32(2.0**-22) + np.float32(1e-44))
            numbers[i] = abs(numbers[i] * scale - w[i])
            bounds[i] = numbers[i] / bounds[i]
        for i in range(stored.size):
            top[i] = errors[i] if errors[i] > top[i] else top[i]
            share = np.int32(shares[i] & np.int32(0x7FFFFFFF))
            top_share[i] = share if share > top_share[i] else top_share[i]
    for i in range(width):
        found[0] = max(found[0], top[i])
        found[1] = max(found[1], top_share[i])


codebook_largest = CACHE.entry(_codebook_largest, LARGEST)
codebook_held = CACHE.entry(_codebook_held, HELD)
