"""Decoding and bounds for the types of bitsandbytes, whose linears are verified whole. Shares nothing with codebook.py."""

from __future__ import annotations

import numpy as np
from numba import types

from qconvd_compressed.kernels import CACHE
from qconvd_compressed.kernels.halves import SINGLES, SINGLES_READ, Scalar, Vector

_codes = types.Array(types.uint8, 1, "C", readonly=True)
READ = types.void(_codes, types.int64, SINGLES_READ, SINGLES_READ, SINGLES)
LARGEST = types.void(SINGLES_READ, types.int64, SINGLES)
BOUND = types.void(SINGLES_READ, types.int64, SINGLES_READ, SINGLES_READ, SINGLES_READ, SINGLES_READ, SINGLES)


def _codebook_read(codes: Vector, width: Scalar, table: Vector, most: Vector, out: Vector) -> None:
    """`table`: (16,), the number of each code; `most`: the largest of each block of `width`, an even number."""
    for block in range(most.size):
        scale = most[block]
        start, stop = block * width, min(out.size, (block + 1) * width)
        bytes_, numbers = codes[start // 2 : (stop + 1) // 2], out[start:stop]
        for i in range(numbers.size // 2):
            numbers[2 * i] = table[bytes_[i] >> np.uint8(4)] * scale
            numbers[2 * i + 1] = table[bytes_[i] & np.uint8(15)] * scale
        if numbers.size % 2:
            numbers[numbers.size - 1] = table[bytes_[numbers.size // 2] >> np.uint8(4)] * scale


def _codebook_largest(x: Vector, width: Scalar, most: Vector) -> None:
    """Of each block; what is not finite is left out."""
    for block in range(most.size):
        part = x[block * width : (block + 1) * width]
        found = np.float32(0)
        for i in range(part.size):
            size = abs(part[i])
            found = max(found, size if size < np.float32(np.inf) else np.float32(0))
        most[block] = found


def _codebook_bound(x: Vector, width: Scalar, most: Vector, coarse: Vector, off: Vector, number: Vector, out: Vector) -> None:
    """`coarse`: how far the largest of each block may be from what is read; `off` and `number`: as bounds.py tabulates them."""
    parts = (off.size - 1) // 2
    for block in range(most.size):
        part, found = x[block * width : (block + 1) * width], out[block * width : (block + 1) * width]
        size, apart = most[block], coarse[block]
        scale = np.float32(parts) / (size if size > np.float32(0) else np.float32(1))
        for i in range(part.size):
            v = part[i] if abs(part[i]) < np.float32(np.inf) else np.float32(0)
            place = min(max(np.int32(np.rint(v * scale)) + parts, 0), off.size - 1)
            found[i] = off[place] * size + number[place] * apart + (abs(v) * np.float32(2.0**-22) + np.float32(1e-44))


codebook_read = CACHE.entry(_codebook_read, READ)
codebook_largest = CACHE.entry(_codebook_largest, LARGEST)
codebook_bound = CACHE.entry(_codebook_bound, BOUND)
