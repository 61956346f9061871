"""What the kernels find of a row before they encode it: its range, and what is not finite in it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from qconvd_compressed import decoder
from qconvd_compressed.kernels import halves

HALF = pytest.mark.parametrize("half", [0, 1], ids=["BF16", "F16"])
ODD = {
    "finite": [],
    "NaN": [0x7FFF, 0xFFFF],
    "infinities": [0x7F80, 0xFF80, 0x7C00, 0xFC00],
    "all of them": [0x7FFF, 0xFFC1, 0x7F80, 0xFF80, 0x7C00, 0xFC00],
}


def rows(half: int, odd: list[int]) -> list[NDArray[np.uint16]]:
    """Rows of 16-bit floats of one sign and of both, with zeros, and with `odd` bits among them."""
    rng = np.random.default_rng(5)
    finite = rng.integers(0, 0x7C00 if half else 0x7F80, 67).astype(np.uint16)
    signs = (np.zeros(67, np.uint16), np.full(67, 0x8000, np.uint16), rng.integers(0, 2, 67).astype(np.uint16) << 15)
    found = [finite | sign for sign in signs] + [np.zeros(67, np.uint16), np.full(67, 0x8000, np.uint16)]
    for row in found:
        row[5 : 5 + len(odd)] = odd
    return found


def single(x: NDArray[np.uint16], half: int) -> NDArray[np.float32]:
    return decoder.halves(x.tobytes(), "F16" if half else "BF16")


def value(bits: Any, half: int) -> float:
    return float(single(np.array([bits], np.uint16), half)[0])


@HALF
@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
def test_ranges_leave_out_what_is_not_finite(half: int, odd: list[int]) -> None:
    for x in rows(half, odd):
        values = single(x, half)
        finite = values[np.isfinite(values)]
        assert value(halves.largest(x, half), half) == np.abs(finite).max()
        assert value(halves.highest(x, half), half) == max(finite.max(), 0)
        assert -value(halves.lowest(x, half), half) == min(finite.min(), 0)


@HALF
@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
def test_what_is_not_finite_becomes_zero_and_is_counted(half: int, odd: list[int]) -> None:
    for x in rows(half, odd):
        values, out, sums = single(x, half), np.empty(x.size, np.float32), np.zeros(5)
        halves.widen(x, half, out, sums)
        assert np.array_equal(out.view(np.uint32), np.where(np.isfinite(values), values, np.float32(0)).view(np.uint32))
        assert sums.tolist() == [0, 0, 0, np.isnan(values).sum(), np.isinf(values).sum()]
