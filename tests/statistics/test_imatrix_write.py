"""Importance matrices that qconvd writes: read back by its own reader and by llama.cpp's library for GGUF."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from gguf import GGUFReader

from qconvd.statistics.imatrix import open_imatrix
from qconvd.statistics.imatrix_write import MeanSquares, write_imatrix

RNG = np.random.default_rng(5)
ENTRIES = {
    "blk.0.ffn_down.weight": MeanSquares(RNG.uniform(0.1, 9, 64).astype(np.float32), (4096,)),
    "blk.0.ffn_up_exps.weight": MeanSquares(RNG.uniform(0.1, 9, 3 * 32).astype(np.float32), (100, 0, 7)),
}


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "imatrix.gguf"
    write_imatrix(path, ENTRIES, dataset="novel", samples=8, length=512)
    found = open_imatrix(path)
    assert (found.datasets, found.chunks) == (("novel",), 8)
    assert set(found.entries) == set(ENTRIES)
    np.testing.assert_allclose(found.mean_square("blk.0.ffn_down.weight"), ENTRIES["blk.0.ffn_down.weight"].values, rtol=1e-6)
    experts = found.mean_square("blk.0.ffn_up_exps.weight").reshape(3, 32)
    np.testing.assert_allclose(experts[::2], ENTRIES["blk.0.ffn_up_exps.weight"].values.reshape(3, 32)[::2], rtol=1e-6)
    assert (experts[1] == 1).all() and found.unused("blk.0.ffn_up_exps.weight") == 1
    found.close()


def test_it_has_what_llama_cpp_looks_for(tmp_path: Path) -> None:
    path = tmp_path / "imatrix.gguf"
    write_imatrix(path, ENTRIES, dataset="novel", samples=8, length=512)
    reader = GGUFReader(path)
    assert reader.fields["general.type"].contents() == "imatrix"
    assert reader.fields["imatrix.datasets"].contents() == ["novel"]
    assert reader.fields["imatrix.chunk_count"].contents() == 8
    assert reader.fields["imatrix.chunk_size"].contents() == 512
    # GGUF counts axes from the contiguous one, and ggml none of one behind it.
    assert {t.name: list(t.shape) for t in reader.tensors} == {
        "blk.0.ffn_down.weight.in_sum2": [64], "blk.0.ffn_down.weight.counts": [1],
        "blk.0.ffn_up_exps.weight.in_sum2": [32, 3], "blk.0.ffn_up_exps.weight.counts": [1, 3],
    }  # fmt: skip
