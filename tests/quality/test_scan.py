"""The scan of a file's bytes: hash, NaN and infinities of every type, padding."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, dequantize

from qconvd.api import BadCheckpoint, TensorInfo
from qconvd.quality.scan import _SCALES, PIECE, NonFinite, scan


def file_of(folder: Path, *parts: bytes) -> Path:
    path = folder / "x.bin"
    path.write_bytes(b"".join(parts))
    return path


def one(dtype: str, data: bytes, offset: int = 16) -> TensorInfo:
    return TensorInfo("t", dtype, (len(data),), "x.bin", offset, len(data))


@pytest.mark.parametrize(
    ("dtype", "bits", "kind"),
    [
        ("F64", [0x7FF0 << 48, 0xFFF8 << 48, 0, 0x7FEF << 48], "<u8"),
        ("F32", [0x7F800000, 0xFFC00000, 0, 0x7F7FFFFF], "<u4"),
        ("F16", [0xFC00, 0x7C01, 0x7BFF, 0x8000], "<u2"),
        ("BF16", [0x7F80, 0xFFFF, 0x7F7F, 0], "<u2"),
        ("F8_E5M2", [0x7C, 0xFD, 0x7B, 0], "u1"),
    ],
)
def test_each_float_type(tmp_path: Path, dtype: str, bits: list[int], kind: str) -> None:
    data = np.array(bits * 3, kind).tobytes()
    result = scan(file_of(tmp_path, b"h" * 16, data), [one(dtype, data)])
    assert result.non_finite == {"t": NonFinite(3, 3)}


def test_f8_e4m3_has_nan_only_and_integers_have_none(tmp_path: Path) -> None:
    data = bytes(range(256))
    assert scan(file_of(tmp_path, b"h" * 16, data), [one("F8_E4M3", data)]).non_finite == {"t": NonFinite(2, 0)}
    ends = b"\x7f" + bytes(5 << 17) + b"\xff"
    assert scan(file_of(tmp_path, b"h" * 16, ends), [one("F8_E4M3", ends)]).non_finite == {"t": NonFinite(2, 0)}
    result = scan(file_of(tmp_path, b"h" * 16, data), [one("I32", data)])
    assert (result.non_finite, result.not_scanned) == ({}, {})
    assert scan(file_of(tmp_path, b"h" * 16, data), [one("NVFP4", data)]).not_scanned == {"t": "NVFP4"}


@pytest.mark.parametrize("dtype", _SCALES)
def test_the_scales_of_block_types_are_where_other_peoples_decoder_reads_them(tmp_path: Path, dtype: str) -> None:
    """A NaN anywhere else changes nothing that gguf's decoder makes NaN of; at these places it does."""
    size, places = _SCALES[dtype]
    spot = {p + d for p in places for d in (0, 1)}
    for at in range(size - 1):
        block = np.zeros((3, size), np.uint8)
        block[1, at : at + 2] = (0xFF, 0x7F)
        nan = np.isnan(dequantize(block, GGMLQuantizationType[dtype])).any()
        data = block.tobytes()
        found = bool(scan(file_of(tmp_path, b"h" * 16, data), [one(dtype, data)]).non_finite)
        if at in places or not spot & {at, at + 1}:
            assert found == nan == (at in places), at


def test_the_scattered_scale_of_iq1_m_is_what_other_peoples_decoder_reads(tmp_path: Path) -> None:
    for half, expected in ((0x7E01, NonFinite(1, 0)), (0xFC00, NonFinite(0, 1)), (0x7BFF, None)):
        block = np.zeros((3, 56), np.uint8)
        for word in range(4):
            block[1, 49 + 2 * word] = (half >> 4 * word & 15) << 4
        odd = not np.isfinite(dequantize(block, GGMLQuantizationType.IQ1_M)).all()
        found = scan(file_of(tmp_path, b"h" * 16, block.tobytes()), [one("IQ1_M", block.tobytes())])
        assert found.non_finite == ({"t": expected} if expected else {})
        assert odd == (expected is not None)
        assert found.not_scanned == {}


def test_no_exponent_of_mxfp4_is_nan_to_ggml(tmp_path: Path) -> None:
    block = np.full((2, 17), 0x11, np.uint8)
    block[:, 0] = 255
    assert np.isfinite(dequantize(block, GGMLQuantizationType.MXFP4)).all()
    found = scan(file_of(tmp_path, b"h" * 16, block.tobytes()), [one("MXFP4", block.tobytes())])
    assert (found.non_finite, found.not_scanned) == ({}, {})


def test_the_hash_is_the_files_and_pieces_do_not_matter(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 100, (2 * PIECE // 18 + 5, 18), dtype=np.uint8)
    blocks[PIECE // 18 - 1, :2] = blocks[-1, :2] = (0, 0x7C)
    data = blocks.tobytes()
    path = file_of(tmp_path, b"header..", data, b"\0" * 32, data[:18])
    tensors = [one("Q4_0", data, 8), TensorInfo("u", "Q4_0", (32,), "x.bin", 8 + len(data) + 32, 18)]
    result = scan(path, tensors)
    assert result.sha256 == sha256(path.read_bytes()).hexdigest()
    assert result.nbytes == path.stat().st_size
    assert result.non_finite == {"t": NonFinite(0, 2)}


def test_a_file_without_tensors_is_only_hashed(tmp_path: Path) -> None:
    path = file_of(tmp_path, b"any text")
    assert scan(path, []).sha256 == sha256(b"any text").hexdigest()


@pytest.mark.parametrize(
    ("parts", "tensors", "message"),
    [
        ((b"h" * 16, b"\0" * 4, b"x\0"), [("a", 16, 4)], "bytes 20 to 21 are between tensors and not all zero"),
        ((b"h" * 16, b"\0\1\0\0", b"\0" * 4), [("a", 16, 1), ("b", 20, 4)], "bytes 17 to 19 are between tensors"),
        ((b"h" * 16, b"\0" * 8), [("a", 16, 5), ("b", 20, 4)], "tensor b: overlaps the one before it"),
        ((b"h" * 16, b"\0" * 8), [("a", 16, 9)], "tensor a: ends behind the file's 24 bytes"),
    ],
)
def test_what_lies_wrong(tmp_path: Path, parts: Any, tensors: Any, message: str) -> None:
    with pytest.raises(BadCheckpoint) as caught:
        scan(file_of(tmp_path, *parts), [TensorInfo(n, "U8", (size,), "x.bin", at, size) for n, at, size in tensors])
    assert message in str(caught.value)
