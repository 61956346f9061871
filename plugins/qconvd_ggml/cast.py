"""F32, F16 and BF16 from each other, as ggml's conversions do it: to nearest, ties to even, subnormals kept.

The same type is copied bit for bit. Otherwise a NaN stays a NaN: it becomes 0x7e00 with its sign in F16 (as in ggml's portable
conversion), and keeps its high bits but is made quiet in BF16. What is too large becomes infinite, and is counted; so is
what was not zero and becomes zero.
"""

from __future__ import annotations

import numpy as np

from qconvd_ggml.measure import STEP, UNDERFLOWS, measure
from qconvd_ggml.tile import BF16, F16, LANES, Vector, bf16_bits, bf16_value, f16_bits, f16_value, inline, kernel, widen

TILE = STEP * LANES


@inline
def _count_lost(x: Vector, y: Vector, sums: Vector) -> None:
    lost = 0
    for i in range(TILE):
        lost += 1 if (x[i] != np.float32(0)) & (y[i] == np.float32(0)) else 0
    sums[UNDERFLOWS * LANES] += lost


@inline
def _copy(source: Vector, out: Vector) -> None:
    """What a slice's assignment does, which goes byte by byte and looks for overlaps first."""
    for i in range(TILE):
        out[i] = source[i]


@kernel
def f32(kind: int, narrow: Vector, wide: Vector, out: Vector, groups: int, sums: Vector) -> None:
    """F32 from any: exact. A group is STEP weights, in all three."""
    singles = out.view(np.float32)
    for start in range(0, groups * STEP, TILE):
        x = singles[start : start + TILE]
        widen(kind, narrow, wide, start, TILE, x)
        measure(x, x, sums)


@kernel
def f16(kind: int, narrow: Vector, wide: Vector, out: Vector, groups: int, sums: Vector) -> None:
    """F16 from any."""
    x, y, halves = np.empty(TILE, np.float32), np.empty(TILE, np.float32), out.view(np.uint16)
    for start in range(0, groups * STEP, TILE):
        widen(kind, narrow, wide, start, TILE, x)
        bits = halves[start : start + TILE]
        for i in range(TILE):
            half = f16_bits(x[i])
            bits[i] = half
            y[i] = f16_value(half)
        if kind == F16:
            _copy(narrow[start : start + TILE], bits)
        _count_lost(x, y, sums)
        measure(x, y, sums)


@kernel
def bf16(kind: int, narrow: Vector, wide: Vector, out: Vector, groups: int, sums: Vector) -> None:
    """BF16 from any."""
    x, y, halves = np.empty(TILE, np.float32), np.empty(TILE, np.float32), out.view(np.uint16)
    for start in range(0, groups * STEP, TILE):
        widen(kind, narrow, wide, start, TILE, x)
        bits = halves[start : start + TILE]
        for i in range(TILE):
            half = bf16_bits(x[i])
            bits[i] = half
            y[i] = bf16_value(half)
        if kind == BF16:
            _copy(narrow[start : start + TILE], bits)
        _count_lost(x, y, sums)
        measure(x, y, sums)
