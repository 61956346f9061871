"""The IQ types, MXFP4 and the ternary types: llama.cpp's own bytes, on ordinary and on hostile weights, and what a reader sees.

`ggml_hostile_iq.npz` was made like `ggml_blocks.npz` (ggml_quantize_chunk of ggml-base 0.25.3, x86-64): `weights` [rows, 512]
float32, `imatrix` [512] float32, a quarter of it zeros, and per type and row the CRC-32 of the bytes. llama.cpp aborts when a
type with a lattice meets weights above about 1e9: those rows are left out there, their CRC is 0.
"""

from __future__ import annotations

import zlib
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import quants

from qconvd.api import Unsupported, storage
from qconvd_ggml import kernels
from qconvd_ggml.decode import decode, error_bound
from qconvd_ggml.kernels import encode

from .halves import single

LATTICE = ("IQ3_S", "IQ3_XXS", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_S", "IQ1_M")
TYPES = ("IQ4_NL", "IQ4_XS", "MXFP4", "TQ1_0", "TQ2_0", *LATTICE)
PLAIN = tuple(t for t in TYPES if kernels._ENTRIES[t].plain is not None)
WEIGHTED = tuple(t for t in TYPES if kernels._ENTRIES[t].weighted is not None)
CASES = [*((t, False) for t in PLAIN), *((t, True) for t in WEIGHTED)]


@pytest.fixture(scope="module")
def hostile(golden: Path) -> dict[str, np.ndarray]:
    with np.load(golden / "ggml_hostile_iq.npz") as file:
        return dict(file)


def reference(dtype: str, data: np.ndarray) -> np.ndarray:
    with np.errstate(all="ignore"):
        return quants.dequantize(data, gguf.GGMLQuantizationType[dtype])


@pytest.mark.parametrize(("dtype", "weighted"), CASES)
def test_llama_cpps_bytes_from_every_source(blocks: dict[str, np.ndarray], dtype: str, weighted: bool) -> None:
    bf16, importance = blocks["weights_bf16"], blocks["imatrix"] if weighted else None
    expected = blocks[f"{dtype}.imatrix" if weighted else dtype]
    with np.errstate(over="ignore"):
        halves = single(bf16).astype(np.float16)
    for source_dtype, x in (("BF16", bf16), ("F32", single(bf16))):
        data, report = encode(dtype, x, source_dtype, importance=importance)
        assert np.array_equal(data, expected), source_dtype
        assert report.weights == x.size
    same = (halves.astype(np.float32) == single(bf16)).reshape(12, -1, 256).all(axis=2)
    assert same.sum() >= 8
    data, _ = encode(dtype, halves, "F16", importance=importance)
    assert np.array_equal(data.reshape(12, 4, -1)[same], expected.reshape(12, 4, -1)[same])


@pytest.mark.parametrize(("dtype", "weighted"), CASES)
def test_llama_cpps_bytes_of_hostile_weights(hostile: dict[str, np.ndarray], dtype: str, weighted: bool) -> None:
    data, _ = encode(dtype, hostile["weights"], "F32", importance=hostile["imatrix"] if weighted else None)
    expected = hostile[f"{dtype}.imatrix" if weighted else dtype]
    found = np.array([zlib.crc32(row.tobytes()) for row in data], np.uint32)
    compared = expected != 0
    assert compared.sum() >= (48 if dtype in LATTICE else 52)
    assert np.flatnonzero((found != expected) & compared).tolist() == []


@pytest.mark.parametrize(("dtype", "weighted"), CASES)
def test_any_division_into_calls_gives_the_same_bytes(blocks: dict[str, np.ndarray], dtype: str, weighted: bool) -> None:
    x, importance = blocks["weights_bf16"], blocks["imatrix"] if weighted else None
    expected = blocks[f"{dtype}.imatrix" if weighted else dtype]
    for rows in (0, 1, 3, 11):
        assert np.array_equal(encode(dtype, x[:rows], "BF16", importance=importance)[0], expected[:rows])
    many, _ = encode(dtype, np.tile(x, (5, 1))[:59], "BF16", importance=importance)
    assert np.array_equal(many, np.tile(expected, (5, 1))[:59])
    step = storage(dtype)[0]
    for columns in (step, 3 * step, 1024 - step):
        part = None if importance is None else importance[:columns]
        data, _ = encode(dtype, x[:, :columns], "BF16", importance=part)
        assert np.array_equal(data, expected[:, : expected.shape[1] * columns // 1024])


@pytest.mark.parametrize("dtype", TYPES)
def test_decoding_is_what_the_gguf_package_reads(blocks: dict[str, np.ndarray], dtype: str) -> None:
    junk = np.random.default_rng(0).integers(0, 256, (20, blocks[f"{dtype}.imatrix"].shape[1]), np.uint8)
    for data in (blocks[f"{dtype}.imatrix"], junk):
        ours, theirs = decode(dtype, data, 1024), reference(dtype, data)
        both = np.isnan(ours) & np.isnan(theirs)
        assert np.array_equal(ours.view(np.uint32)[~both], theirs.view(np.uint32)[~both])


@pytest.mark.parametrize(("dtype", "weighted"), CASES)
def test_decoding_is_within_the_bound_and_the_report_tells_the_error(
    blocks: dict[str, np.ndarray], hostile: dict[str, np.ndarray], dtype: str, weighted: bool
) -> None:
    for x, importance in ((single(blocks["weights_bf16"]), blocks["imatrix"]), (hostile["weights"], hostile["imatrix"])):
        data, report = encode(dtype, x, "F32", importance=importance if weighted else None)
        y, bound = decode(dtype, data, x.shape[1]), error_bound(dtype, x, importance if weighted else None)
        finite = np.isfinite(y)
        error = np.abs(y[finite].astype(np.float64) - x[finite])
        assert (error <= bound[finite]).all()
        assert np.isinf(bound[~finite]).all()
        assert report.overflows == (~finite).sum()
        assert report.square_error == pytest.approx((error**2).sum(), rel=1e-5)
        assert report.max_error == pytest.approx(error.max(), rel=1e-6)
        assert report.square == pytest.approx((x[finite].astype(np.float64) ** 2).sum(), rel=1e-5)


def test_types_that_need_a_matrix_say_so() -> None:
    for dtype in ("IQ2_XXS", "IQ2_XS", "IQ1_S"):
        with pytest.raises(Unsupported, match=f"{dtype} cannot be made without an importance matrix") as error:
            encode(dtype, np.ones((1, 256), np.float32), "F32")
        assert "imatrix file" in error.value.fix


def test_the_matrix_is_ignored_where_nothing_is_searched(blocks: dict[str, np.ndarray]) -> None:
    for dtype in ("MXFP4", "TQ1_0", "TQ2_0"):
        data, _ = encode(dtype, blocks["weights_bf16"], "BF16", importance=blocks["imatrix"])
        assert np.array_equal(data, blocks[dtype])
        assert np.array_equal(data, blocks[f"{dtype}.imatrix"])


LARGEST_BOUND = {"IQ4_NL": 0.65, "IQ4_XS": 0.75, "MXFP4": 1.01, "TQ1_0": 2.0, "TQ2_0": 2.0}
"""Of normal weights, without an importance matrix."""


@pytest.mark.parametrize("dtype", LARGEST_BOUND)
def test_the_bound_is_not_slack(dtype: str) -> None:
    x = np.random.default_rng(3).standard_normal((4, 256)).astype(np.float32)
    y = decode(dtype, encode(dtype, x, "F32")[0], 256)
    bound = error_bound(dtype, x)
    assert bound.max() < LARGEST_BOUND[dtype]
    for wrong in (y * np.float32(1.3), y[::-1], np.roll(y, 1, axis=1), np.zeros_like(y), -y):
        assert not (np.abs(wrong - x) <= bound).all()


@pytest.mark.parametrize(("dtype", "weighted"), CASES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_stay_in_their_block(dtype: str, weighted: bool, bad: float) -> None:
    x = np.random.default_rng(2).standard_normal((6, 512)).astype(np.float32)
    importance = np.random.default_rng(4).random(512, np.float32) if weighted else None
    clean, _ = encode(dtype, x, "F32", importance=importance)
    x[2, 300], x[5, 0] = bad, bad
    data, report = encode(dtype, x, "F32", importance=importance)
    assert np.array_equal(data, encode(dtype, x, "F32", importance=importance)[0])
    assert (report.nan, report.inf) == ((2, 0) if np.isnan(bad) else (0, 2))
    half = data.shape[1] // 2
    keep = np.ones_like(data, bool)
    keep[2, half:] = keep[5, :half] = False
    assert np.array_equal(data[keep], clean[keep])


@pytest.mark.parametrize(("dtype", "weighted"), CASES)
def test_nothing_but_nan(dtype: str, weighted: bool) -> None:
    importance = np.ones(256, np.float32) if weighted else None
    data, report = encode(dtype, np.full((2, 256), np.nan, np.float32), "F32", importance=importance)
    assert report == (512, 0.0, 0.0, 0.0, 0, 0, 512, 0)
    assert np.array_equal(data[0], data[1])
