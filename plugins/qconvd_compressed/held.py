"""Weights of bitsandbytes' types held against the model in one go.

With double quantization a linear is verified whole, for which `decode` and `bound` would take long and much memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np

from qconvd.api import Array, Buffer, Unit, as_float32
from qconvd_compressed.bounds import from_nearest, how_coarse
from qconvd_compressed.decoder import largest_as_read, pairs_of
from qconvd_compressed.schemes import CODEBOOK_BLOCK


def held(unit: Unit, data: Sequence[Buffer], x: Array) -> tuple[float, float] | None:
    """The largest deviation from `x`, rows as stored, and the largest share of its bound.

    None if not all of it is finite, or if `data` is not as long as it should be, which the kernel does not look at.
    """
    from qconvd_compressed.kernels import ready

    flat, dtype, kind = np.ascontiguousarray(x).reshape(-1).view(np.uint16), unit.inputs[0].dtype, unit.options["type"]
    most = np.empty(-(-flat.size // CODEBOOK_BLOCK), np.uint16)
    ready("codebook_largest")(flat, CODEBOOK_BLOCK, most)
    largest = as_float32(most.view(x.dtype), dtype)
    if not largest.max(initial=0) < np.inf:
        return None
    codes, read, found = np.frombuffer(data[0], np.uint8), largest_as_read(unit, data), np.zeros(2, np.float32)
    if codes.size != (flat.size + 1) // 2 or read.size != largest.size:
        return None
    numbers = _halves() if dtype == "F16" else np.empty(0, np.float32)
    tables = read, largest, how_coarse(unit, largest), from_nearest(kind)
    ready("codebook_held")(flat, numbers, CODEBOOK_BLOCK, codes, pairs_of(kind), *tables, found.view(np.int32))
    return float(found[0]), float(found[1])


@cache
def _halves() -> Array:
    """The number of every float16."""
    return np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)
