"""bitsandbytes' double quantization: the blocks' largest, less their mean, in 8 bits."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qconvd_compressed.kernels.codebook import SMALLEST
from qconvd_compressed.schemes import NESTED_BLOCK
from qconvd_compressed.tables import dynamic

Singles = NDArray[np.float32]


def nested(most: Singles) -> tuple[NDArray[np.uint8], Singles, np.float32]:
    """Of (blocks,) largest: codes, (blocks / 256,) largest of their deviations, and the mean they deviate from."""
    mean = np.float32(most.mean(dtype=np.float64)) if most.size else np.float32(0)
    moved = most - mean
    whole = np.zeros(-(-moved.size // NESTED_BLOCK) * NESTED_BLOCK, np.float32)
    whole[: moved.size] = moved
    rows = whole.reshape(-1, NESTED_BLOCK)
    largest = np.abs(rows).max(axis=1)
    scaled = np.clip(rows * (np.float32(1) / np.maximum(largest, np.float32(SMALLEST)))[:, None], -1, 1)
    numbers = dynamic()
    middles = (numbers[:-1] + numbers[1:]) / np.float32(2)
    codes = np.searchsorted(middles, scaled.reshape(-1)[: moved.size]).astype(np.uint8)
    return codes, largest, mean


def as_read(codes: NDArray[np.uint8], largest: Singles, mean: np.float32) -> Singles:
    """The blocks' largest as a reader has them."""
    return dynamic()[codes] * np.repeat(largest, NESTED_BLOCK)[: codes.size] + mean
