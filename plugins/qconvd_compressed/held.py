"""Weights of bitsandbytes' types held against the model in one go, of double quantization also some rows of a linear alone.

Otherwise it would be verified whole, as the mean of its blocks' largest is a part of what every block is read from.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from math import gcd

import numpy as np

from qconvd.api import Array, Buffer, Parts, Unit, as_float32
from qconvd_compressed.bounds import from_nearest, how_coarse, off_mean
from qconvd_compressed.decoder import largest_as_read, offset_of, pairs_of
from qconvd_compressed.schemes import CODEBOOK_BLOCK, NESTED_BLOCK

NESTED = CODEBOOK_BLOCK * NESTED_BLOCK
"""Weights that share the largest deviation of their blocks' largest."""


def parts(unit: Unit) -> Parts | None:
    """Rows of double quantization that are whole nested blocks, if all are."""
    rows, columns = unit.shape
    return None if rows * columns % NESTED else Parts(NESTED // gcd(columns, NESTED), (1, 2, 3))


def held(unit: Unit, rows: tuple[int, int], data: Sequence[Buffer], x: Array) -> tuple[float, float] | None:
    """The largest deviation from `x`, rows as stored, and the largest share of its bound.

    Of `parts` the mean is not known that their blocks' largest deviate from. What is stored for it is taken, if all blocks of
    the linear, as they are read, deviate from it by nothing in the mean.

    None if not all of it is finite, or if `data` is not as long as it should be, which the kernel does not look at.
    """
    from qconvd_compressed.kernels import ready

    flat, dtype, kind = np.ascontiguousarray(x).reshape(-1).view(np.uint16), unit.inputs[0].dtype, unit.options["type"]
    most = np.empty(-(-flat.size // CODEBOOK_BLOCK), np.uint16)
    ready("codebook_largest")(flat, CODEBOOK_BLOCK, most)
    largest = as_float32(most.view(x.dtype), dtype)
    if not largest.max(initial=0) < np.inf:
        return None
    codes, found, mean = np.frombuffer(data[0], np.uint8), np.zeros(2, np.float32), None
    if rows[1] - rows[0] < unit.shape[0] and "state" in unit.options:
        mean = offset_of(data)
        if rows[0] == 0 and off_mean(data):
            return None
        first, last = (r * unit.shape[1] for r in rows)
        some = slice(first // CODEBOOK_BLOCK, last // CODEBOOK_BLOCK), slice(first // NESTED * 4, last // NESTED * 4)
        data = [data[0], memoryview(data[1])[some[0]], memoryview(data[2])[some[1]], data[3]]
    read = largest_as_read(unit, data)
    if codes.size != (flat.size + 1) // 2 or read.size != largest.size:
        return None
    numbers = _halves() if dtype == "F16" else np.empty(0, np.float32)
    tables = read, largest, how_coarse(unit, largest, mean), from_nearest(kind)
    ready("codebook_held")(flat, numbers, CODEBOOK_BLOCK, codes, pairs_of(kind), *tables, found.view(np.int32))
    return float(found[0]), float(found[1])


@cache
def _halves() -> Array:
    """The number of every float16."""
    return np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)
