"""Difficult weights, held against the gguf package's numpy quantizers and a second writing-down of Q6_K."""

from __future__ import annotations

import threading

import gguf
import numpy as np
import pytest
from gguf import quants
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from qconvd_ggml.decode import decode, error_bound
from qconvd_ggml.kernels import encode

from . import hostile

LEGACY = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")
TYPES = (*LEGACY, "Q6_K")


def reference(dtype: str, x: np.ndarray) -> np.ndarray:
    with np.errstate(all="ignore"):
        return hostile.q6_k(x).reshape(len(x), -1) if dtype == "Q6_K" else quants.quantize(x, gguf.GGMLQuantizationType[dtype])


def check(dtype: str, x: np.ndarray) -> None:
    """Bytes, decoding, bound and report of finite weights."""
    data, report = encode(dtype, x, "F32")
    assert np.array_equal(data, reference(dtype, x))
    y = decode(dtype, data, x.shape[1])
    with np.errstate(all="ignore"):
        assert np.array_equal(y.view(np.uint32), quants.dequantize(data, gguf.GGMLQuantizationType[dtype]).view(np.uint32))
        error = np.abs(y.astype(np.float64) - x)
    finite = np.isfinite(y)
    bound = error_bound(dtype, x)
    assert (error[finite] <= bound[finite]).all()
    assert np.isinf(bound[~finite]).all()
    assert report.overflows == (~finite).sum()
    assert report.square_error == pytest.approx((error[finite] ** 2).sum(), rel=1e-5)
    assert report.max_error == pytest.approx(error[finite].max(initial=0), rel=1e-6)
    assert report.square == pytest.approx((x[finite].astype(np.float64) ** 2).sum(), rel=1e-5)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("seed", range(3))
def test_hostile_weights(dtype: str, seed: int) -> None:
    # Adding zero turns -0 into +0: of a block of zeros the gguf package keeps the first one's sign, llama.cpp does not.
    check(dtype, hostile.weights(4, seed) + np.float32(0))


# Below about 1e-37 the inverse of a scale overflows, and numpy's cast of that to an integer is undefined: see the next test.
ordinary = st.floats(-(2.0**100), 2.0**100, width=32).map(lambda v: v if abs(v) > 1e-34 else 0.0)


@pytest.mark.parametrize("dtype", LEGACY)
@settings(max_examples=60, deadline=None)
@given(x=arrays(np.float32, (2, 64), elements=ordinary))
def test_any_weights(dtype: str, x: np.ndarray) -> None:
    smallest = np.ptp(x.reshape(-1, 32).astype(np.float64), axis=1)
    x[np.repeat((smallest > 0) & (smallest < 1e-34), 32).reshape(x.shape)] = 0
    check(dtype, x + np.float32(0))


@settings(max_examples=40, deadline=None)
@given(x=arrays(np.float32, (1, 256), elements=ordinary, fill=st.sampled_from([0.0, 1.0, 1e-3, -7.5])))
def test_any_weights_q6_k(x: np.ndarray) -> None:
    check("Q6_K", np.where(np.abs(x) < 1e12, x, np.float32(0)) + np.float32(0))


@pytest.mark.parametrize("dtype", TYPES)
def test_subnormal_weights_become_zero(dtype: str) -> None:
    x = (np.random.default_rng(0).standard_normal((4, 256)) * 1e-40).astype(np.float32)
    data, report = encode(dtype, x, "F32")
    assert not decode(dtype, data, 256).any()
    assert (np.abs(x) <= error_bound(dtype, x)).all()
    assert report.max_error == pytest.approx(np.abs(x).max())
    assert 0 < report.square_error == pytest.approx(report.square)


