"""llama.cpp's own blocks, for the tests of all types."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest


@pytest.fixture(scope="module")
def blocks(golden: Path) -> dict[str, np.ndarray]:
    """`weights_bf16`, `imatrix`, and what ggml_quantize_chunk made of them, by type."""
    with np.load(golden / "ggml_blocks.npz") as file:
        return dict(file)
