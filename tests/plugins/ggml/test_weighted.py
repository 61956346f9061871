"""Encoding with an importance matrix: llama.cpp's own bytes, and what is said of a matrix that does not fit."""

from __future__ import annotations

import numpy as np
import pytest

from qconvd.api import Unsupported
from qconvd_ggml import kernels
from qconvd_ggml.decode import decode, error_bound
from qconvd_ggml.kernels import encode

from .halves import single

TYPES = tuple(dtype for dtype, entry in kernels._ENTRIES.items() if entry.weighted is not None)


@pytest.mark.parametrize("dtype", [*TYPES, "Q8_0"])
def test_bf16_and_f32_give_llama_cpps_bytes(blocks: dict[str, np.ndarray], dtype: str) -> None:
    bf16, importance = blocks["weights_bf16"], blocks["imatrix"].copy()
    importance.flags.writeable = False
    for source_dtype, x in (("BF16", bf16), ("F32", single(bf16))):
        data, report = encode(dtype, x, source_dtype, importance=importance)
        assert np.array_equal(data, blocks[f"{dtype}.imatrix"]), source_dtype
        error = decode(dtype, data, 1024).astype(np.float64) - single(bf16)
        assert report.square_error == pytest.approx((error**2).sum(), rel=1e-5)


@pytest.mark.parametrize("dtype", TYPES)
def test_the_matrix_matters_and_any_division_into_rows_gives_the_same_bytes(blocks: dict[str, np.ndarray], dtype: str) -> None:
    x, importance, expected = blocks["weights_bf16"], blocks["imatrix"], blocks[f"{dtype}.imatrix"]
    if dtype in blocks:
        assert not np.array_equal(blocks[dtype], expected)
    for rows in (0, 1, 2, 5, 11):
        assert np.array_equal(encode(dtype, x[:rows], "BF16", importance=importance)[0], expected[:rows])
    many = encode(dtype, np.tile(x, (5, 1))[:59], "BF16", importance=importance)[0]
    assert np.array_equal(many, np.tile(expected, (5, 1))[:59])


@pytest.mark.parametrize("dtype", TYPES)
def test_rows_that_no_tile_divides(blocks: dict[str, np.ndarray], dtype: str) -> None:
    """Each row by itself gives the bytes that it has among others: its own columns, its own mean square."""
    x = single(blocks["weights_bf16"])[:, :768]
    x = x * np.logspace(-2, 2, 12, dtype=np.float32)[:, None]
    importance = blocks["imatrix"][256:]
    together, _ = encode(dtype, x, "F32", importance=importance)
    for row, expected in enumerate(together):
        assert np.array_equal(encode(dtype, x[row : row + 1], "F32", importance=importance)[0][0], expected)


@pytest.mark.parametrize("dtype", TYPES)
def test_golden_bytes_decode_to_within_the_bound(blocks: dict[str, np.ndarray], dtype: str) -> None:
    x, importance = single(blocks["weights_bf16"]), blocks["imatrix"]
    y = decode(dtype, blocks[f"{dtype}.imatrix"], 1024).astype(np.float64)
    bound = error_bound(dtype, x, importance)
    assert (np.abs(y - x) <= bound).all()
    if dtype.startswith(("IQ1", "IQ2", "IQ3")):  # Single weights may rightly be anywhere near: decode_lattice.py.
        for wrong in (y * 200, np.full_like(y, 8)):
            assert not (np.abs(wrong - x) <= bound).all()
        return
    # And no other: of another row, another scale, or nothing.
    for wrong in (y[::-1], y * 2, np.zeros_like(y)):
        assert not (np.abs(wrong - x) <= bound).all()


def test_a_matrix_that_does_not_fit_is_refused(blocks: dict[str, np.ndarray]) -> None:
    x, importance = blocks["weights_bf16"], blocks["imatrix"]
    with pytest.raises(Unsupported, match=r"of shape \(512,\) does not fit rows of 1024 weights") as error:
        encode("Q4_0", x, "BF16", importance=importance[:512])
    assert "made with this very model" in error.value.fix
    with pytest.raises(TypeError, match="importance comes as float32, not as float64"):
        encode("Q4_0", x, "BF16", importance=importance.astype(np.float64))
    for bad in (np.nan, np.inf, -1.0):
        wrong = importance.copy()
        wrong[700] = bad
        # Q8_0 has no use for the matrix, but a broken one is a mistake all the same.
        for dtype in ("Q4_0", "Q8_0"):
            with pytest.raises(Unsupported, match=rf"the importance matrix says {bad} of column 700") as error:
                encode(dtype, x, "BF16", importance=wrong)
            assert "finite, and not negative" in error.value.fix


def test_a_type_that_needs_a_matrix_says_so(monkeypatch: pytest.MonkeyPatch, blocks: dict[str, np.ndarray]) -> None:
    monkeypatch.setitem(kernels._ENTRIES, "IQ2_XXS", kernels.Entry(None, 32, kernels._KERNELS["Q4_0.imatrix"]))
    with pytest.raises(Unsupported, match="IQ2_XXS cannot be made without an importance matrix") as error:
        encode("IQ2_XXS", blocks["weights_bf16"], "BF16")
    assert "imatrix file" in error.value.fix
