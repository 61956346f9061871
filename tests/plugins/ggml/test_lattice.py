"""The lattices: against the gguf package's grids, and their neighbour lists against a sort of all points."""

from __future__ import annotations

from itertools import groupby

import numba
import numpy as np
import pytest
from gguf import quants

from qconvd_ggml.closest import LONGEST, search
from qconvd_ggml.lattice import CHUNK, Lattice, lattice, point_levels

DISTANCES = {"IQ2_XXS": 2, "IQ2_XS": 2, "IQ2_S": 1, "IQ1_S": 3, "IQ3_XXS": 2, "IQ3_S": 3}


def members(found: Lattice, number: int) -> np.ndarray:
    start = int(found.chunks[number]) * CHUNK
    return found.near[start : start + int(found.counts[number])]


@pytest.mark.parametrize("dtype", DISTANCES)
def test_points_are_those_of_the_gguf_package(dtype: str) -> None:
    kind = getattr(quants, dtype)
    kind.init_grid()
    _, levels = np.unique(kind.grid, return_inverse=True)
    assert np.array_equal(levels.reshape(point_levels(dtype).shape), point_levels(dtype))


@pytest.mark.parametrize("dtype", DISTANCES)
def test_lists_hold_the_nearest_points_in_ggmls_order(dtype: str) -> None:
    found, levels = lattice(dtype), point_levels(dtype).astype(int)
    width, bits, steps = (4, 3, 8) if dtype.startswith("IQ3") else (8, 2, 3)
    rng = np.random.default_rng(0)
    lists = 0
    for place in rng.integers(0, steps, (60, width)):
        code = int((place << bits * np.arange(width)).sum())
        distances = ((levels - place) ** 2).sum(axis=1)
        here = int(found.places[code])
        if here >= 0:
            assert distances[here] == 0
            continue
        lists += 1
        order = sorted((int(d), j) for j, d in enumerate(distances))
        nearest = [list(group) for _, group in groupby(order, key=lambda pair: pair[0])][: DISTANCES[dtype]]
        assert members(found, -1 - here).tolist() == [j for group in nearest for _, j in group]
    assert lists > 10


@pytest.mark.parametrize("dtype", DISTANCES)
def test_coordinates_are_those_of_the_listed_points(dtype: str) -> None:
    found, levels = lattice(dtype), point_levels(dtype)
    width = levels.shape[1]
    assert found.counts.max() <= LONGEST
    assert np.array_equal(found.points.reshape(-1, width), 2 * levels + 1)
    table = found.coordinates.reshape(-1, width, CHUNK).transpose(0, 2, 1).reshape(-1, width)
    assert np.array_equal(table, 2 * levels[found.near] + 1)


def test_the_quick_choice_is_never_another_than_the_exact_one() -> None:
    """Weights at which two points are equally good or nearly so, and ordinary ones: none may be decided wrongly."""
    found = lattice("IQ2_XS")
    prepare, choose, exact = search(8)

    # Building blocks cannot be called from Python; what is made of them can.
    @numba.njit(error_model="numpy")
    def both(number, x, w, s, a, b, wx):  # type: ignore[no-untyped-def]
        count, chunk = np.int64(found_counts[number]), np.int64(found_chunks[number])
        c = prepare(coordinates, chunk, count, np.float32(0), x, w, wx, a, b)
        quick = choose(a, b, count, c, s)
        return quick, exact(points, near, chunk, count, np.float32(0), x, w, s)

    found_counts, found_chunks = found.counts, found.chunks
    coordinates, points, near = found.coordinates, found.points, found.near
    rng = np.random.default_rng(1)
    room = [np.empty(n, np.float32) for n in (LONGEST, LONGEST, 8)]
    open_ones = 0
    for trial in range(3000):
        number = int(rng.integers(len(found.counts)))
        ids = members(found, number)
        one, other = found.points.reshape(-1, 8)[rng.choice(ids, 2)].astype(np.float64)
        middle = (one + other) / 2 * 0.3 + rng.standard_normal(8) * rng.choice([0, 1e-7, 1e-6, 1e-4, 0.1])
        x, w = middle.astype(np.float32), rng.random(8).astype(np.float32)
        w *= rng.choice([0, 1, 1], 8) if trial % 3 == 0 else 1
        quick, right = both(number, x, w, np.float32(0.3), *room)
        open_ones += quick < 0
        assert quick in (-1, right), trial
    assert 100 < open_ones < 2500
