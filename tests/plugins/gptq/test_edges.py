"""What a solver must stand: dead columns, singular Hessians, NaN, weights and scales at the ends of float16, short groups."""

from __future__ import annotations

import numpy as np
import pytest

from gptq_linears import hessian, output_error, read, weights
from qconvd.api import Hessian, QconvdError
from qconvd_gptq.factor import factor
from qconvd_gptq.pack import pack
from qconvd_gptq.solve import Grid, Weights, nearest, solve

W = weights(64, 128)
GRID = Grid(4, 32)


def test_a_dead_column_is_rounded_to_nearest_and_feeds_nothing_back() -> None:
    array = hessian(128).array.copy()
    dead = [3, 64, 127]
    array[dead, :] = array[:, dead] = 0
    solved = solve(Weights(W), Hessian(array, 512), GRID)
    rounded = nearest(Weights(W), GRID)
    assert np.array_equal(solved.codes[dead], rounded.codes[dead])
    assert factor(Hessian(array.copy(), 512), "activation", 0.01, "w").dead == 3
    codes = []
    for share in (0.1, 0.05):
        small = W.copy()
        small[:, dead] *= np.float32(share)
        codes.append(solve(Weights(small), Hessian(array.copy(), 512), GRID).codes)
    alive = np.setdiff1d(np.arange(128), dead)
    assert np.array_equal(codes[0][alive], codes[1][alive])


def test_no_activations_at_all_are_rounding_to_nearest() -> None:
    solved = solve(Weights(W), Hessian(np.zeros((128, 128), np.float32), 0), GRID)
    assert np.array_equal(solved.codes, nearest(Weights(W), GRID).codes)


@pytest.mark.parametrize("damp", [0.0, 0.01])
def test_a_singular_hessian_is_damped_until_it_can_be_factored(damp: float) -> None:
    x = np.random.default_rng(0).standard_normal((5, 128)).astype(np.float32)
    h = Hessian(x.T @ x, 5)
    solved = solve(Weights(W), h, GRID, damp=damp)
    assert solved.damp >= max(damp, 1e-3)
    assert output_error(W, solved.dequantized(), h) < 0.1 * output_error(W, nearest(Weights(W), GRID).dequantized(), h)


def test_what_cannot_be_factored_at_all_is_named() -> None:
    indefinite = -np.eye(128, dtype=np.float32) * 1e6
    indefinite[0, 0] = 1
    indefinite[1, 2] = indefinite[2, 1] = 1e9
    with pytest.raises(QconvdError) as caught:
        solve(Weights(W), Hessian(indefinite, 1), GRID, where="model.layers.3.mlp.up_proj.weight")
    assert str(caught.value) == (
        "model.layers.3.mlp.up_proj.weight: the Hessian cannot be factored, even with 1 of its mean diagonal added\n"
        "  calibrate with more text, or take `method: rtn`"
    )


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_activations_that_are_not_finite_are_refused_by_name(wrong: float) -> None:
    array = hessian(128).array.copy()
    array[5, 6] = array[6, 5] = wrong
    with pytest.raises(QconvdError) as caught:
        solve(Weights(W), Hessian(array, 512), GRID, where="model.layers.0.mlp.down_proj.weight")
    assert str(caught.value).splitlines() == [
        "model.layers.0.mlp.down_proj.weight: the activations that calibration saw are not finite (NaN or infinite)",
        "  the model overflows on the calibration text; calibrate with other text, or take `method: rtn`",
    ]


def test_weights_that_are_not_finite_are_counted_and_harm_no_other_row() -> None:
    odd = W.copy()
    odd[3, 7], odd[5, 9] = np.nan, np.inf
    solved, right = solve(Weights(odd), hessian(128), GRID), solve(Weights(W), hessian(128), GRID)
    others = np.setdiff1d(np.arange(64), [3, 5])
    assert (solved.report.nan, solved.report.inf) == (1, 1)
    assert np.array_equal(solved.codes[:, others], right.codes[:, others])
    assert np.isfinite(solved.dequantized()).all()


def test_a_factorisation_is_made_once_for_all_who_share_it() -> None:
    h = hessian(128)
    made = factor(h, "activation", 0.01, "q")
    assert factor(h, "activation", 0.01, "k") is made
    assert factor(h, "none", 0.01, "k") is not made
    assert factor(h, "activation", 0.02, "k") is not made


@pytest.mark.parametrize("factor_", [1e-8, 1e-4, 1e6, 3e7])
@pytest.mark.parametrize("symmetric", [True, False])
def test_scales_stay_within_float16(factor_: float, symmetric: bool) -> None:
    w = W * np.float32(factor_)
    solved = nearest(Weights(w), Grid(4, 32, symmetric))
    scales = solved.scales.astype(np.float64)
    assert ((scales >= 2.0**-24) & (scales <= 65504)).all()
    if factor_ > 1e7:
        assert solved.report.overflows > 0
        assert (scales == 65504).any()
    else:
        assert solved.report.overflows == 0


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_zero_points_can_be_stored_less_one_and_nothing_is_lost_beyond_a_step(bits: int) -> None:
    """Weights that are all positive have a zero point of 0, which less one would wrap into its neighbours."""
    w = np.abs(W) + np.float32(0.001)
    v1, v2 = (nearest(Weights(w), Grid(bits, 32, False, lowest)) for lowest in (1, 0))
    assert v1.zeros.min() == 1
    assert v2.zeros.min() == 0
    found = read(pack(v1, bits, 1), bits, "gptq")
    step = v1.scales.astype(np.float32)[v1.g_idx].T
    assert (np.abs(found.astype(np.float32) - w) <= 0.51 * step + 2**bits * step * 2**-10).all()


def test_a_group_of_zeros_stays_zero() -> None:
    w = W.copy()
    w[:, 32:64] = 0
    assert not nearest(Weights(w), GRID).dequantized()[:, 32:64].any()


@pytest.mark.parametrize("order", ["none", "static", "desc_act"])
def test_a_short_last_group_is_solved_as_well(order: str) -> None:
    w, h = weights(32, 192), hessian(192)
    solved = solve(Weights(w), h, Grid(4, 128), order=order)  # type: ignore[arg-type]
    assert solved.scales.shape == (2, 32)
    assert np.bincount(solved.g_idx).tolist() == [128, 64]
    assert output_error(w, solved.dequantized(), h) < 0.7 * output_error(w, nearest(Weights(w), Grid(4, 128)).dequantized(), h)


@pytest.mark.parametrize("norm", [2.0, 2.4])
@pytest.mark.parametrize("bits", [2, 4])
def test_a_searched_range_has_less_error_of_that_norm(bits: int, norm: float) -> None:
    plain, searched = nearest(Weights(W), Grid(bits, 64)), nearest(Weights(W), Grid(bits, 64, norm=norm))
    error = [(np.abs(s.dequantized().astype(np.float64) - W) ** norm).sum() for s in (plain, searched)]
    assert error[1] < (0.8 if bits == 2 else 0.97) * error[0]


def test_rows_are_solved_alike_whatever_stands_beside_them() -> None:
    w, h = weights(1100, 64), hessian(64)
    whole = solve(Weights(w), h, GRID)
    part = solve(Weights(w[1024:]), h, GRID)
    assert np.mean(whole.codes[:, 1024:] == part.codes) > 0.999
    assert whole.output_error == pytest.approx(output_error(w, whole.dequantized(), damped(h)), rel=1e-2)


def damped(h: Hessian) -> Hessian:
    array = h.array.copy()
    array[np.diag_indices(len(array))] += 0.01 * array.diagonal().mean()
    return Hessian(array, h.tokens)
