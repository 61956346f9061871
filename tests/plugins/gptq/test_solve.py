"""The solver: against the plain algorithm in float64, against rounding to nearest, and at its edges."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gptq_linears import hessian, output_error, read, weights
from qconvd.api import Hessian, QconvdError
from qconvd_gptq import parts
from qconvd_gptq.pack import pack
from qconvd_gptq.solve import ActOrder, Grid, Solved, Weights, nearest, solve

W = weights(72, 192)
H = hessian(192)


def grid_of(group: NDArray[Any], grid: Grid) -> tuple[NDArray[Any], NDArray[Any]]:
    """Scales and zero points of a (rows, columns) group, as the authors of GPTQ find them, scales in float16."""
    low, high = np.minimum(group.min(1), 0), np.maximum(group.max(1), 0)
    most = 2**grid.bits - 1
    if grid.symmetric:
        high = np.maximum(high, -low)
        low = -high
    scale = ((high - low) / most).astype(np.float16).astype(np.float64)
    if grid.symmetric:
        return scale, np.full_like(scale, 2 ** (grid.bits - 1))
    zero = np.round(-low / scale)
    raised = zero < grid.lowest_zero
    least = np.maximum(high / (most - grid.lowest_zero), scale).astype(np.float16).astype(np.float64)
    return np.where(raised, least, scale), np.maximum(zero, grid.lowest_zero)


def plain(w: NDArray[Any], h: Hessian, grid: Grid, order: ActOrder, damp: float = 0.01) -> NDArray[Any]:
    """GPTQ as published, one column after the other, in float64: Cholesky, inverse, Cholesky."""
    w, array = w.astype(np.float64), h.array.astype(np.float64)
    columns, size = w.shape[1], grid.group_size if grid.group_size > 0 else w.shape[1]
    solved = np.arange(columns) if order == "none" else np.argsort(-array.diagonal(), kind="stable")
    array = array[np.ix_(solved, solved)]
    array[np.diag_indices(columns)] += damp * array.diagonal().mean()
    upper = np.linalg.cholesky(np.linalg.inv(array)).T
    dynamic = order == "none" or (order == "desc_act" and grid.group_size > 0)
    fixed = [grid_of(w[:, g : g + size], grid) for g in range(0, columns, size)]
    w, out = w[:, solved], np.empty_like(w)
    for i in range(columns):
        if not dynamic:
            scale, zero = fixed[solved[i] // size]
        elif i % size == 0:
            scale, zero = grid_of(w[:, i : i + size], grid)
        q = (np.clip(np.round(w[:, i] / scale) + zero, 0, 2**grid.bits - 1) - zero) * scale
        out[:, solved[i]] = q
        w[:, i:] -= ((w[:, i] - q) / upper[i, i])[:, None] * upper[i, i:]
    return out


@pytest.mark.parametrize("group", [32, 64, 128, -1])
@pytest.mark.parametrize("order", ["none", "static", "desc_act"])
@pytest.mark.parametrize(("bits", "symmetric"), [(2, True), (3, False), (4, True), (4, False), (8, True)])
def test_it_is_as_good_as_the_plain_algorithm(bits: int, symmetric: bool, order: ActOrder, group: int) -> None:
    grid = Grid(bits, group, symmetric)
    mine = output_error(W, solve(Weights(W), H, grid, order=order).dequantized(), H)
    theirs = output_error(W, plain(W, H, grid, order).astype(np.float16), H)
    assert mine == pytest.approx(theirs, rel=1e-3)


@pytest.mark.parametrize("order", ["none", "static", "desc_act"])
@pytest.mark.parametrize(("columns", "group"), [(700, 32), (700, 8), (1100, 128), (1100, 600), (513, -1)])
def test_so_it_is_where_feedback_crosses_blocks(columns: int, group: int, order: ActOrder) -> None:
    w, h, grid = weights(40, columns), hessian(columns), Grid(4, group)
    ours = output_error(w, solve(Weights(w), h, grid, order=order, rounded=False).dequantized(), h)
    assert ours == pytest.approx(output_error(w, plain(w, h, grid, order).astype(np.float16), h), rel=2e-3)


@pytest.mark.parametrize("order", ["none", "static", "desc_act"])
@pytest.mark.parametrize(("columns", "group"), [(700, 32), (1100, 600), (513, -1)])
def test_feedback_in_bfloat16_is_as_good(monkeypatch: pytest.MonkeyPatch, columns: int, group: int, order: ActOrder) -> None:
    monkeypatch.setattr("qconvd_gptq.solve.bfloat16_pays", lambda: True)
    w, h, grid = weights(300, columns), hessian(columns), Grid(4, group)
    made = [solve(Weights(w), h, grid, order=order, rounded=rounded) for rounded in (True, False)]
    assert (made[0].codes != made[1].codes).any()
    errors = [output_error(w, each.dequantized(), h) for each in made]
    # Codes differ, so errors do by chance.
    assert errors[0] == pytest.approx(errors[1], rel=5e-3)
    assert made[0].output_error == pytest.approx(made[1].output_error, rel=5e-3)


@pytest.mark.filterwarnings("error")
def test_what_a_hessian_looks_like_in_memory_makes_no_difference() -> None:
    h = Hessian(np.asfortranarray(H.array), H.tokens)
    np.testing.assert_array_equal(solve(Weights(W), h, Grid(4, 64)).codes, solve(Weights(W), H, Grid(4, 64)).codes)
    large = Hessian(H.array * np.float32(1e38 / H.array.max()), H.tokens)
    np.testing.assert_allclose(
        solve(Weights(W), large, Grid(4, 64)).codes.mean(), solve(Weights(W), H, Grid(4, 64)).codes.mean()
    )


def test_rounding_to_nearest_has_no_output_error_whatever_is_lost() -> None:
    huge = W.copy()
    huge[3, 5] = 1e30
    assert nearest(Weights(huge), Grid(4, 64)).output_error == 0


@pytest.mark.parametrize("order", ["none", "static", "desc_act"])
def test_integers_are_the_plain_algorithms_but_for_ties(order: ActOrder) -> None:
    grid = Grid(3, 32)
    found, expected = solve(Weights(W), H, grid, order=order).dequantized(), plain(W, H, grid, order).astype(np.float16)
    # A tie that falls the other way changes what comes after it in that row, and no other row.
    assert (found == expected).all(axis=1).mean() > 0.9


def every() -> list[tuple[int, int, bool, ActOrder, int]]:
    orders: tuple[ActOrder, ...] = ("none", "static", "desc_act")
    return list(itertools.product((2, 3, 4, 8), (32, 64, 128, -1), (True, False), orders, (0, 1)))


def test_what_is_read_is_what_was_solved_to_the_last_bit_for_every_combination() -> None:
    for bits, group, symmetric, order, less in every():
        solved = solve(Weights(W[:32]), H, Grid(bits, group, symmetric, less), order=order)
        packed = pack(solved, bits, less)
        found = read(packed, bits, "gptq" if less else "gptq_v2")
        assert np.array_equal(found, solved.dequantized()), (bits, group, symmetric, order, less)
        shuffled = not np.array_equal(solved.g_idx, np.arange(192) // (group if group > 0 else 192))
        assert shuffled == (order == "desc_act" and group > 0)


def error(solved: Solved) -> float:
    return output_error(W, solved.dequantized(), H)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_it_beats_rounding_to_nearest_and_smaller_groups_are_at_least_as_good(bits: int, symmetric: bool) -> None:
    errors = []
    for group in (32, 64, -1):
        grid = Grid(bits, group, symmetric)
        errors.append(error(solve(Weights(W), H, grid)))
        assert errors[-1] < 0.7 * error(nearest(Weights(W), grid))
    assert errors == sorted(errors)


def test_a_hessian_of_another_size_is_refused() -> None:
    with pytest.raises(QconvdError) as caught:
        solve(Weights(W), hessian(64), Grid(4, 32), where="model.layers.0.q")
    assert str(caught.value) == "model.layers.0.q: has 192 columns, its statistics have 64"


def test_the_number_of_threads_makes_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    """Large products are cut the same way however many threads take them."""
    monkeypatch.setattr(parts, "WORTH", 1 << 18)
    random = np.random.default_rng(3)
    x = random.standard_normal((700, 1300)).astype(np.float32)
    made = []
    for threads in ("1", "3"):
        monkeypatch.setenv("NUMBA_NUM_THREADS", threads)
        parts._pool.cache_clear()
        made.append(solve(Weights(weights(600, 1300)), Hessian(x.T @ x, 700), Grid(4, 32), damp=0.05))
    assert parts._pool.cache_info().currsize == 1
    assert np.array_equal(made[0].codes, made[1].codes)
    assert made[0].output_error == made[1].output_error
