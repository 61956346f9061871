"""Decoding and bounds for the types of bitsandbytes, whose linears are verified whole. Shares nothing with codebook.py."""

from __future__ import annotations

import numpy as np
from numba import types

from qconvd_compressed.kernels import CACHE
from qconvd_compressed.kernels.halves import SINGLES, SINGLES_READ, Scalar, Vector

_codes = types.Array(types.uint8, 1, "C", readonly=True)
_bits = types.Array(types.int32, 1, "C", readonly=True)
_bits_out = types.Array(types.int32, 1, "C")
_pairs = types.Array(types.uint64, 1, "C")
_pairs_read = types.Array(types.uint64, 1, "C", readonly=True)
READ = types.void(_codes, types.int64, _pairs_read, SINGLES_READ, SINGLES, _pairs)
LARGEST = types.void(_bits, types.int64, _bits_out)
BOUND = types.void(SINGLES_READ, types.int64, SINGLES_READ, SINGLES_READ, SINGLES_READ, SINGLES)


def _codebook_read(codes: Vector, width: Scalar, table: Vector, most: Vector, out: Vector, pairs: Vector) -> None:
    """`table`: (256,), the two numbers of each byte; `most`: the largest of each block of `width`, an even number.

    `out`: two numbers for every byte; `pairs`: the same memory.
    """
    for block in range(most.size):
        start, stop = block * width, min(out.size, (block + 1) * width)
        bytes_, both = codes[start // 2 : stop // 2], pairs[start // 2 : stop // 2]
        for i in range(both.size):
            both[i] = table[bytes_[i]]
        numbers, scale = out[start:stop], most[block]
        for i in range(numbers.size):
            numbers[i] *= scale


def _codebook_largest(x: Vector, width: Scalar, most: Vector) -> None:
    """Of each block; what is not finite is left out. Both are the bits of float32: without signs they are in the same order."""
    for block in range(most.size):
        part = x[block * width : (block + 1) * width]
        found = np.int32(0)
        for i in range(part.size):
            size = np.int32(part[i] & np.int32(0x7FFFFFFF))
            size = size if size < np.int32(0x7F800000) else np.int32(0)
            found = size if size > found else found
        most[block] = found


def _codebook_bound(x: Vector, width: Scalar, most: Vector, coarse: Vector, off: Vector, out: Vector) -> None:
    """`coarse`: how far the largest of each block may be from what is read; `off`: as bounds.py tabulates it."""
    parts = (off.size - 1) // 2
    place, size_of = np.empty(width, np.int32), np.empty(width, np.float32)
    least, most_parts = np.float32(-parts), np.float32(parts)
    for block in range(most.size):
        part, found = x[block * width : (block + 1) * width], out[block * width : (block + 1) * width]
        size, apart = most[block], coarse[block]
        scale = np.float32(parts) / (size if size > np.float32(0) else np.float32(1))
        for i in range(part.size):
            v = part[i]
            v = v if abs(v) < np.float32(np.inf) else np.float32(0)
            size_of[i] = abs(v)
            # Of tiny weights the scale is infinite: what then is no number becomes the last part.
            at = np.rint(v * scale)
            at = at if at < most_parts else most_parts
            place[i] = np.int32(at if at > least else least)
        for i in range(part.size):
            found[i] = off[place[i] + parts]
        for i in range(part.size):
            found[i] = found[i] * size + apart + (size_of[i] * np.float32(2.0**-22) + np.float32(1e-44))


codebook_read = CACHE.entry(_codebook_read, READ)
codebook_largest = CACHE.entry(_codebook_largest, LARGEST)
codebook_bound = CACHE.entry(_codebook_bound, BOUND)
