"""Weights as integers with a scale per row or group of a row.

A weight w is stored as q = clamp(rint(w / scale + zero), -levels / 2, levels / 2 - 1) and read as (q - zero) * scale. Scales
and zero points are those of compressed-tensors (`calculate_qparams`): a symmetric grid has the scale largest / ((levels - 1) /
2), an asymmetric one (high - low) / (levels - 1), and every step of computing them is rounded to the weights' own type. The
search takes of ranges that are narrower by 0 to 19 hundredths, as llm-compressor's observers do, the one of the least square
error.

LLM.int8() (Dettmers et al., arXiv 2208.07339) has the scale largest / 127, kept as the row's largest in float32.
"""

from __future__ import annotations

import numpy as np
from numba import types

from qconvd_compressed.kernels import CACHE
from qconvd_compressed.kernels.halves import (
    BYTES,
    HALVES,
    LANES,
    ROWS,
    SIGNED,
    SINGLES,
    SUMS,
    Scalar,
    Vector,
    epsilon,
    highest,
    inline,
    largest,
    lowest,
    rounded,
    single,
    stored,
    tally,
    widen,
)  # fmt: skip

SHRINKS, GRID = 20, 100
"""How many narrower ranges are tried, each by one part in GRID."""

INTEGERS = types.void(
    ROWS, types.int64, types.int64, types.int64, types.int64, types.int64, types.int64, BYTES, HALVES, SIGNED, SUMS
)
LLM_INT8 = types.void(ROWS, types.int64, SIGNED, SINGLES, SUMS)


@inline
def _grid(low: Scalar, high: Scalar, half: Scalar, levels: Scalar, symmetric: Scalar) -> Scalar:
    """(scale, zero) of a range; `low` <= 0 <= `high`."""
    lowest_code, most = np.float32(-(levels // 2)), np.float32(levels // 2 - 1)
    if symmetric:
        scale = rounded(max(high, -low) / (np.float32(levels - 1) / np.float32(2.0)), half)
        return (scale if scale > np.float32(0.0) else epsilon(half)), np.float32(0.0)
    scale = rounded(rounded(high - low, half) / np.float32(levels - 1), half)
    if not scale > np.float32(0.0):
        return epsilon(half), (most if low < np.float32(0.0) else np.float32(0.0))
    zero = rounded(lowest_code - rounded(low / scale, half), half)
    return scale, np.rint(min(max(zero, lowest_code), most))


@inline
def _square_error(x: Vector, scale: Scalar, zero: Scalar, levels: Scalar, parts: Vector, squares: Vector) -> Scalar:
    low, most = np.float32(-(levels // 2)), np.float32(levels // 2 - 1)
    parts[:] = np.float32(0.0)
    whole = x.size // LANES * LANES
    # Apart from the sums, whose lanes LLVM would unroll into single numbers, and this with them.
    for i in range(x.size):
        d = (min(max(np.rint(x[i] / scale + zero), low), most) - zero) * scale - x[i]
        squares[i] = d * d
    for at in range(0, whole, LANES):
        part = squares[at : at + LANES]
        for lane in range(LANES):
            parts[lane] += part[lane]
    for i in range(whole, x.size):
        parts[0] += squares[i]
    error = np.float32(0.0)
    for lane in range(LANES):
        error += parts[lane]
    return error


@inline
def _searched(
    x: Vector, low: Scalar, high: Scalar, half: Scalar, levels: Scalar, symmetric: Scalar, parts: Vector, squares: Vector
) -> Scalar:
    """(scale, zero) of the best range. `squares`: scratch, as long as `x`."""
    best = np.float32(np.inf)
    scale, zero = np.float32(0.0), np.float32(0.0)
    for shrink in range(SHRINKS):
        p = np.float32(1.0 - shrink / GRID)
        s, z = _grid(rounded(low * p, half), rounded(high * p, half), half, levels, symmetric)
        error = _square_error(x, s, z, levels, parts, squares)
        if error < best or shrink == 0:
            best, scale, zero = error, s, z
    return scale, zero


def _integers(
    x: Vector, half: Scalar, bits: Scalar, group: Scalar, symmetric: Scalar, search: Scalar, packed: Scalar,
    out: Vector, scales: Vector, zeros: Vector, sums: Vector,
) -> None:  # fmt: skip
    """`x`: (rows, columns). `out`: codes as signed bytes; `packed`: plus levels / 2, at 4 bits two in a byte, the first low.

    `scales` and `zeros`: (rows, groups), scales as bits of the weights' type.
    """
    rows, columns = x.shape
    levels = 1 << bits
    low_code, most = np.float32(-(levels // 2)), np.float32(levels // 2 - 1)
    w, y = np.empty(columns, np.float32), np.empty(columns, np.float32)
    codes, parts = np.empty(columns, np.int8), np.empty((3, LANES), np.float32)
    for r in range(rows):
        widen(x[r], half, w, sums)
        for g in range(scales.shape[1]):
            start, stop = g * group, min(columns, (g + 1) * group)
            raw, v = x[r, start:stop], w[start:stop]
            if symmetric:
                high = single(largest(raw, half), half)
                low = -high
            else:
                low, high = -single(lowest(raw, half), half), single(highest(raw, half), half)
            if search:
                s, z = _searched(v, low, high, half, levels, symmetric, parts[0], y[start:stop])
            else:
                s, z = _grid(low, high, half, levels, symmetric)
            scales[r, g] = stored(s, half)
            zeros[r, g] = np.int8(z)
            # Slices: of what begins at `start`, the compiler does not see that no place is below zero.
            code, read = codes[start:stop], y[start:stop]
            for i in range(v.size):
                q = min(max(np.rint(v[i] / s + z), low_code), most)
                code[i] = np.int8(q)
                read[i] = (q - z) * s
        tally(w, y, parts, sums)
        if packed and bits == 4:
            for i in range(out.shape[1]):
                out[r, i] = np.uint8(codes[2 * i] + 8) | np.uint8(np.uint8(codes[2 * i + 1] + 8) << 4)
        else:
            offset = np.uint8(128 if packed else 0)
            for i in range(columns):
                out[r, i] = np.uint8(codes[i]) ^ offset


integers = CACHE.entry(_integers, INTEGERS)


def _llm_int8(x: Vector, half: Scalar, out: Vector, largest_of: Vector, sums: Vector) -> None:
    """`x`: (rows, columns). `out`: the codes; `largest_of`: (rows,), the greatest magnitude of each row."""
    rows, columns = x.shape
    w, y = np.empty(columns, np.float32), np.empty(columns, np.float32)
    parts = np.empty((3, LANES), np.float32)
    for r in range(rows):
        widen(x[r], half, w, sums)
        most = single(largest(x[r], half), half)
        # In this order, as bitsandbytes computes it.
        up = np.float32(1.0) / most * np.float32(127.0) if most > np.float32(0.0) else np.float32(0.0)
        down = most / np.float32(127.0)
        for i in range(columns):
            q = np.rint(w[i] * up)
            out[r, i] = np.int8(q)
            y[i] = q * down
        largest_of[r] = most
        tally(w, y, parts, sums)


llm_int8 = CACHE.entry(_llm_int8, LLM_INT8)
