"""What an error counts when there is an importance matrix: importance * sqrt(mean square of the neighbourhood + x²).

The importance of a column is the mean square of what it was multiplied with while the model ran on a text (llama.cpp's
imatrix). The neighbourhood is the row for the legacy types and the super-block for the K types; some count its mean square
twice. All sums are taken in float32, one weight after the other, as ggml takes them.
"""

from __future__ import annotations

import numpy as np

from qconvd_ggml.tile import LANES, Importance, Scalar, Vector, inline, load_importance, shared, squares_kernel, widen

_AT_ONCE = 8
"""Rows whose sums run side by side: each is a chain of additions that wait for one another."""
_PART = 512


@squares_kernel
def squares(kind: int, narrow: Vector, wide: Vector, columns: int, sums: Vector) -> None:
    """The sum of the squares of each row."""
    rows = sums.size
    part = np.zeros(_AT_ONCE * _PART, np.float32)
    for first in range(0, rows, _AT_ONCE):
        count = min(_AT_ONCE, rows - first)
        s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = np.float32(0)
        for start in range(0, columns, _PART):
            length = min(_PART, columns - start)
            for r in range(count):
                at = (first + r) * columns + start
                _square(kind, narrow, wide, at, length, part[r * _PART : (r + 1) * _PART])
            for i in range(length):
                s0 += part[i]
                s1 += part[_PART + i]
                s2 += part[2 * _PART + i]
                s3 += part[3 * _PART + i]
                s4 += part[4 * _PART + i]
                s5 += part[5 * _PART + i]
                s6 += part[6 * _PART + i]
                s7 += part[7 * _PART + i]
        found = (s0, s1, s2, s3, s4, s5, s6, s7)
        for r in range(count):
            sums[first + r] = found[r]


@inline
def _square(kind: Scalar, narrow: Vector, wide: Vector, at: Scalar, length: Scalar, out: Vector) -> None:
    widen(kind, narrow, wide, at, length, out)
    for i in range(length):
        out[i] *= out[i]


@shared
def row_mean_squares(importance: Importance, start: Scalar, width: Scalar, mean: Vector) -> None:
    """Fill, per lane, the mean square of the row that the call's group `start + lane` lies in."""
    squares, columns = importance.squares, importance.columns
    for lane in range(LANES):
        mean[lane] = squares[(importance.first + start + lane) * width // columns] / np.float32(columns)


@shared
def weigh(x: Vector, mean_square: Vector, width: Scalar, w: Vector) -> None:
    """Turn the importance in tile `w` into what errors count; `mean_square` is one per lane."""
    for j in range(width):
        for lane in range(LANES):
            v = x[j * LANES + lane]
            w[j * LANES + lane] *= np.sqrt(mean_square[lane] + v * v)


@inline
def weigh_by_super_block(
    x: Vector, scratch: Vector, importance: Importance, start: Scalar, groups: Scalar, width: Scalar, factor: Scalar,
    mean: Vector, w: Vector,
) -> None:  # fmt: skip
    """Fill tile `w` with what errors count in super-blocks of `groups` lanes: x² if there is no importance matrix.

    `factor` is what the sum of a super-block's squares is multiplied with, `scratch` is room for a tile, and `mean` for one
    number per lane. Not for the K types: there ggml multiplies and divides, which overflows sooner.
    """
    if importance.values.size == 0:
        for i in range(width * LANES):
            w[i] = x[i] * x[i]
        return
    super_block_squares(x, groups, width, mean)
    for lane in range(LANES):
        mean[lane] *= factor
    load_importance(importance, start, width, scratch, w)
    weigh(x, mean, width, w)


@shared
def super_block_squares(x: Vector, groups: Scalar, width: Scalar, sums: Vector) -> None:
    """Fill, per lane, the sum of the squares of its super-block of `groups` lanes, in the order of its weights."""
    blocks = LANES // groups
    for lane in range(LANES):
        sums[lane] = np.float32(0)
    # The sums of the tile's super-blocks run side by side in the first lanes.
    for k in range(groups):
        for j in range(width):
            for block in range(blocks):
                v = x[j * LANES + block * groups + k]
                sums[block] += v * v
    for block in range(blocks - 1, -1, -1):
        total = sums[block]
        for k in range(groups):
            sums[block * groups + k] = total
