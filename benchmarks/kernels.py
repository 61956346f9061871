"""The kernels of GGML's types: million weights per CPU second of one thread, and llama.cpp's own of the same weights, in turn.

    python benchmarks/kernels.py [--types IQ3_S,IQ2_S] [--library …/libggml-base.so]

llama.cpp's is `ggml_quantize_chunk`, which upstream builds for any x86-64; without --library it is the one in xllamacpp, which
the tests install. It reads float32, ours bfloat16 of the same values, and ours adds up errors on the way. Weights are normal,
0.02 wide, in rows of 2048; medians of --rounds by the thread's own time. That the bytes are the same is asked on the way.
"""

from __future__ import annotations

import argparse
import ctypes
import sys
from importlib.metadata import version
from pathlib import Path
from statistics import median

import numpy as np
import xllamacpp
from measure import machine, thread_seconds
from numpy.typing import NDArray

from qconvd.api import row_bytes
from qconvd.ggml_types import TYPES
from qconvd_ggml.kernels import _ENTRIES, encode

COLUMNS = 2048
LIKE_FLOATS = ("F32", "F16", "BF16")
IDS = {kind.name: number for number, kind in TYPES.items()}


class Llama:
    """ggml_quantize_chunk of one library."""

    def __init__(self, library: Path) -> None:
        self._chunk = ctypes.CDLL(str(library)).ggml_quantize_chunk
        self._chunk.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int64] * 3, ctypes.c_void_p]
        self._chunk.restype = ctypes.c_size_t

    def encode(self, dtype: str, x: NDArray[np.float32], importance: NDArray[np.float32] | None) -> NDArray[np.uint8]:
        out = np.empty((len(x), row_bytes(dtype, COLUMNS)), np.uint8)
        matrix = None if importance is None else importance.ctypes.data
        written = self._chunk(IDS[dtype], x.ctypes.data, out.ctypes.data, 0, len(x), COLUMNS, matrix)
        assert written == out.nbytes
        return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", type=Path, default=None)
    parser.add_argument("--types", type=lambda text: text.split(","), default=[t for t in _ENTRIES if t not in LIKE_FLOATS])
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    llama = Llama(given.library or next(Path(xllamacpp.__file__).parent.glob("xllamacpp*.so")))
    importance = np.random.default_rng(5).random(COLUMNS).astype(np.float32) ** 2 + np.float32(1e-3)
    print(f"{machine()}, xllamacpp {version('xllamacpp')}\n")
    print("| to | ours | llama.cpp | ratio | with a matrix: ours | llama.cpp | ratio |\n|---|---|---|---|---|---|---|")
    for dtype in given.types:
        entry, cells = _ENTRIES[dtype], []
        for matrix in (None, importance):
            there = entry.plain is not None if matrix is None else entry.weighted is not None
            cells += _speeds(llama, dtype, matrix, given.rounds) if there else ["", "", ""]
        print(f"| {dtype} | {' | '.join(cells)} |", flush=True)


def _speeds(llama: Llama, dtype: str, matrix: NDArray[np.float32] | None, rounds: int) -> list[str]:
    rng = np.random.default_rng(0)
    halves, singles = _bfloat16(rng.standard_normal((128, COLUMNS)) * 0.02)
    # llama.cpp's slowest types take seconds for a million weights.
    few = singles[:16]
    same = encode(dtype, halves[:16], "BF16", importance=matrix)[0] == llama.encode(dtype, few, matrix)
    if not same.all():
        sys.exit(f"{dtype}: bytes differ from llama.cpp's")
    ours, theirs = [], []
    for _ in range(rounds):
        ours.append(halves.size / thread_seconds(lambda: encode(dtype, halves, "BF16", importance=matrix)) / 1e6)
        theirs.append(few.size / thread_seconds(lambda: llama.encode(dtype, few, matrix)) / 1e6)
    return [f"{median(ours):.3g}", f"{median(theirs):.3g}", f"{median(ours) / median(theirs):.1f}"]


def _bfloat16(weights: NDArray[np.float64]) -> tuple[NDArray[np.uint16], NDArray[np.float32]]:
    """Bits of bfloat16, and the float32 that they stand for."""
    bits = np.ascontiguousarray(weights, np.float32).view(np.uint32) & np.uint32(0xFFFF0000)
    return (bits >> np.uint32(16)).astype(np.uint16), bits.view(np.float32)


if __name__ == "__main__":
    main()
