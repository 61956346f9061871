"""The casts against torch, for every 16-bit pattern and for the hard float32 values."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch

from hard_numbers import hard_float32
from qconvd_fp16.casts import CHUNK, STORED, cast

TORCH = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
CHANGES = [("BF16", "F16"), ("F32", "F16"), ("F32", "BF16"), ("F16", "BF16"), ("F16", "F32")]
BITS = {8: np.uint64, 4: np.uint32, 2: np.uint16}


def torch_cast(x: np.ndarray[Any, Any], source: str, target: str) -> np.ndarray[Any, Any]:
    """Bits that torch makes."""
    signed = {8: np.int64, 4: np.int32, 2: np.int16}
    tensor = torch.from_numpy(x.view(signed[x.itemsize]).copy()).view(TORCH[source]).to(TORCH[target])
    back = {8: torch.int64, 4: torch.int32, 2: torch.int16}
    result = tensor.view(back[tensor.element_size()]).numpy()
    return result.view(BITS[result.itemsize])


def is_nan(bits: np.ndarray[Any, Any], dtype: str) -> np.ndarray[Any, Any]:
    infinite = {"F64": 0x7FF0 << 48, "F32": 0x7F800000, "F16": 0x7C00, "BF16": 0x7F80}[dtype]
    sign = 1 << (bits.itemsize * 8 - 1)
    return (bits & bits.dtype.type(sign - 1)) > infinite


@pytest.mark.parametrize(("source", "target"), list(itertools.product(("F16", "BF16"), ("F16", "BF16", "F32"))))
def test_every_16_bit_pattern_becomes_what_torch_makes_of_it(source: str, target: str) -> None:
    bits = np.arange(65536, dtype=np.uint16)
    x = bits.view(STORED[source])
    expected = torch_cast(bits, source, target)
    out, report = cast(x, source, target)
    ours = out.view(BITS[out.itemsize])
    nan = is_nan(bits, source)
    assert np.array_equal(ours[~nan], expected[~nan])
    assert is_nan(ours[nan], target).all()
    assert report.nan == nan.sum()
    assert report.inf == 2
    assert report.weights == 65536


@pytest.mark.parametrize("target", ["F16", "BF16", "F32"])
def test_hard_float32_values_become_what_torch_makes_of_them(target: str) -> None:
    x = hard_float32()
    assert x.size > CHUNK
    bits = x.view(np.uint32)
    out, report = cast(x, "F32", target)
    ours = out.view(BITS[out.itemsize])
    nan = is_nan(bits, "F32")
    assert np.array_equal(ours[~nan], torch_cast(x, "F32", target)[~nan])
    assert is_nan(ours[nan], target).all()
    assert report.nan == nan.sum()


@pytest.mark.parametrize("target", ["F16", "BF16", "F32"])
def test_float64_goes_through_float32_as_in_torch(target: str) -> None:
    hard = np.array([1 + 2**-11 + 2**-40, 65520 - 1e-9, 2**-25 + 2**-60, 1e300, -1e300, np.inf, np.nan, 1e-310, 0.1, -0.0])
    out, report = cast(hard, "F64", target)
    ours = out.view(BITS[out.itemsize])
    expected = torch_cast(hard, "F64", target)
    assert np.array_equal(np.delete(ours, 6), np.delete(expected, 6))
    assert is_nan(ours[6:7], target).all()
    assert (report.nan, report.inf) == (1, 1)
    assert report.overflows == (3 if target == "F16" else 2)


@pytest.mark.parametrize(("source", "target"), CHANGES)
def test_the_report_agrees_with_float64_arithmetic(source: str, target: str) -> None:
    rng = np.random.default_rng(1)
    values = (rng.standard_normal(CHUNK + 999) * np.exp(rng.uniform(-20, 9, CHUNK + 999))).astype(np.float32)
    x = cast(values, "F32", source)[0]
    out, report = cast(x, source, target)
    with np.errstate(invalid="ignore"):
        before = cast(x, source, "F32")[0].astype(np.float64)
        after = cast(out, target, "F32")[0].astype(np.float64)
        difference = after - before
    finite = np.isfinite(before)
    difference = difference[finite & np.isfinite(after)]
    assert report.overflows == (finite & np.isinf(after)).sum()
    assert report.underflows == ((before != 0) & (after == 0)).sum()
    assert report.inf == np.isinf(before).sum()
    assert report.square == pytest.approx((before[finite] ** 2).sum(), rel=1e-5)
    assert report.square_error == pytest.approx((difference**2).sum(), rel=1e-5)
    assert report.max_error == pytest.approx(np.abs(difference).max(), rel=1e-6)


def test_losses_are_counted_one_by_one() -> None:
    x = np.array([65503, 65519.99, 65520, -1e6, np.inf, -np.inf, np.nan, 0, 2**-24, 2**-25, -(2**-26), 1e-40], np.float32)
    out, report = cast(x, "F32", "F16")
    assert (report.overflows, report.underflows, report.nan, report.inf) == (2, 3, 1, 2)
    assert out[:4].tolist() == [65504, 65504, np.inf, -np.inf]


@pytest.mark.parametrize("source", ["F64", "F32", "BF16"])
def test_clamp_keeps_finite_numbers_finite(source: str) -> None:
    values = np.array([1.5, 1e6, -1e30, np.inf, -np.inf, np.nan], np.float64)
    x = values if source == "F64" else cast(values.astype(np.float32), "F32", source)[0]
    out, report = cast(x, source, "F16", clamp=True)
    assert out[:5].tolist() == [1.5, 65504, -65504, np.inf, -np.inf]
    assert np.isnan(out[5])
    assert report.overflows == 2


def test_clamp_to_bfloat16_and_to_float32() -> None:
    most = float(np.finfo(np.float32).max)
    out, report = cast(np.array([most, -most], np.float32), "F32", "BF16", clamp=True)
    assert out.tolist() == [0x7F7F, 0xFF7F]
    assert report.overflows == 2
    assert cast(np.array([1e300, -1e300]), "F64", "F32", clamp=True)[0].tolist() == [most, -most]


def test_nan_keeps_sign_and_payload_and_becomes_quiet() -> None:
    x = np.array([0x7F802001, 0xFFC02000], np.uint32).view(np.float32)
    assert cast(x, "F32", "F16")[0].view(np.uint16).tolist() == [0x7E01, 0xFE01]
    assert cast(x, "F32", "BF16")[0].tolist() == [0x7FC0, 0xFFC0]
    halves = np.array([0x7C01, 0xFE03], np.uint16).view(np.float16)
    assert cast(halves, "F16", "F32")[0].view(np.uint32).tolist() == [0x7FC02000, 0xFFC06000]


def test_a_copy_is_no_copy_and_inputs_may_be_read_only() -> None:
    x = np.arange(12, dtype=np.float16).reshape(3, 4)
    x.flags.writeable = False
    assert np.shares_memory(cast(x, "F16", "F16")[0], x)
    assert cast(x, "F16", "F32")[0].tolist() == list(range(12))
    assert cast(np.empty((0, 4), np.float16), "F16", "BF16")[0].size == 0
