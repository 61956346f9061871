"""bitsandbytes' double quantization: the blocks' largest, less their mean, in 8 bits."""

from __future__ import annotations

from functools import cache

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
    return closest(scaled.reshape(-1)[: moved.size]), largest, mean


def closest(x: Singles) -> NDArray[np.uint8]:
    """The index of the nearest of `dynamic()`, of two as near the lower one; `x`: contiguous, in [-1, 1].

    Numbers that share the upper half of their bits have at most one middle between them: the rest is one comparison.
    """
    middles, least = _middles()
    codes: NDArray[np.uint8] = least[x.view(np.uint32) >> np.uint32(16)]
    codes += x > middles[codes]
    return codes


@cache
def _middles() -> tuple[Singles, NDArray[np.uint8]]:
    """Those between two numbers; and how many of them lie below every float32 with the same upper half, by that half."""
    numbers = dynamic()
    middles = (numbers[:-1] + numbers[1:]) / np.float32(2)
    upper = np.arange(1 << 16, dtype=np.uint32) << np.uint32(16)
    # The least of them is the one with zeros behind, of negative ones the one with ones.
    lowest = np.where(upper >> np.uint32(31), upper | np.uint32(0xFFFF), upper).view(np.float32)
    # NaN is behind all others.
    return np.append(middles, np.float32(np.inf)), np.searchsorted(middles, lowest).astype(np.uint8)


def as_read(codes: NDArray[np.uint8], largest: Singles, mean: np.float32) -> Singles:
    """The blocks' largest as a reader has them."""
    return dynamic()[codes] * np.repeat(largest, NESTED_BLOCK)[: codes.size] + mean
