"""How far a decoded weight may be from the model's. Shares nothing with the encoder."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from qconvd.api import Array, Buffer, Unit
from qconvd_compressed.decoder import FP4, NF4, moving_point, offset_of
from qconvd_compressed.schemes import CODEBOOK_BLOCK, NESTED_BLOCK

Doubles: TypeAlias = Any
"""An array of float64."""
NARROWEST = 0.8
"""What the search leaves of a range at least."""
LEAST = 2e-38
"""Somewhat above what bitsandbytes takes for the least that a block of weights or of scales is divided by."""
BLOCKS_AT_ONCE = 1 << 10
"""Blocks of a codebook's types that are looked at together: what numpy makes on the way stays in the cache."""
WIDEST = float(np.diff(moving_point()).max() / 2 * (1 + 2.0**-10))
"""How far a number of at most 1 is from the nearest of double quantization's 256; a weight is that of its block at most."""
PARTS = 1 << 10
"""Parts of [0, 1] for which distances from a type's numbers are looked up: they fit in the first-level cache."""


def bound(unit: Unit, x: Array) -> Array:
    """Per weight of `x`, float32 (rows, columns)."""
    if in_float32 := {"codebook": _codebook, "floats": _floats}.get(unit.options["scheme"]):
        return in_float32(unit, x)
    w = np.nan_to_num(x.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    how = {"integers": _integers, "llm_int8": _llm_int8}[unit.options["scheme"]]
    # Decoding computes in float32.
    return (how(unit, w) + np.abs(w) * 2.0**-22 + 1e-44).astype(np.float32)


def nearest(x: Doubles, dtype: str) -> Doubles:
    """Positive numbers as the nearest F16 or BF16, which a scale is stored as."""
    digits, least = (11, -14) if dtype == "F16" else (8, -126)
    _, exponent = np.frexp(x)
    step = np.ldexp(1.0, np.maximum(exponent - 1, least) - (digits - 1))
    return np.rint(x / step) * step


def _integers(unit: Unit, w: Doubles) -> Doubles:
    options: Any = unit.options
    bits, width, dtype = int(options["bits"]), int(options["group_size"]), unit.outputs[1].dtype
    groups = w.reshape(len(w), -1, width)
    half = 2 ** (bits - 1)
    if options["symmetric"]:
        scale = nearest(np.abs(groups).max(axis=2, keepdims=True) / (half - 0.5), dtype)
        # Beyond the outermost code nothing is rounded: what is left is the difference. The search may leave more of it.
        most = scale * (NARROWEST * (1 - 2.0**-6) if options["search"] else 1)
        rest = np.maximum(groups - most * (half - 1), -groups - most * half)
        return np.maximum(scale * 0.5, rest).reshape(w.shape)
    low, high = np.minimum(groups.min(axis=2, keepdims=True), 0), np.maximum(groups.max(axis=2, keepdims=True), 0)
    # The difference and its part are both rounded; the zero point is rounded to a whole step, and before that as it is stored.
    scale = nearest(nearest(high - low, dtype) / (2 * half - 1), dtype)
    least = scale * (NARROWEST * (1 - 2.0**-5) if options["search"] else 1)
    # A subnormal scale is off by more than its last digit: by half of the least number, for every step of the range.
    least_number = 2.0**-24 if dtype == "F16" else 2.0**-133
    slack = scale * (0.5 + (2 * half - 1) * 2.0**-7) + half * least_number
    reach_up, reach_down = high * NARROWEST if options["search"] else high, low * NARROWEST if options["search"] else low
    inside = (groups < reach_up - slack - least * 0.5) & (groups > reach_down + slack + least * 0.5)
    outside = np.maximum(groups - reach_up, reach_down - groups)
    return np.where(inside, scale * 0.5, np.maximum(outside, 0) + slack + scale * 0.5).reshape(w.shape)


def _floats(unit: Unit, x: Array) -> Array:
    """In float32 and in place: of blocks, whole bands of 128 rows are compared. What that rounds is in the last line."""
    height, width = int(unit.options["height"]), int(unit.options["width"])
    size = np.abs(x).astype(np.float32, copy=False)
    if not size.max(initial=0) < np.inf:
        size[~np.isfinite(size)] = 0
    found = np.empty_like(size)
    for first in range(0, len(size), height):
        band, half = size[first : first + height], found[first : first + height]
        largest = band.max(axis=0).reshape(-1, width).max(axis=1)
        scale = np.repeat(nearest(largest.astype(np.float64) / 448, unit.outputs[1].dtype), width).astype(np.float32)
        # Three bits after the point: half a unit in the last place is a sixteenth of the power of two; steps end at 2^-9.
        np.divide(band, np.where(scale > 0, scale, np.float32(1)), out=half)
        half.view(np.int32)[...] &= 0x7F800000
        np.maximum(half, np.float32(2.0**-6), out=half)
        half *= scale * np.float32(2.0**-4)
        np.maximum(half, band - scale * np.float32(448), out=half)
    size *= np.float32(2.0**-22)
    size += np.float32(1e-44)
    found += size
    return found


def _llm_int8(unit: Unit, w: Doubles) -> Doubles:  # noqa: ARG001
    return np.abs(w).max(axis=1, keepdims=True) / 254 * np.ones_like(w)


def _codebook(unit: Unit, x: Array) -> Array:
    flat = np.ascontiguousarray(x, np.float32).reshape(-1)
    found, largest = np.empty_like(flat), np.empty(-(-flat.size // CODEBOOK_BLOCK), np.float32)
    parts = [(b, b * CODEBOOK_BLOCK) for b in range(0, largest.size, BLOCKS_AT_ONCE)]
    for block, start in parts:
        w = np.abs(_finite(flat[start : start + BLOCKS_AT_ONCE * CODEBOOK_BLOCK]))
        largest[block : block + BLOCKS_AT_ONCE] = np.maximum.reduceat(w, np.arange(0, w.size, CODEBOOK_BLOCK))
    coarse, off = how_coarse(unit, largest), from_nearest(unit.options["type"])
    for block, start in parts:
        w, some = _finite(flat[start : start + BLOCKS_AT_ONCE * CODEBOOK_BLOCK]), slice(block, block + BLOCKS_AT_ONCE)
        size, apart = (np.repeat(a[some], CODEBOOK_BLOCK)[: w.size] for a in (largest, coarse))
        # Of tiny weights the reciprocal would be infinite.
        up = np.where(size < 1e-30, np.float32(2.0**64), np.float32(1))
        place = np.rint(w * up * (np.float32(PARTS) / np.where(size > 0, size * up, np.float32(1))))
        off_nearest = off[place.clip(-PARTS, PARTS).astype(np.int32) + PARTS]
        found[start : start + w.size] = off_nearest * size + apart + (np.abs(w) * np.float32(2.0**-22) + np.float32(1e-44))
    return found.reshape(x.shape)


def _finite(x: Array) -> Array:
    return np.nan_to_num(x, nan=0.0, posinf=0.0, neginf=0.0)


def how_coarse(unit: Unit, largest: NDArray[np.float32], mean: float | None = None) -> NDArray[np.float32]:
    """How far what is read as the largest of a block may be from it.

    With double quantization `largest` are those of all blocks of the linear, or of whole nested blocks, and `mean` that of all.
    """
    coarse = np.zeros(largest.size, np.float32)
    if "state" in unit.options:
        moved = np.zeros(-(-largest.size // NESTED_BLOCK) * NESTED_BLOCK)
        moved[: largest.size] = np.abs(largest - (largest.mean(dtype=np.float64) if mean is None else mean))
        widest = np.repeat(moved.reshape(-1, NESTED_BLOCK).max(axis=1), NESTED_BLOCK)[: largest.size]
        coarse = (widest * WIDEST).astype(np.float32)
    # What is so small that nothing can be divided by it is read as anything up to it.
    coarse += np.where(largest < LEAST, largest, np.float32(0))
    return coarse


def off_mean(data: Sequence[Buffer]) -> bool:
    """Whether blocks' largest, as they are stored by double quantization, deviate in the mean from what is stored for it.

    Of what was rounded to the nearest the mean is off by less than what is rounded at most.
    """
    codes, scales = np.frombuffer(data[1], np.uint8), np.frombuffer(data[2], "<f4").astype(np.float64)
    counts = np.full(scales.size, NESTED_BLOCK)
    counts[-1:] = codes.size - NESTED_BLOCK * (scales.size - 1)
    deviations = np.add.reduceat(moving_point()[codes], np.arange(0, codes.size, NESTED_BLOCK))
    # What is stored for the mean was rounded to a float32.
    most = np.abs(counts * scales).sum() * WIDEST + codes.size * abs(offset_of(data)) * 2.0**-20
    return not abs((deviations * scales).sum()) <= most


@cache
def from_nearest(name: str) -> NDArray[np.float32]:
    """By the part of [-1, 1] that a number is in, how far it is from the nearest of a type at most."""
    table = np.sort(np.unique(np.array(NF4 if name == "nf4" else FP4)))
    x = np.arange(-PARTS, PARTS + 1) / PARTS
    above = np.searchsorted(table, x).clip(1, len(table) - 1)
    low, high = table[above - 1], table[above]
    # Half a part, and what the digits of the tables and the reciprocal of the largest leave open.
    off: NDArray[np.float32] = (np.minimum(x - low, high - x) + 0.51 / PARTS).astype(np.float32)
    return off
