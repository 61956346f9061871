"""What a manifest says rounding to nearest would have cost."""

from __future__ import annotations

import numpy as np
import pytest

from gptq_linears import hessian, output_error, weights
from qconvd_gptq.beside import ROWS, nearest_error
from qconvd_gptq.solve import Grid, Weights, nearest, solve


@pytest.mark.parametrize(("rows", "within"), [(50, 0.003), (ROWS * 5, 0.1)])
@pytest.mark.parametrize("bits", [2, 4])
def test_it_is_what_rounding_gives(rows: int, within: float, bits: int) -> None:
    """Exactly so for a linear with few rows, but for what damping adds; else about."""
    w = weights(rows, 192) * np.exp(0.3 * np.random.default_rng(5).standard_normal((rows, 1))).astype(np.float32)
    h, grid = hessian(192), Grid(bits, 32)
    solved = solve(Weights(w), h, grid, order="desc_act", damp=1e-4)
    told = nearest_error(Weights(w), solved, h, grid)
    assert told == pytest.approx(output_error(w, nearest(Weights(w), grid).dequantized(), h), rel=within)
    assert told > 1.2 * solved.output_error


def test_weights_that_are_no_numbers_do_not_matter() -> None:
    w = weights(16, 64)
    w[3, 4] = np.nan
    h, grid = hessian(64), Grid(4, 32)
    assert nearest_error(Weights(w), solve(Weights(w), h, grid), h, grid) > 0


def test_where_nothing_is_wrong_there_is_nothing_to_compare() -> None:
    w, h, grid = np.zeros((8, 64), np.float32), hessian(64), Grid(4, 32)
    assert nearest_error(Weights(w), solve(Weights(w), h, grid), h, grid) == 0
