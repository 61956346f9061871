"""What decoders and error bounds of all types share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[Any]
Decoder: TypeAlias = Callable[[NDArray[np.uint8]], Floats]
"""Bytes of any number of blocks, flat, to their weights in order, in any shape."""
Bound: TypeAlias = Callable[[Floats], Floats]
"""Float64 weights of whole rows to the largest right error of each, in any shape; NaN counts as infinite."""
WeightedBound: TypeAlias = Callable[[Floats, Floats], Floats]
"""The same for an encoding with an importance matrix: weights, and the importance of each in an array of the same shape."""
ROUNDING = 2.0**-20
"""Allowed for float32 arithmetic inside a block, relative to its largest weight."""


def half(raw: NDArray[np.uint8]) -> NDArray[np.float32]:
    return np.ascontiguousarray(raw).view("<f2").astype(np.float32)


def rounded(d: Floats) -> tuple[Floats, Floats]:
    """|d| as a half holds it and what is lost by that; infinite where it does not fit."""
    half = np.abs(d).astype(np.float32).astype(np.float16).astype(np.float64)
    return half, np.abs(half - np.abs(d))
