"""The lattices: against the gguf package's grids, and their neighbour lists against a sort of all points."""

from __future__ import annotations

from itertools import groupby

import numba
import numpy as np
import pytest
from gguf import quants

from qconvd_ggml.closest import LONGEST, address, search
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


class Choice:
    """The quick choice and the exact one on one lattice. Building blocks cannot be called from Python."""

    def __init__(self, dtype: str, *, moved: bool = False) -> None:
        self.lattice, self.shift = lattice(dtype), np.float32(0.125 if moved else 0)
        self.width = self.lattice.points.size // len(point_levels(dtype))
        prepare, choose, exact = search(self.width, moved=moved)
        chunk_size, second = self.width * CHUNK, 4 * LONGEST

        @numba.njit(error_model="numpy")
        def both(lattice, number, x, w, s, shift, room):  # type: ignore[no-untyped-def]
            count, chunk = np.int64(lattice.counts[number]), np.int64(lattice.chunks[number])
            first = address(lattice.coordinates) + chunk * chunk_size
            a, b = address(room), address(room) + second
            c = prepare(first, count, shift, address(x), address(w), a, b)
            return choose(a, b, count, c, s), exact(lattice.points, lattice.near, chunk, count, shift, x, w, 0, s)

        self._both, self._room = both, np.empty(2 * LONGEST, np.float32)

    def __call__(self, number: int, x: np.ndarray, w: np.ndarray, s: float) -> tuple[int, int]:
        found: tuple[int, int] = self._both(self.lattice, number, x, w, np.float32(s), self.shift, self._room)
        return found


@pytest.mark.parametrize(("dtype", "moved"), [("IQ2_XS", False), ("IQ3_S", False), ("IQ1_S", True)])
def test_the_quick_choice_is_never_another_than_the_exact_one(dtype: str, moved: bool) -> None:
    """Weights at which two points are equally good or nearly so, and ordinary ones: none may be decided wrongly.

    What is chosen at two scales is chosen at all between them.
    """
    choice = Choice(dtype, moved=moved)
    width, points = choice.width, choice.lattice.points.reshape(-1, choice.width).astype(np.float64)
    rng = np.random.default_rng(1)
    open_ones = alike = 0
    for trial in range(3000):
        number = int(rng.integers(len(choice.lattice.counts)))
        one, other = points[rng.choice(members(choice.lattice, number), 2)]
        middle = (one + other) / 2
        middle = ((middle - 3) / 2 + choice.shift if moved else middle) * 0.3
        middle += rng.standard_normal(width) * rng.choice([0, 1e-7, 1e-6, 1e-4, 0.1])
        x, w = middle.astype(np.float32), rng.random(width).astype(np.float32)
        w *= rng.choice([0, 1, 1], width) if trial % 3 == 0 else 1
        quick, right = choice(number, x, w, 0.3)
        open_ones += quick < 0
        assert quick in (-1, right), trial
        low, high = 0.3 * (1 - 0.3 * rng.random()), 0.3 * (1 + 0.3 * rng.random())
        ends = {choice(number, x, w, s)[0] for s in (low, high)}
        if len(ends) == 1 and -1 not in ends:
            alike += 1
            assert {choice(number, x, w, s)[1] for s in np.linspace(low, high, 12)} == ends, trial
    assert 100 < open_ones < 2500
    assert alike > 100
