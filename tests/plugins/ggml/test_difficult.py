"""Difficult weights with and without an importance matrix: llama.cpp's own bytes, decoded to within the bound."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import quants

from qconvd_ggml.decode import decode, error_bound
from qconvd_ggml.kernels import encode

TYPES = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")


@pytest.fixture(scope="module")
def known(golden: Path) -> dict[str, np.ndarray]:
    with np.load(golden / "ggml_hostile.npz") as file:
        return dict(file)


def cases(known: dict[str, np.ndarray], dtype: str) -> list[tuple[np.ndarray | None, np.ndarray]]:
    weighted = [(importance, known[f"{dtype}.imatrix{i}"]) for i, importance in enumerate(known["importance"])]
    return [(None, known[dtype]), *weighted]


@pytest.mark.parametrize("dtype", TYPES)
def test_difficult_weights_give_llama_cpps_bytes(known: dict[str, np.ndarray], dtype: str) -> None:
    x = known["weights"]
    for importance, expected in cases(known, dtype):
        data, report = encode(dtype, x, "F32", importance=importance)
        assert np.array_equal(data, expected)
        with np.errstate(all="ignore"):
            y = decode(dtype, data, x.shape[1])
            error = np.abs(y.astype(np.float64) - x)
        finite = np.isfinite(y)
        assert report.overflows == (~finite).sum()
        assert report.square_error == pytest.approx((error[finite] ** 2).sum(), rel=1e-5)
        for row in (0, 5, 21):
            assert np.array_equal(encode(dtype, x[row : row + 1], "F32", importance=importance)[0], expected[row : row + 1])


@pytest.mark.parametrize("dtype", TYPES)
def test_decoders_see_what_the_gguf_package_sees(known: dict[str, np.ndarray], dtype: str) -> None:
    for _, data in cases(known, dtype):
        with np.errstate(all="ignore"):
            theirs = quants.dequantize(data, gguf.GGMLQuantizationType[dtype])
            ours = decode(dtype, data, known["weights"].shape[1])
        assert np.array_equal(ours.view(np.uint32), theirs.view(np.uint32))


@pytest.mark.parametrize("dtype", TYPES)
def test_the_bound_holds_for_every_right_encoding(known: dict[str, np.ndarray], dtype: str) -> None:
    x = known["weights"]
    for importance, data in cases(known, dtype):
        with np.errstate(all="ignore"):
            y = decode(dtype, data, x.shape[1]).astype(np.float64)
        bound = error_bound(dtype, x, importance)
        finite = np.isfinite(y)
        assert (np.abs(y - x)[finite] <= bound[finite]).all()
        assert np.isinf(bound[~finite]).all()


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_stay_in_their_super_block(dtype: str, bad: float) -> None:
    """With an importance matrix the legacy types look at the mean square of the row, so there a whole row is spoilt."""
    rng = np.random.default_rng(2)
    x, importance = rng.standard_normal((6, 512)).astype(np.float32), rng.random(512).astype(np.float32)
    for matrix in (None, importance):
        clean, _ = encode(dtype, x, "F32", importance=matrix)
        broken = x.copy()
        broken[2, 300] = broken[5, 0] = bad
        data, report = encode(dtype, broken, "F32", importance=matrix)
        assert np.array_equal(data, encode(dtype, broken, "F32", importance=matrix)[0])
        assert (report.nan, report.inf) == ((2, 0) if np.isnan(bad) else (0, 2))
        keep = np.ones_like(data, bool)
        half = data.shape[1] // 2
        keep[2, half:] = keep[5, :half] = False
        if matrix is not None and not dtype.endswith("_K"):
            keep[2] = keep[5] = False
        assert np.array_equal(data[keep], clean[keep])


@pytest.mark.parametrize("dtype", TYPES)
def test_the_bound_is_not_slack(dtype: str) -> None:
    """Weights of another row or another place, twice as large or gone, must not pass for a right decoding."""
    rng = np.random.default_rng(3)
    x, importance = rng.standard_normal((4, 512)).astype(np.float32), rng.random(512).astype(np.float32) + np.float32(0.1)
    for matrix in (None, importance):
        y = decode(dtype, encode(dtype, x, "F32", importance=matrix)[0], 512)
        bound = error_bound(dtype, x, matrix)
        for wrong in (y * np.float32(2), y[::-1], np.roll(y, 1, axis=1), np.zeros_like(y)):
            assert not (np.abs(wrong - x) <= bound).all()


@pytest.mark.parametrize("dtype", ["Q4_K", "Q2_K", "Q6_K"])
def test_bounds_of_many_rows_take_no_more_memory_than_of_some(dtype: str) -> None:
    x = np.random.default_rng(5).standard_normal((128, 4096), np.float32)
    importance = np.linspace(0.1, 9, 4096).astype(np.float32)
    tracemalloc.start()
    bound = error_bound(dtype, x, importance)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64 << 20, peak
    for row in (0, 15, 16, 127):
        assert np.array_equal(bound[row : row + 1], error_bound(dtype, x[row : row + 1], importance))
