"""L D L^T against float64, at sizes around those at which it is divided."""

from __future__ import annotations

import numpy as np
import pytest

from qconvd_gptq.factor import BLOCK, CORNER, factored, inverse_of
from qconvd_gptq.kernels import ready

SIZES = [1, 2, CORNER - 1, CORNER, CORNER + 1, 2 * CORNER, 2 * CORNER + 1, 3 * CORNER, BLOCK - 1, BLOCK + 1, 2 * BLOCK + CORNER]


def definite(size: int) -> np.ndarray:
    rng = np.random.default_rng(size)
    x = rng.standard_normal((2 * size + 3, size), np.float32) * np.exp(rng.standard_normal(size, np.float32))
    return x.T @ x


@pytest.mark.parametrize("size", SIZES)
def test_it_is_that_of_float64(size: int) -> None:
    h = definite(size)
    a, pivots = np.tril(h), np.empty(size, np.float32)
    # What is above the diagonal counts for nothing, and is zero afterwards.
    a[np.triu_indices(size, 1)] = 0 if size > BLOCK else 7
    assert factored(a, pivots)
    lower = np.linalg.cholesky(h.astype(np.float64))
    np.testing.assert_allclose(pivots, lower.diagonal() ** 2, rtol=1e-4)
    np.testing.assert_allclose(a, lower / lower.diagonal(), rtol=0, atol=2e-3)
    wide = a.astype(np.float64)
    assert np.abs((wide * pivots) @ wide.T - h).max() < 3e-6 * h.max()
    assert not np.triu(a, 1).any() and (a.diagonal() == 1).all()


@pytest.mark.parametrize("size", SIZES)
def test_the_inverse_of_a_unit_lower_triangle(size: int) -> None:
    a = np.tril(np.random.default_rng(size).standard_normal((size, size), np.float32) / np.float32(size**0.5), -1)
    a[np.diag_indices(size)] = 1
    whole = np.zeros((2 * size, 3 * size), np.float32)
    whole[:size, :size] = a
    inverse = inverse_of(whole[:size, :size])  # part of something larger, as groups are
    assert not np.triu(inverse, 1).any()
    np.testing.assert_allclose(inverse @ a, np.eye(size), atol=1e-5 * np.abs(inverse).max() * size**0.5)


@pytest.mark.parametrize("at", [0, CORNER - 1, CORNER, BLOCK - 1, BLOCK, BLOCK + CORNER])
@pytest.mark.parametrize("value", [0.0, -1.0, np.nan, np.inf])
def test_there_is_none_where_a_pivot_is_not_above_zero(at: int, value: float) -> None:
    h = definite(2 * BLOCK)
    h[at, at] = value
    assert not factored(h, np.empty(len(h), np.float32))


def test_columns_are_ordered_and_damped_and_those_without_activations_stand_alone() -> None:
    h = definite(100)
    h[40] = h[:, 40] = 0
    order = np.random.default_rng(0).permutation(100)
    out = np.full((100, 100), 7, np.float32)
    ready("ordered")(h, order, np.float32(0.5), np.float32(9), out)
    wanted = np.tril(h[np.ix_(order, order)])
    wanted[np.diag_indices(100)] = np.where(h.diagonal()[order] > 0, h.diagonal()[order] + np.float32(0.5), 9)
    np.testing.assert_array_equal(out, wanted)
