"""The grid of a group: its scale, as float16 will store it, and its zero point.

A weight w is stored as q = clamp(rint(w / scale) + zero, 0, levels - 1) and read as (q - zero) * scale. The way the range is
made and shrunk is that of GPTQ's authors (Frantar et al., arXiv 2210.17323): the range contains zero; a symmetric one is
[-largest, largest]; the search takes of 80 ranges, each a hundredth narrower, the one with the least sum of |error| ** norm.

Nothing here is contracted or reordered, so rounding to nearest gives the same bytes on any CPU.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import numba
import numpy as np
from numba import types

from qconvd_gptq.kernels import CACHE

LANES = 64
GRID, SHRINKS = 100, 80
"""Steps that the whole range would have, and how many of them are tried."""
LARGEST, SMALLEST, NORMAL = 65504.0, 2.0**-24, 2.0**-14
"""float16's largest, smallest and smallest normal number."""

Scalar: TypeAlias = Any
Vector: TypeAlias = Any


class Grid(NamedTuple):
    """What a bit width and its options make of a range."""

    levels: int
    """2 ** bits."""
    symmetric: int
    """1 or 0."""
    lowest: int
    """The least zero point that the checkpoint can hold."""


_f32 = types.Array(types.float32, 2, "C", readonly=True)
_row = types.Array(types.float32, 1, "C")
_limit = types.Array(types.float32, 1, "C", readonly=True)
_index = types.Array(types.int64, 1, "C", readonly=True)
_uniform: Any = types.NamedUniTuple
GRID_TYPE = _uniform(types.int64, 3, Grid)
FIND = types.void(_f32, _index, GRID_TYPE, _limit, _row, _row)
SEARCH = types.void(_f32, _index, GRID_TYPE, types.float32, _limit, _row, _row)


def _inline(function: Any) -> Any:
    return numba.njit(error_model="numpy", forceinline=True)(function)


@_inline
def _half(x: Scalar) -> Scalar:
    """`x` > 0 as the nearest float16 that is neither 0 nor infinite."""
    # Dekker's splitting: the upper 11 bits of 24, rounded to nearest.
    c = np.float32(8193.0) * x
    upper = c - (c - x)
    fine = np.rint(x * np.float32(16777216.0)) * np.float32(SMALLEST)
    y = upper if x >= np.float32(NORMAL) else fine
    return min(max(y, np.float32(SMALLEST)), np.float32(LARGEST))


@_inline
def _scale(low: Scalar, high: Scalar, grid: Scalar) -> Scalar:
    """The scale of a range that contains zero."""
    steps = np.float32(grid.levels - 1)
    return _half((high - low) / steps) if high > low else np.float32(NORMAL)


@_inline
def _zero(low: Scalar, scale: Scalar, grid: Scalar) -> Scalar:
    if grid.symmetric:
        return np.float32(grid.levels // 2)
    return min(max(np.rint(-low / scale), np.float32(0.0)), np.float32(grid.levels - 1))


@_inline
def _raised(high: Scalar, scale: Scalar, zero: Scalar, grid: Scalar) -> Scalar:
    """The scale once the zero point was raised to the lowest there may be: one step fewer is left above zero."""
    return _half(max(high / np.float32(grid.levels - 1 - grid.lowest), scale)) if zero < grid.lowest else scale


@_inline
def _range(w: Vector, index: Vector, grid: Scalar, limit: Vector, at: Scalar, low: Vector, high: Vector) -> None:
    """The ranges of a group in LANES rows from row `at` on."""
    lanes = min(LANES, w.shape[1] - at)
    for r in range(lanes):
        low[r] = np.float32(0.0)
        high[r] = np.float32(0.0)
    for i in index:
        for r in range(lanes):
            x = w[i, at + r]
            low[r] = min(low[r], x)
            high[r] = max(high[r], x)
    for r in range(lanes):
        if grid.symmetric:
            high[r] = max(high[r], -low[r])
            low[r] = -high[r]
        low[r] = max(low[r], -limit[at + r])
        high[r] = min(high[r], limit[at + r])


def _find(w: Vector, index: Vector, grid: Scalar, limit: Vector, scale: Vector, zero: Vector) -> None:
    """Scales and zero points of the group that is rows `index` of `w`, one for each of its columns.

    `limit`: how far the range may reach, per column.
    """
    low, high = np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    for at in range(0, w.shape[1], LANES):
        _range(w, index, grid, limit, at, low, high)
        for r in range(min(LANES, w.shape[1] - at)):
            s = _scale(low[r], high[r], grid)
            z = _zero(low[r], s, grid)
            scale[at + r] = _raised(high[r], s, z, grid)
            zero[at + r] = max(z, np.float32(grid.lowest))


find = CACHE.entry(_find, FIND)


@_inline
def _power(x: Scalar, norm: Scalar) -> Scalar:
    """`x` ** `norm` for x >= 0 within a few thousandths, in plain arithmetic: it only has to tell candidates apart."""
    bits = np.float32(max(x, np.float32(1e-30))).view(np.int32)
    exponent = np.float32((bits >> 23) - 127)
    mantissa = np.int32((bits & 0x7FFFFF) | 0x3F800000).view(np.float32)
    # log2 of [1, 2) and 2 ** of [0, 1): polynomials that are exact at both ends.
    m = mantissa - np.float32(1.0)
    log = exponent + m * (np.float32(1.0) + (np.float32(1.0) - m) * (np.float32(0.4426) - np.float32(0.2213) * m))
    y = max(norm * log, np.float32(-126.0))
    whole = np.floor(y)
    f = y - whole
    two = np.float32(1.0) + f * (np.float32(0.69583) + f * (np.float32(0.22606) + f * np.float32(0.07811)))
    return np.int32((np.int32(min(whole, np.float32(126.0))) + 127) << 23).view(np.float32) * two


def _search(w: Vector, index: Vector, grid: Scalar, norm: Scalar, limit: Vector, scale: Vector, zero: Vector) -> None:
    """As `find`, with the range of the least sum of |error| ** norm."""
    low, high = np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    best, error = np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    s, z = np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    steps = np.float32(grid.levels - 1)
    for at in range(0, w.shape[1], LANES):
        lanes = min(LANES, w.shape[1] - at)
        _range(w, index, grid, limit, at, low, high)
        for r in range(lanes):
            best[r] = np.float32(np.inf)
        for shrink in range(SHRINKS):
            p = np.float32(1.0) - np.float32(shrink) / np.float32(GRID)
            for r in range(lanes):
                s[r] = _scale(p * low[r], p * high[r], grid)
                z[r] = _zero(p * low[r], s[r], grid)
                s[r] = _raised(p * high[r], s[r], z[r], grid)
                z[r] = max(z[r], np.float32(grid.lowest))
                error[r] = np.float32(0.0)
            for i in index:
                for r in range(lanes):
                    x = w[i, at + r]
                    q = min(max(np.rint(x / s[r]) + z[r], np.float32(0.0)), steps)
                    d = abs(x - (q - z[r]) * s[r])
                    error[r] += d * d if norm == np.float32(2.0) else _power(d, norm)
            for r in range(lanes):
                better = error[r] < best[r]
                scale[at + r] = s[r] if better else scale[at + r]
                zero[at + r] = z[r] if better else zero[at + r]
                best[r] = error[r] if better else best[r]


search = CACHE.entry(_search, SEARCH)
