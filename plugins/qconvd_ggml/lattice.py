"""The points that IQ1, IQ2 and IQ3 may place groups of weights on, and which of them are near to any other place.

lattices.npz holds the points as they stand in ggml-quants.c (kgrid_2bit_256, _512, _1024, kgrid_1bit_2048, kgrid_256,
kgrid_512): one number per point, made of its coordinates, 2 bits each for groups of 8 weights, 3 bits for groups of 4, the
first weight lowest. Everything else is derived here when a type is first used, in some tens of milliseconds (iq2xs_init_impl,
iq3xs_init_impl). IQ1_M shares the points of IQ1_S.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

CHUNK = 16
"""Points of a list that are looked at side by side."""
_DISTANCES = {"IQ2_XXS": 2, "IQ2_XS": 2, "IQ2_S": 1, "IQ1_S": 3, "IQ3_XXS": 2, "IQ3_S": 3}
"""How many different distances from a place the points in its list have."""


class Lattice(NamedTuple):
    """A place is written as a code, like the points in the file. Coordinates are given as 2 * level + 1, as ggml has them."""

    points: NDArray[np.int8]
    """Coordinates, one point after the other, flat."""
    places: NDArray[np.int32]
    """By code: the point that is there, or -1 - (the place's list)."""
    chunks: NDArray[np.int32]
    """By list: its first chunk of CHUNK entries."""
    counts: NDArray[np.int32]
    """By list: its points."""
    near: NDArray[np.uint16]
    """The points of all lists, each sorted by distance, then by number, and filled up to whole chunks with zeros."""
    coordinates: NDArray[np.int8]
    """Those of `near`, chunk by chunk: the first coordinates of a chunk, then its second ones, and so on."""


@cache
def lattice(dtype: str) -> Lattice:
    """The lattice of IQ2_XXS, IQ2_XS, IQ2_S, IQ1_S, IQ3_XXS or IQ3_S."""
    levels = point_levels(dtype)
    bits, steps = (2, 3) if levels.shape[1] == 8 else (3, 8)
    places, near, counts = _neighbours(levels, bits, steps, _DISTANCES[dtype])
    chunks = -(-counts // CHUNK)
    first = np.cumsum(chunks) - chunks
    padded = np.zeros(int(chunks.sum()) * CHUNK, np.uint16)
    padded[np.arange(len(near)) + np.repeat(first * CHUNK - (np.cumsum(counts) - counts), counts)] = near
    points = (2 * levels + 1).astype(np.int8)
    coordinates = points[padded].reshape(-1, CHUNK, levels.shape[1]).transpose(0, 2, 1)
    return Lattice(
        points.reshape(-1), places, first.astype(np.int32), counts.astype(np.int32), padded,
        np.ascontiguousarray(coordinates).reshape(-1),
    )  # fmt: skip


@cache
def point_levels(dtype: str) -> NDArray[np.uint8]:
    """The levels (0, 1, 2 or 0 … 7) of a lattice's points: (points, 8 or 4)."""
    with np.load(Path(__file__).with_name("lattices.npz")) as file:
        codes = file[dtype].astype(np.uint32)
    bits, width = (3, 4) if dtype.startswith("IQ3") else (2, 8)
    levels: NDArray[np.uint8] = (codes[:, None] >> bits * np.arange(width, dtype=np.uint32) & (1 << bits) - 1).astype(np.uint8)
    return levels


def _neighbours(
    levels: NDArray[np.uint8], bits: int, steps: int, distances: int
) -> tuple[NDArray[np.int32], NDArray[np.uint16], NDArray[np.intp]]:
    """`places` and `near` of a lattice, and the lists' lengths."""
    half = levels.shape[1] // 2
    halves = np.indices((steps,) * half).reshape(half, -1).T[:, ::-1]
    shifts = bits * np.arange(half)
    low = (halves << shifts).sum(axis=1)
    codes = (low[:, None] << bits * half | low[None, :]).reshape(-1)

    def square(part: NDArray[np.uint8]) -> NDArray[np.uint8]:
        distance: NDArray[np.uint8] = ((halves[:, None, :] - part[None].astype(np.int64)) ** 2).sum(axis=2).astype(np.uint8)
        return distance

    far = square(levels[:, half:])[:, None, :] + square(levels[:, :half])[None, :, :]
    far = far.reshape(len(codes), len(levels))
    least = far.min(axis=1, keepdims=True)
    off = np.flatnonzero(least[:, 0])
    places = np.full(1 << 2 * bits * half, -1, np.int32)
    on = np.flatnonzero(least[:, 0] == 0)
    places[codes[on]] = far[on].argmin(axis=1)
    places[codes[off]] = -1 - np.arange(len(off))
    far, limit = far[off], least[off]
    for _ in range(distances - 1):
        limit = np.where(far > limit, far, 255).min(axis=1, keepdims=True)
    rows, points = np.nonzero(far <= limit)
    order = np.argsort(rows * 256 + far[rows, points], kind="stable")
    return places, points[order].astype(np.uint16), np.bincount(rows, minlength=len(off))
