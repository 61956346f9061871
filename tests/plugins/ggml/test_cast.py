"""F32, F16 and BF16 from each other, over every 16-bit pattern and at every rounding boundary."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from gguf import quants

from qconvd_ggml.decode import decode, error_bound
from qconvd_ggml.kernels import encode

PATTERNS = np.arange(1 << 16, dtype=np.uint16).reshape(256, 256)


def boundaries(step: int) -> np.ndarray:
    """Float32 around every point where rounding to 16 bits turns: `step` is the float32 spacing of half a 16-bit step."""
    bits = (np.arange(0, 1 << 32, step, dtype=np.uint64)[:, None] + np.array([-1, 0, 1])).astype(np.uint32).reshape(-1, 3 * 64)
    return bits.view(np.float32)


def test_bf16_rounds_as_the_gguf_package_does() -> None:
    x = boundaries(1 << 15)
    data, _ = encode("BF16", x, "F32")
    assert np.array_equal(data, quants.quantize(x, gguf.GGMLQuantizationType.BF16))


def test_f16_rounds_to_nearest_even_and_nan_stays_nan() -> None:
    x = boundaries(1 << 14)
    data, report = encode("F16", x, "F32")
    with np.errstate(over="ignore", invalid="ignore"):
        expected = x.astype(np.float16)
    got = data.view(np.float16)
    nan = np.isnan(x)
    assert np.array_equal(got[~nan].view(np.uint16), expected[~nan].view(np.uint16))
    assert set(np.unique(got[nan].view(np.uint16))) == {0x7E00, 0xFE00}
    assert report.nan == nan.sum()
    assert report.inf == np.isinf(x).sum()
    assert report.overflows == (np.isinf(expected) & np.isfinite(x)).sum() > 0
    assert report.underflows == ((expected == 0) & (x != 0)).sum() > 0


def test_every_half_and_every_bfloat16_becomes_its_float32() -> None:
    halves, _ = encode("F32", PATTERNS, "F16")
    finite = np.isfinite(PATTERNS.view(np.float16))
    assert np.array_equal(halves.view(np.float32)[finite], PATTERNS.view(np.float16)[finite].astype(np.float32))
    assert np.array_equal(np.isnan(halves.view(np.float32)), np.isnan(PATTERNS.view(np.float16)))
    wide, report = encode("F32", PATTERNS, "BF16")
    assert np.array_equal(wide.view(np.uint32), PATTERNS.astype(np.uint32) << 16)
    assert (report.nan, report.inf, report.max_error) == (254, 2, 0.0)


@pytest.mark.parametrize(("dtype", "source_dtype"), [("F16", "BF16"), ("BF16", "F16")])
def test_between_the_sixteen_bit_types(dtype: str, source_dtype: str) -> None:
    direct, report = encode(dtype, PATTERNS, source_dtype)
    wide, _ = encode("F32", PATTERNS, source_dtype)
    by_way, same = encode(dtype, wide.view(np.float32), "F32")
    assert np.array_equal(direct, by_way)
    assert report == same


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_the_same_type_is_a_copy_even_of_nan(dtype: str) -> None:
    data, report = encode(dtype, PATTERNS, dtype)
    assert np.array_equal(data.view(np.uint16), PATTERNS)
    assert report.max_error == report.overflows == report.underflows == 0
    assert report.nan == (2046 if dtype == "F16" else 254)


def test_f32_is_a_copy_even_of_signalling_nan() -> None:
    x = np.array([[0x7F800001, 0xFFBFFFFF, 0x00000001, 0x80000000]], np.uint32).view(np.float32)
    assert encode("F32", x, "F32")[0].tobytes() == x.tobytes()


@pytest.mark.parametrize("columns", [1, 3, 341, 1023, 1024, 1025])
@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_odd_row_lengths(dtype: str, columns: int) -> None:
    x = np.random.default_rng(columns).standard_normal((3, columns)).astype(np.float32)
    data, report = encode(dtype, x, "F32")
    y = decode(dtype, data, columns)
    assert y.shape == x.shape
    assert (np.abs(y - x) <= error_bound(dtype, x)).all()
    assert report.weights == 3 * columns
    assert report.square == pytest.approx((x.astype(np.float64) ** 2).sum(), rel=1e-6)
    assert report.square_error == pytest.approx(((y.astype(np.float64) - x) ** 2).sum(), rel=1e-6)


def test_what_is_lost_is_counted() -> None:
    x = np.array([[1e6, -1e6, 65504, 65519, 65520, 1e-8, -1e-8, 2.0**-24, 0.0, np.inf, np.nan]], np.float32)
    _, report = encode("F16", x, "F32")
    assert (report.overflows, report.underflows, report.nan, report.inf) == (3, 2, 1, 1)
    assert report.max_error == 15.0
    _, report = encode("BF16", np.array([[3.4e38, -3.4e38, 1e-45, 1.0]], np.float32), "F32")
    assert (report.overflows, report.underflows) == (2, 1)
