"""llama.cpp's own bytes (ggml_quantize_chunk, x86-64), from every kind of source array."""

from __future__ import annotations

import numpy as np
import pytest

from qconvd.api import QconvdError
from qconvd_ggml.decode import decode, error_bound
from qconvd_ggml.kernels import encode

from .halves import single

TYPES = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")


@pytest.mark.parametrize("writable", [True, False])
@pytest.mark.parametrize("dtype", TYPES)
def test_bf16_and_f32_give_llama_cpps_bytes(blocks: dict[str, np.ndarray], dtype: str, writable: bool) -> None:
    for source_dtype, x in (("BF16", blocks["weights_bf16"].copy()), ("F32", single(blocks["weights_bf16"]))):
        x.flags.writeable = writable
        before = x.copy()
        data, report = encode(dtype, x, source_dtype)
        assert np.array_equal(data, blocks[dtype]), source_dtype
        assert np.array_equal(x, before)
        assert report.weights == x.size


@pytest.mark.parametrize("writable", [True, False])
@pytest.mark.parametrize("dtype", TYPES)
def test_f16_gives_llama_cpps_bytes_where_the_weights_are_halves(
    blocks: dict[str, np.ndarray], dtype: str, writable: bool
) -> None:
    weights = single(blocks["weights_bf16"])
    with np.errstate(over="ignore"):
        halves = weights.astype(np.float16)
    same = (halves.astype(np.float32) == weights).reshape(12, -1, 256).all(axis=2)
    assert same.sum() >= 8
    halves.flags.writeable = writable
    as_bits, _ = encode(dtype, halves.view(np.uint16), "F16")
    as_floats, _ = encode(dtype, halves, "F16")
    assert np.array_equal(as_bits, as_floats)
    assert np.array_equal(as_bits.reshape(12, 4, -1)[same], blocks[dtype].reshape(12, 4, -1)[same])


@pytest.mark.parametrize("dtype", TYPES)
def test_any_number_of_rows_and_columns_gives_the_same_bytes(blocks: dict[str, np.ndarray], dtype: str) -> None:
    weights, expected = blocks["weights_bf16"], blocks[dtype]
    for rows in (0, 1, 2, 3, 5, 7, 12):
        assert np.array_equal(encode(dtype, weights[:rows], "BF16")[0], expected[:rows])
    step = 256 if dtype.endswith("_K") else 32
    for columns in (step, 3 * step, 1024 - step):
        part = weights[:, :columns]
        assert not part.flags.c_contiguous
        assert np.array_equal(encode(dtype, part, "BF16")[0], expected[:, : expected.shape[1] * columns // 1024])


@pytest.mark.parametrize("dtype", TYPES)
def test_many_tiles_and_a_tail(blocks: dict[str, np.ndarray], dtype: str) -> None:
    weights = np.tile(blocks["weights_bf16"], (5, 1))[:59]
    assert np.array_equal(encode(dtype, weights, "BF16")[0], np.tile(blocks[dtype], (5, 1))[:59])


@pytest.mark.parametrize("dtype", TYPES)
def test_golden_bytes_decode_to_within_the_bound(blocks: dict[str, np.ndarray], dtype: str) -> None:
    weights = single(blocks["weights_bf16"])
    error = np.abs(decode(dtype, blocks[dtype], 1024).astype(np.float64) - weights)
    assert (error <= error_bound(dtype, weights)).all()


def test_misaligned_weights_are_taken(blocks: dict[str, np.ndarray]) -> None:
    raw = b"\0" + blocks["weights_bf16"].tobytes()
    x = np.frombuffer(raw, np.uint16, offset=1).reshape(12, 1024)
    assert np.array_equal(encode("Q8_0", x, "BF16")[0], blocks["Q8_0"])


def test_out_is_filled_and_checked(blocks: dict[str, np.ndarray]) -> None:
    x = blocks["weights_bf16"]
    room = np.full((14, 576), 0xAA, np.uint8)
    data, _ = encode("Q4_0", x, "BF16", out=room[1:13])
    assert np.shares_memory(data, room)
    assert np.array_equal(room[1:13], blocks["Q4_0"])
    assert (room[[0, 13]] == 0xAA).all()
    frozen = np.empty((12, 576), np.uint8)
    frozen.flags.writeable = False
    for bad in (room, room[1:13, ::-1], frozen, np.empty((12, 576), np.int8)):
        with pytest.raises(ValueError, match=r"out must be .* \(12, 576\)"):
            encode("Q4_0", x, "BF16", out=bad)


def test_what_cannot_be_encoded_is_refused(blocks: dict[str, np.ndarray]) -> None:
    x = blocks["weights_bf16"]
    with pytest.raises(QconvdError, match="a row of 1000 weights is no multiple of Q4_0's block of 32"):
        encode("Q4_0", x[:, :1000], "BF16")
    with pytest.raises(QconvdError, match="a row of 992 weights is no multiple of Q6_K's block of 256"):
        encode("Q6_K", x[:, :992], "BF16")
    with pytest.raises(ValueError, match="no kernel from F64 to Q4_0"):
        encode("Q4_0", x, "F64")
    with pytest.raises(ValueError, match="no kernel from BF16 to Q9_9"):
        encode("Q9_9", x, "BF16")
    with pytest.raises(ValueError, match=r"\(1024,\) are not \(rows, columns\)"):
        encode("Q4_0", x[0], "BF16")
    with pytest.raises(TypeError, match="F32 weights come as float32, not as uint16"):
        encode("Q4_0", x, "F32")
    with pytest.raises(TypeError, match="BF16 weights come as uint16, not as float16"):
        encode("Q4_0", x.view(np.float16), "BF16")
