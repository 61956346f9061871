"""The compiled casts: the bytes and figures that numpy's way gives, which test_casts.py holds against torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from hard_numbers import hard_float32
from header_models import headers
from qconvd.api import Device
from qconvd_fp16 import encoder
from qconvd_fp16.casts import STORED, cast
from qconvd_fp16.format import PlainCast
from qconvd_fp16.kernels.tiles import PAIRS, TILE, TYPES, tiles

pairs = pytest.mark.parametrize(("source", "target"), PAIRS)


def same(x: np.ndarray[Any, Any], source: str, target: str, **how: Any) -> None:
    """Bytes and counts are equal; sums are so but for the order of their addends."""
    (out, report), (made, found) = (cast(x, source, target, compiled=compiled, **how) for compiled in (False, True))
    assert made.dtype == out.dtype
    assert np.array_equal(made.view(np.uint8), out.view(np.uint8))
    weights, square_error, square, most, *counts = found
    assert (square_error, square, most) == pytest.approx((report.square_error, report.square, report.max_error), rel=1e-5)
    assert (weights, *counts) == (report.weights, *report[4:])


def numbers(count: int, source: str, size: float = 0.02, seed: int = 1) -> np.ndarray[Any, Any]:
    made = np.random.default_rng(seed).standard_normal(count) * size
    with np.errstate(over="ignore"):
        return cast(made.astype(np.float32), "F32", source)[0]


@pytest.mark.parametrize("source", ["F16", "BF16"])
@pytest.mark.parametrize("target", TYPES)
def test_every_16_bit_pattern(source: str, target: str) -> None:
    bits = np.arange(65536, dtype=np.uint16)
    same(bits.view(STORED[source]), source, target)
    # One odd pattern in each tile of plain ones, at every place of a vector.
    x = numbers(64 * TILE, source, seed=2).view(np.uint16)
    x[np.arange(64) * (TILE + 1) + np.arange(64)] = np.resize(bits[::977], 64)
    same(x.view(STORED[source]), source, target)


@pytest.mark.parametrize("target", TYPES)
def test_hard_float32_numbers(target: str) -> None:
    x = hard_float32()
    same(x, "F32", target)
    # Sorted by size: whole tiles of plain numbers, and of subnormal ones.
    same(x[np.argsort(x.view(np.uint32) & 0x7FFFFFFF, kind="stable")], "F32", target)


@pairs
@pytest.mark.parametrize("size", [0.0, 1e-40, 3e-30, 1e-12, 1e-7, 0.02, 1e3, 1e5, 1e17, 3e38])
def test_numbers_of_any_size(source: str, target: str, size: float) -> None:
    same(numbers(3 * TILE, source, size), source, target)


@pairs
@pytest.mark.parametrize("count", [0, 1, TILE - 1, TILE, TILE + 1, 5 * TILE + 17])
def test_any_count(source: str, target: str, count: int) -> None:
    same(numbers(count, source), source, target)


def test_one_tile_has_what_is_odd_and_the_others_stay_as_they_are() -> None:
    x = numbers(9 * TILE, "F32")
    for tile, value in ((1, np.nan), (4, np.inf), (5, 7e4), (8, -65520)):
        x[tile * TILE + 100 * tile] = value
    odd, _ = tiles(x, np.empty(x.size, np.float16), "F32", "F16")
    assert np.flatnonzero(odd).tolist() == [1, 4, 5, 8]
    for clamp in (False, True):
        same(x, "F32", "F16", clamp=clamp)
    assert cast(x, "F32", "F16", clamp=True, compiled=True)[1].overflows == 2


@pairs
def test_what_may_not_be_written_and_what_is_not_aligned(source: str, target: str) -> None:
    x = numbers(2 * TILE, source)
    shifted = np.frombuffer(b"?" + x.tobytes(), x.dtype, offset=1)
    assert not shifted.flags.aligned and not shifted.flags.writeable
    same(shifted, source, target)
    assert np.shares_memory(cast(shifted, source, source, compiled=True)[0], shifted)


def test_what_is_added_up_is_exact_enough() -> None:
    x = numbers(1 << 20, "F32", 1.0)
    _, report = cast(x, "F32", "BF16", compiled=True)
    exact = x.astype(np.float64)
    assert report.square == pytest.approx(float((exact**2).sum()), rel=1e-6)


def test_float64_is_left_to_numpy() -> None:
    x = np.linspace(-1, 1, 2 * TILE)
    for target in ("F64", "F32", "F16"):
        same(x, "F64", target)


@pytest.mark.parametrize(
    ("weights", "can", "compiled"), [(1 << 27, True, True), (1 << 26, True, False), (1 << 27, False, False)]
)
def test_large_models_are_cast_by_the_kernel(weights: int, can: bool, compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the processor converts float16; a small model, or another processor, does without numba."""
    monkeypatch.setattr(encoder, "converts_halves", lambda: can)
    plan = PlainCast().plan(headers({"a.weight": (1024, weights // 1024)}), PlainCast.Options())
    made = PlainCast().encoder(plan, Device())
    assert isinstance(made, encoder.CastEncoder)
    said = list(made.prepare(plan))
    assert said in ([], ["compiling the kernel of the casts (once)"] if compiled else [])
    asked: list[bool] = []
    monkeypatch.setattr(encoder, "cast", lambda *a, compiled, **k: asked.append(compiled) or cast(*a, **k))
    made.encode(plan.units[0], (0, 4), [np.zeros((4, weights // 1024), np.uint16)], {})
    assert asked == [compiled]
