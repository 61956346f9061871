"""The bytes of a llama.cpp of today, asked of itself: `ggml_quantize_chunk` of the library that xllamacpp brings.

The golden files hold what one version made of a few rows; this is whatever is installed, on weights of many kinds.
"""

from __future__ import annotations

import ctypes
from itertools import product
from pathlib import Path

import gguf
import numpy as np
import pytest
import xllamacpp

from qconvd.api import row_bytes
from qconvd_ggml.kernels import _ENTRIES, encode

COLUMNS = 1024
TOGETHER = ("IQ1_S", "IQ1_M")
"""They share a lattice, which llama.cpp takes seconds to set up, in each process anew."""
CASES = [TOGETHER, *((dtype,) for dtype in _ENTRIES if dtype not in ("F32", "F16", "BF16", *TOGETHER))]


@pytest.fixture(scope="module")
def chunk() -> ctypes._NamedFuncPointer:
    (library,) = Path(xllamacpp.__file__).parent.glob("xllamacpp*.so")
    found = ctypes.CDLL(str(library)).ggml_quantize_chunk
    found.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int64] * 3, ctypes.c_void_p]
    found.restype = ctypes.c_size_t
    return found


@pytest.fixture(scope="module")
def weights() -> dict[str, np.ndarray]:
    """float32, of values that bfloat16 holds."""
    rng = np.random.default_rng(11)
    shape = (16, COLUMNS)
    kinds = {
        "normal": rng.standard_normal(shape) * 0.02,
        "long tails": rng.standard_t(2.5, shape),
        "even": rng.uniform(-1, 1, shape),
        "few values": np.round(rng.standard_normal(shape) * 3),
        "mostly zero": rng.standard_normal(shape) * (rng.random(shape) < 0.1),
        "of every size": rng.standard_normal(shape) * 10.0 ** rng.uniform(-6, 4, (16, 1)),
        "the same again and again": np.tile(rng.standard_normal((16, 8)), (1, COLUMNS // 8)),
    }
    return {name: (x.astype(np.float32).view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32) for name, x in kinds.items()}


@pytest.mark.parametrize("types", CASES, ids="+".join)
def test_bytes_are_those_of_the_installed_llama_cpp(
    chunk: ctypes._NamedFuncPointer, weights: dict[str, np.ndarray], types: tuple[str, ...]
) -> None:
    importance = np.random.default_rng(5).random(COLUMNS).astype(np.float32) ** 2
    for dtype, matrix, (name, x) in product(types, (None, importance), weights.items()):
        if (_ENTRIES[dtype].plain if matrix is None else _ENTRIES[dtype].weighted) is None:
            continue
        expected = np.empty((len(x), row_bytes(dtype, COLUMNS)), np.uint8)
        address = None if matrix is None else matrix.ctypes.data
        kind = int(gguf.GGMLQuantizationType[dtype])
        assert chunk(kind, x.ctypes.data, expected.ctypes.data, 0, len(x), COLUMNS, address) == expected.nbytes
        halves = (x.view(np.uint32) >> np.uint32(16)).astype(np.uint16)
        data, _ = encode(dtype, halves, "BF16", importance=matrix)
        assert np.flatnonzero((data != expected).any(axis=1)).tolist() == [], (dtype, matrix is not None, name)
