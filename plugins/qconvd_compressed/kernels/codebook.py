"""Weights as the nearest of 16 numbers times the largest of their block, as bitsandbytes stores them (nf4, fp4).

Blocks run over the rows of a matrix as one sequence. nf4: Dettmers et al., arXiv 2305.14314.
"""

from __future__ import annotations

import numpy as np
from numba import types

from qconvd_compressed.kernels import CACHE
from qconvd_compressed.kernels.halves import (
    BYTES_FLAT,
    FLAT,
    LANES,
    SINGLES,
    SINGLES_READ,
    SUMS,
    Scalar,
    Vector,
    largest,
    single,
    tally,
    widen,
)  # fmt: skip

SMALLEST = 1e-38
"""What a block's largest is taken for if it is less, so that it can be divided by."""
TALLIED = 16
"""Blocks whose figures are added up at a time."""
_codes = types.Array(types.uint8, 1, "C", readonly=True)
_pairs = types.Array(types.uint64, 1, "C", readonly=True)
CODEBOOK = types.void(FLAT, types.int64, types.int64, SINGLES_READ, _codes, BYTES_FLAT, SINGLES)
ERROR = types.void(FLAT, types.int64, types.int64, _pairs, _codes, SINGLES_READ, SUMS)


def _codebook(x: Vector, half: Scalar, width: Scalar, bounds: Vector, order: Vector, out: Vector, most: Vector) -> None:
    """`width`: even. `bounds`: (15,), the middles between the numbers, ascending; `order`: (16,), the code of each number.

    `out`: two codes in a byte, the first high; `most`: the largest of each block.
    """
    w, code, turns = np.zeros(width, np.float32), np.empty(width, np.int32), np.empty(bounds.size, np.int32)
    ignored = np.zeros(5, np.float64)
    for k in range(bounds.size):
        turns[k] = np.int32(order[k] ^ order[k + 1])
    for block in range(most.size):
        start, stop = block * width, min(x.size, (block + 1) * width)
        widen(x[start:stop], half, w, ignored)
        size = single(largest(x[start:stop], half), half)
        safe = max(size, np.float32(SMALLEST))
        partial = stop - start < width
        most[block] = safe if partial else size
        up = np.float32(1.0) / safe
        if partial:
            for i in range(stop - start):
                w[i] = min(max(w[i] / safe, np.float32(-1.0)), np.float32(1.0))
            # What fills up the last byte is a zero.
            for i in range(stop - start, width):
                w[i] = np.float32(0.0)
        else:
            for i in range(width):
                w[i] = min(max(w[i] * up, np.float32(-1.0)), np.float32(1.0))
        for i in range(width):
            code[i] = np.int32(order[0])
        # Each bound that is passed turns the code of the number before it into the next one's.
        for k in range(bounds.size):
            limit, turn = bounds[k], turns[k]
            for i in range(width):
                code[i] ^= turn if w[i] > limit else np.int32(0)
        pairs = out[start // 2 : (stop + 1) // 2]
        for i in range(pairs.size):
            pairs[i] = np.uint8(code[2 * i] << 4 | code[2 * i + 1])


codebook = CACHE.entry(_codebook, CODEBOOK)


def _codebook_error(x: Vector, half: Scalar, width: Scalar, values: Vector, codes: Vector, most: Vector, sums: Vector) -> None:
    """Add the figures of what is read.

    `width`: even; `values`: (256,), the two numbers of each byte; `most`: the largest of each block as it is read.
    """
    w, y, parts = np.empty(TALLIED * width, np.float32), np.zeros(TALLIED * width, np.float32), np.empty((3, LANES), np.float32)
    both = y.view(np.uint64)
    for first in range(0, most.size, TALLIED):
        last = min(most.size, first + TALLIED)
        start, stop = first * width, min(x.size, last * width)
        widen(x[start:stop], half, w, sums)
        pairs = codes[start // 2 : (stop + 1) // 2]
        for i in range(pairs.size):
            both[i] = values[pairs[i]]
        for block in range(first, last):
            numbers, scale = y[(block - first) * width : (block - first + 1) * width], most[block]
            for i in range(width):
                numbers[i] *= scale
        tally(w[: stop - start], y[: stop - start], parts, sums)


codebook_error = CACHE.entry(_codebook_error, ERROR)