@pytest.mark.parametrize(("dtype", "size", "expected"), [("Q4_0", 18, b"\0\x80" + b"\x88" * 16), ("Q8_0", 34, b"\0" * 34)])
def test_zeros(dtype: str, size: int, expected: bytes) -> None:
    """Q4_0's scale of nothing is 0 / -8 = -0, as in llama.cpp."""
    for zero in (0.0, -0.0):
        data, _ = encode(dtype, np.full((1, 64), zero, np.float32), "F32")
        assert data.tobytes() == expected * (64 // 32)
        assert data.shape == (1, 2 * size)


@pytest.mark.parametrize("dtype", LEGACY)
def test_nan_spoils_only_itself(dtype: str) -> None:
    x = np.random.default_rng(1).standard_normal((3, 64)).astype(np.float32)
    x[1, 40] = 0  # no largest or smallest weight, so that the other weights of its block keep their bytes
    clean = decode(dtype, encode(dtype, x, "F32")[0], 64)
    broken = x.copy()
    broken[1, 40] = np.nan
    data, report = encode(dtype, broken, "F32")
    y = decode(dtype, data, 64)
    others = ~np.isnan(broken)
    assert np.array_equal(y[others], clean[others])
    assert np.isfinite(y).all()
    assert (report.nan, report.inf, report.overflows) == (1, 0, 0)
    assert report.square == pytest.approx(np.nansum(broken.astype(np.float64) ** 2), rel=1e-6)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_other_blocks_are_untouched_by_nan_and_infinity(dtype: str, bad: float) -> None:
    x = np.random.default_rng(2).standard_normal((6, 512)).astype(np.float32)
    clean, _ = encode(dtype, x, "F32")
    x[2, 300] = bad
    x[5, 0] = bad
    for source_dtype, source in (
        ("F32", x),
        ("F16", x.astype(np.float16)),
        ("BF16", (x.view(np.uint32) >> 16).astype(np.uint16)),
    ):
        data, report = encode(dtype, source, source_dtype)
        again, _ = encode(dtype, source, source_dtype)
        assert np.array_equal(data, again)
        assert (report.nan, report.inf) == ((2, 0) if np.isnan(bad) else (0, 2))
        if source_dtype == "F32":
            half = data.shape[1] // 2
            keep = np.ones_like(data, bool)
            keep[2, half:] = keep[5, :half] = False
            assert np.array_equal(data[keep], clean[keep])


@pytest.mark.parametrize("dtype", TYPES)
def test_nothing_but_nan(dtype: str) -> None:
    data, report = encode(dtype, np.full((2, 256), np.nan, np.float32), "F32")
    assert report == (512, 0.0, 0.0, 0.0, 0, 0, 512, 0)
    assert np.array_equal(data[0], data[1])


def test_threads_do_not_disturb_each_other() -> None:
    x = hostile.weights(4, 5)
    expected = {dtype: encode(dtype, x, "F32")[0] for dtype in TYPES}
    wrong: list[str] = []

    def work(dtype: str) -> None:
        wrong.extend(dtype for _ in range(10) if not np.array_equal(encode(dtype, x, "F32")[0], expected[dtype]))

    threads = [threading.Thread(target=work, args=(dtype,)) for dtype in TYPES]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("dtype", TYPES)
def test_the_bound_is_not_slack(dtype: str) -> None:
    """A wrong scale, a shifted level or weights of another row must not pass for a right decoding."""
    x = np.random.default_rng(3).standard_normal((4, 256)).astype(np.float32)
    y = decode(dtype, encode(dtype, x, "F32")[0], 256)
    bound = error_bound(dtype, x)
    assert bound.max() < {"Q4_0": 0.8, "Q4_1": 0.35, "Q5_0": 0.4, "Q5_1": 0.2, "Q8_0": 0.02, "Q6_K": 0.3}[dtype]
    for wrong in (y * np.float32(1.1), y[::-1], np.roll(y, 1, axis=1), np.zeros_like(y)):
        assert not (np.abs(wrong - x) <= bound).all()


def test_decode_refuses_what_it_does_not_know() -> None:
    with pytest.raises(ValueError, match="35 bytes are no whole rows of 32 weights as Q8_0"):
        decode("Q8_0", bytes(35), 32)
    with pytest.raises(ValueError, match="no decoder for I8"):
        decode("I8", bytes(32), 32)
    with pytest.raises(ValueError, match="no error bound for I8"):
        error_bound("I8", np.zeros((1, 32), np.float32))
