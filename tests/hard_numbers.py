"""Numbers at which casts are likely to be wrong."""

from __future__ import annotations

from typing import Any

import numpy as np


def hard_float32() -> np.ndarray[Any, Any]:
    """Every exponent with mantissas around every rounding border of float16 and bfloat16, both signs, and NaN."""
    borders = {0, 1, 2, 0x7FFFFF, 0x400000}
    for bit in range(23):
        borders |= {(1 << bit) + d for d in (-1, 0, 1)} | {(3 << bit) + d for d in (-1, 0, 1)} | {0x7FFFFF ^ ((1 << bit) - 1)}
    mantissas = np.array(sorted(b & 0x7FFFFF for b in borders), np.uint32)
    exponents = np.arange(256, dtype=np.uint32) << 23
    bits = (exponents[:, None] | mantissas[None, :]).reshape(-1)
    random = np.random.default_rng(0).integers(0, 2**32, 300_000, dtype=np.uint32)
    return np.concatenate([bits, bits | 0x80000000, random]).view(np.float32)
