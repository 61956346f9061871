"""Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0: decoders, and how far they may be from the weights. Layouts: ggml-common.h."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qconvd_ggml import bounds
from qconvd_ggml.decode_base import ROUNDING, Bound, Decoder, Floats, WeightedBound, half, rounded


def _nibbles(raw: NDArray[np.uint8]) -> NDArray[np.int32]:
    """Low nibbles of all bytes, then high nibbles."""
    return np.concatenate([raw & 15, raw >> 4], axis=1).astype(np.int32)


def _fifth_bits(raw: NDArray[np.uint8]) -> NDArray[np.int32]:
    return np.unpackbits(raw, axis=1, bitorder="little").astype(np.int32) << 4


def _q4_0(raw: NDArray[np.uint8]) -> Floats:
    b = raw.reshape(-1, 18)
    return half(b[:, :2]) * (_nibbles(b[:, 2:]) - 8).astype(np.float32)


def _q4_1(raw: NDArray[np.uint8]) -> Floats:
    b = raw.reshape(-1, 20)
    return half(b[:, :2]) * _nibbles(b[:, 4:]).astype(np.float32) + half(b[:, 2:4])


def _q5_0(raw: NDArray[np.uint8]) -> Floats:
    b = raw.reshape(-1, 22)
    return half(b[:, :2]) * ((_nibbles(b[:, 6:]) | _fifth_bits(b[:, 2:6])) - 16).astype(np.float32)


def _q5_1(raw: NDArray[np.uint8]) -> Floats:
    b = raw.reshape(-1, 24)
    q = (_nibbles(b[:, 8:]) | _fifth_bits(b[:, 4:8])).astype(np.float32)
    return half(b[:, :2]) * q + half(b[:, 2:4])


def _q8_0(raw: NDArray[np.uint8]) -> Floats:
    b = raw.reshape(-1, 34)
    return half(b[:, :2]) * b[:, 2:].view(np.int8).astype(np.float32)


def _bound_around_zero(x: Floats, levels: int) -> Floats:
    """Q4_0, Q5_0: half a step, but a whole one at the far end: there is no q for +levels, only for -levels."""
    blocks = x.reshape(-1, 32)
    most = np.abs(blocks).max(axis=1, keepdims=True)
    d = most / levels
    _, lost = rounded(d)
    # Which end has no q depends on the sign of the largest weight; where both signs reach it, either may be the one.
    beyond = np.abs(blocks) - (levels - 1) * d
    signed_end = np.where(blocks > 0, blocks.min(axis=1, keepdims=True) == -most, blocks.max(axis=1, keepdims=True) == most)
    step = np.where(signed_end, np.maximum(d / 2, beyond), d / 2)
    bound: Floats = step + lost * levels + most * ROUNDING
    return bound


def _bound_above_minimum(x: Floats, levels: int) -> Floats:
    """Q4_1, Q5_1: half a step, and what the scale and the minimum lose in 16 bits."""
    blocks = x.reshape(-1, 32)
    low, high = blocks.min(axis=1, keepdims=True), blocks.max(axis=1, keepdims=True)
    d = (high - low) / levels
    _, lost = rounded(d)
    _, shifted = rounded(low)
    most = np.maximum(np.abs(low), np.abs(high))
    return np.broadcast_to(d / 2 + lost * levels + shifted + most * ROUNDING, blocks.shape)


def _bound_q8_0(x: Floats) -> Floats:
    blocks = x.reshape(-1, 32)
    most = np.abs(blocks).max(axis=1, keepdims=True)
    _, lost = rounded(most / 127)
    return np.broadcast_to(most / 254 + lost * 127 + most * ROUNDING, blocks.shape)


def _counts(x: Floats, importance: Floats) -> tuple[Floats, Floats]:
    """Blocks, and what errors in them count with an importance matrix."""
    w = importance * np.sqrt((x * x).mean(axis=1, keepdims=True) + x * x)
    return x.reshape(-1, 32), w.reshape(-1, 32)


def _lost(most: Floats) -> Floats:
    """What a number up to `most` may lose as a half."""
    return np.where(most > 60000, np.inf, np.maximum(most * 2.0**-11, 2.0**-25))


def _weighted_around_zero(x: Floats, importance: Floats, levels: int) -> Floats:
    """Q4_0, Q5_0: as bounds.py has it, and what the scale loses in 16 bits. Levels are those that the search left."""
    blocks, w = _counts(x, importance)
    fit = bounds.symmetric(blocks, w, levels)
    most = np.abs(blocks).max(axis=1, keepdims=True)
    # Below 1e-15 ggml takes zero.
    kept = np.where(most < 1.1e-15, np.abs(blocks), fit.kept)
    bound: Floats = kept + levels * _lost(fit.scale)[:, None] + most * ROUNDING
    return bound


def _weighted_above_minimum(x: Floats, importance: Floats, levels: int) -> Floats:
    """Q4_1, Q5_1: the same, with the minimum."""
    blocks, w = _counts(x, importance)
    fit = bounds.affine(blocks, w, levels, -0.9, 0.05, 36)
    most = np.abs(blocks).max(axis=1, keepdims=True)
    bound: Floats = fit.kept + (levels * _lost(fit.scale) + _lost(fit.minimum))[:, None] + most * ROUNDING
    return bound


DECODERS: dict[str, Decoder] = {"Q4_0": _q4_0, "Q4_1": _q4_1, "Q5_0": _q5_0, "Q5_1": _q5_1, "Q8_0": _q8_0}
BOUNDS: dict[str, Bound] = {
    "Q4_0": lambda x: _bound_around_zero(x, 8),
    "Q5_0": lambda x: _bound_around_zero(x, 16),
    "Q4_1": lambda x: _bound_above_minimum(x, 15),
    "Q5_1": lambda x: _bound_above_minimum(x, 31),
    "Q8_0": _bound_q8_0,
}
WEIGHTED_BOUNDS: dict[str, WeightedBound] = {
    "Q4_0": lambda x, importance: _weighted_around_zero(x, importance, 8),
    "Q5_0": lambda x, importance: _weighted_around_zero(x, importance, 16),
    "Q4_1": lambda x, importance: _weighted_above_minimum(x, importance, 15),
    "Q5_1": lambda x, importance: _weighted_above_minimum(x, importance, 31),
}
