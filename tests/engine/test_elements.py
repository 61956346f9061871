"""Conversions between element types, held against torch's and against exact rational arithmetic."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qconvd.engine import elements
from qconvd.engine.elements import cast, matrix, not_finite, numpy_dtype, to_float32
from qconvd.errors import Unsupported

BF16 = np.arange(1 << 16, dtype=np.uint16)


def test_every_bf16_value_is_its_float32() -> None:
    expected = torch.from_numpy(BF16.view(np.int16)).view(torch.bfloat16).to(torch.float32).numpy()
    np.testing.assert_array_equal(cast(BF16, "BF16", "F32").view(np.uint32), expected.view(np.uint32))
    np.testing.assert_array_equal(to_float32(BF16, "BF16"), expected)


def test_every_f16_becomes_the_right_bf16() -> None:
    x = BF16.view(np.float16)
    expected = torch.from_numpy(x.copy()).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
    found = cast(x, "F16", "BF16")
    numbers = ~np.isnan(x)
    np.testing.assert_array_equal(found[numbers], expected[numbers])
    assert np.isnan(cast(found[~numbers], "BF16", "F32")).all()


def test_every_bf16_becomes_the_right_f16() -> None:
    expected = torch.from_numpy(BF16.view(np.int16)).view(torch.bfloat16).to(torch.float16).numpy()
    np.testing.assert_array_equal(cast(BF16, "BF16", "F16"), expected)


def test_sixteen_bits_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(elements, "IN_CACHE", 1000)  # of which 65,536 is no multiple
    parts = np.ascontiguousarray(BF16.reshape(256, 256).T)
    np.testing.assert_array_equal(cast(parts, "BF16", "F16"), cast(BF16, "BF16", "F16").reshape(256, 256).T)
    for dtype, exponent in (("BF16", 0x7F80), ("F16", 0x7C00)):
        odd = int(np.greater(BF16 & 0x7FFF, exponent).sum())
        assert not_finite(parts.view(np.float16) if dtype == "F16" else parts, dtype) == (odd, 2)
    assert not_finite(np.zeros(0, np.uint16), "BF16") == (0, 0)
    assert not_finite(np.array([np.nan, -np.inf, 1, np.inf], np.float32), "F32") == (1, 2)


@settings(max_examples=400, deadline=None)
@given(st.integers(0, 2**64 - 1))
def test_float64_is_rounded_once(bits: int) -> None:
    x = np.array([bits], np.uint64).view(np.float64)
    found = cast(cast(x, "F64", "BF16"), "BF16", "F64")[0]
    if np.isnan(x[0]):
        assert np.isnan(found)
        return
    assert found == nearest(float(x[0]))


def test_a_double_rounding_trap() -> None:
    """1 + 2^-8 + 2^-40 lies above the middle of two bfloat16; float32 in between would round it onto the middle, then down."""
    assert cast(np.array([1 + 2.0**-8 + 2.0**-40]), "F64", "BF16").tolist() == [0x3F81]
    assert cast(np.array([1 + 2.0**-8]), "F64", "BF16").tolist() == [0x3F80]
    assert cast(np.array([2**62 + 2**54 + 1]), "I64", "BF16").tolist() == [0x5E81]
    assert cast(np.array([-(2**62) - 2**54 - 1]), "I64", "BF16").tolist() == [0xDE81]
    assert cast(np.array([2**63 + 2**55 + 1], np.uint64), "U64", "BF16").tolist() == [0x5F01]


def nearest(x: float) -> float:
    """The bfloat16 nearest to x, ties to even, found among all of them."""
    if np.isinf(x) or x == 0:
        return x
    values = cast(BF16[:0x7F80], "BF16", "F64")
    at = int(np.searchsorted(values, abs(x)))
    low, high = at - 1, at
    upper = Fraction(float(values[high])) if high < 0x7F80 else Fraction(2) ** 128
    below, above = abs(Fraction(abs(x)) - Fraction(float(values[low]))), abs(upper - Fraction(abs(x)))
    if at >= 0x7F80 and abs(x) >= 2.0**128:
        return float(np.copysign(np.inf, x))
    best = low if below < above or (below == above and low % 2 == 0) else high
    return float(np.copysign(values[best] if best < 0x7F80 else np.inf, x))


def test_integers() -> None:
    x = np.array([-129, -1, 0, 127, 300], np.int32)
    assert cast(x, "I32", "I8").tolist() == [127, -1, 0, 127, 44]
    assert cast(x, "I32", "F16").tolist() == [-129, -1, 0, 127, 300]
    values = np.array([2.5, 3.5, -0.5, 1e30, -1e30, np.nan], np.float32)
    assert cast(values, "F32", "I32").tolist() == [2, 4, 0, 2**31 - 1, -(2**31), 0]
    assert cast(values, "F32", "U8").tolist() == [2, 4, 0, 255, 0, 0]
    assert cast(values, "F32", "I64").tolist()[3:] == [2**63 - 1, -(2**63), 0]
    assert cast(np.array([2**53 + 1]), "I64", "F64").tolist() == [2.0**53]


def test_eight_bit_floats() -> None:
    codes = np.arange(256, dtype=np.uint8)
    for ours, theirs in (("F8_E4M3", torch.float8_e4m3fn), ("F8_E5M2", torch.float8_e5m2)):
        expected = torch.from_numpy(codes.copy()).view(theirs).to(torch.float32).numpy()
        np.testing.assert_array_equal(cast(codes, ours, "F32"), expected)
    scales = cast(codes, "F8_E8M0", "F32")
    assert (scales[0], scales[127], scales[254]) == (np.float32(2.0**-127), 1.0, np.float32(2.0**127))
    assert np.isnan(scales[255])
    with pytest.raises(Unsupported, match="the engine does not round to F8_E4M3"):
        cast(np.ones(1, np.float32), "F32", "F8_E4M3")


def test_floats_that_are_too_large_become_infinite_without_a_warning() -> None:
    assert cast(np.array([1e6, -1e6, 65519.0], np.float32), "F32", "F16").tolist() == [np.inf, -np.inf, 65504.0]
    assert cast(np.array([3.4e38], np.float32), "F32", "BF16").tolist() == [0x7F80]


def test_shapes_as_stored() -> None:
    assert matrix("Q4_0", (3, 2, 64)) == (6, 36)
    assert matrix("F32", ()) == (1, 1)
    assert matrix("BF16", (7,)) == (1, 7)
    with pytest.raises(Unsupported, match="cannot compute with F4"):
        numpy_dtype("F4")
