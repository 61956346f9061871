"""What a reader sees in GGML's block types, and how far that may be from the weights. Plain numpy, independent of the kernels.

Layouts: block_q4_0 … block_q6_K in ggml-common.h. All arithmetic of `error_bound` is in float64.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qconvd.api import row_bytes

Floats = NDArray[Any]
_ROUNDING = 2.0**-20
"""Allowed for float32 arithmetic inside a block, relative to its largest weight."""


def decode(dtype: str, data: Any, columns: int) -> NDArray[np.float32]:
    """Bytes (anything with a buffer) of whole rows of a type, as float32 of shape (rows, columns).

    Raises ValueError if the bytes are no whole rows or the type is none of those that this package encodes.
    """
    raw = np.frombuffer(data, np.uint8)
    width = row_bytes(dtype, columns)
    if dtype not in _DECODERS:
        raise ValueError(f"no decoder for {dtype}")
    if width == 0 or raw.size % width:
        raise ValueError(f"{raw.size} bytes are no whole rows of {columns} weights as {dtype}")
    with np.errstate(over="ignore", invalid="ignore"):
        return np.ascontiguousarray(_DECODERS[dtype](raw), np.float32).reshape(raw.size // width, columns)


def error_bound(dtype: str, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """The largest |decoded - x| that is right, element by element, for weights `x` of shape (rows, columns).

    Infinite where a block holds NaN or infinite weights, or scales too large for a half: anything may come of those.
    """
    if dtype not in _BOUNDS:
        raise ValueError(f"no error bound for {dtype}")
    row_bytes(dtype, x.shape[1])
    with np.errstate(all="ignore"):
        bound = _BOUNDS[dtype](x.astype(np.float64))
    bound = np.where(np.isnan(bound), np.inf, bound).reshape(x.shape)
    with np.errstate(over="ignore"):
        return np.nextafter(bound.astype(np.float32), np.float32(np.inf))


def _half(raw: NDArray[np.uint8]) -> NDArray[np.float32]:
    return np.ascontiguousarray(raw).view("<f2").astype(np.float32)


def _nibbles(raw: NDArray[np.uint8]) -> NDArray[np.int32]:
    """Low nibbles of all bytes, then high nibbles."""
    return np.concatenate([raw & 15, raw >> 4], axis=1).astype(np.int32)


def _fifth_bits(raw: NDArray[np.uint8]) -> NDArray[np.int32]:
    return np.unpackbits(raw, axis=1, bitorder="little").astype(np.int32) << 4


def _q4_0(raw: NDArray[np.uint8]) -> Floats:
    b = raw.reshape(-1, 18)
    return _half(b[:, :2]) * (_nibbles(b[:, 2:]) - 8).astype(np.float32)


def _q4_1(raw: NDArray[np.uint8]) -> Floats:
    b = raw.reshape(-1, 20)
    return _half(b[:, :2]) * _nibbles(b[:, 4:]).astype(np.float32) + _half(b[:, 2:4])


def _q5_0(raw: NDArray[np.uint8]) -> Floats:
    b = raw.reshape(-1, 22)
    return _half(b[:, :2]) * ((_nibbles(b[:, 6:]) | _fifth_bits(b[:, 2:6])) - 16).astype(np.float32)


def _q5_1(raw: NDArray[np.uint8]) -> Floats:
    b = raw.reshape(-1, 24)
    q = (_nibbles(b[:, 8:]) | _fifth_bits(b[:, 4:8])).astype(np.float32)
    return _half(b[:, :2]) * q + _half(b[:, 2:4])


def _q8_0(raw: NDArray[np.uint8]) -> Floats:
    b = raw.reshape(-1, 34)
    return _half(b[:, :2]) * b[:, 2:].view(np.int8).astype(np.float32)


def _q6_k(raw: NDArray[np.uint8]) -> Floats:
    b = raw.reshape(-1, 210)
    low = b[:, :128].reshape(-1, 2, 1, 64)
    pairs = b[:, 128:192].reshape(-1, 2, 1, 32)
    low = np.concatenate([low & 15, low >> 4], axis=2).reshape(-1, 2, 4, 32)
    q = low | ((pairs >> np.array([0, 2, 4, 6], np.uint8).reshape(4, 1)) & 3) << 4
    q = q.reshape(-1, 16, 16).astype(np.int32) - 32
    scales = _half(b[:, 208:]) * b[:, 192:208].view(np.int8).astype(np.float32)
    weights: Floats = scales[:, :, None] * q.astype(np.float32)
    return weights


def _f32(raw: NDArray[np.uint8]) -> NDArray[np.float32]:
    return raw.view(np.float32)


def _f16(raw: NDArray[np.uint8]) -> Floats:
    return raw.view("<f2").astype(np.float32)


def _bf16(raw: NDArray[np.uint8]) -> Floats:
    return (raw.view("<u2").astype(np.uint32) << 16).view(np.float32)


def _rounded(d: Floats) -> tuple[Floats, Floats]:
    """|d| as a half holds it and what is lost by that; infinite where it does not fit."""
    half = np.abs(d).astype(np.float32).astype(np.float16).astype(np.float64)
    return half, np.abs(half - np.abs(d))


def _bound_around_zero(x: Floats, levels: int) -> Floats:
    """Q4_0, Q5_0: half a step, but a whole one at the far end: there is no q for +levels, only for -levels."""
    blocks = x.reshape(-1, 32)
    most = np.abs(blocks).max(axis=1, keepdims=True)
    d = most / levels
    _, lost = _rounded(d)
    # Which end has no q depends on the sign of the largest weight; where both signs reach it, either may be the one.
    beyond = np.abs(blocks) - (levels - 1) * d
    signed_end = np.where(blocks > 0, blocks.min(axis=1, keepdims=True) == -most, blocks.max(axis=1, keepdims=True) == most)
    step = np.where(signed_end, np.maximum(d / 2, beyond), d / 2)
    bound: Floats = step + lost * levels + most * _ROUNDING
    return bound


def _bound_above_minimum(x: Floats, levels: int) -> Floats:
    """Q4_1, Q5_1: half a step, and what the scale and the minimum lose in 16 bits."""
    blocks = x.reshape(-1, 32)
    low, high = blocks.min(axis=1, keepdims=True), blocks.max(axis=1, keepdims=True)
    d = (high - low) / levels
    _, lost = _rounded(d)
    _, shifted = _rounded(low)
    most = np.maximum(np.abs(low), np.abs(high))
    return np.broadcast_to(d / 2 + lost * levels + shifted + most * _ROUNDING, blocks.shape)


def _bound_q8_0(x: Floats) -> Floats:
    blocks = x.reshape(-1, 32)
    most = np.abs(blocks).max(axis=1, keepdims=True)
    _, lost = _rounded(most / 127)
    return np.broadcast_to(most / 254 + lost * 127 + most * _ROUNDING, blocks.shape)


def _bound_q6_k(x: Floats) -> Floats:
    """Q6_K: whichever of the candidate scales the search took, it is one of those computed here.

    So a sub-block's scale lies between the least and the largest of them, plus what is lost when it is rounded to 8 bits of
    the super-block's scale. Half a step of the largest, or the distance from the last level of the least.
    """
    blocks = x.reshape(-1, 16, 16)
    least, largest = _candidates(blocks)
    unit = largest.max(axis=1, keepdims=True) / 128
    _, lost = _rounded(unit)
    spread = unit + lost * 128
    largest, least = largest + spread, np.maximum(least - spread, 0)
    magnitude = np.abs(blocks)
    far = np.maximum(largest[:, :, None] / 2, magnitude - 31 * least[:, :, None])
    # A scale that rounds to zero makes the whole sub-block zero.
    bound = np.where(least[:, :, None] == 0, np.maximum(far, magnitude), far)
    bound += magnitude.max(axis=(1, 2), keepdims=True) * _ROUNDING
    # The search works with cubes of weights in float32.
    return np.where(magnitude.max(axis=(1, 2), keepdims=True) > 1e12, np.inf, bound)


def _candidates(blocks: Floats) -> tuple[Floats, Floats]:
    """The least and largest magnitude of the scales that the search may choose, per sub-block."""
    most = np.abs(blocks).max(axis=-1, keepdims=True)
    most_signed = np.where(blocks.max(axis=-1, keepdims=True) == most, 1.0, -1.0)
    both = (blocks.max(axis=-1) == most[..., 0]) & (blocks.min(axis=-1) == -most[..., 0])
    least, largest = np.full(blocks.shape[:2], np.inf), np.zeros(blocks.shape[:2])
    for k in range(-9, 10):
        for flip in (1.0, -1.0):
            inverse = -(32 + 0.1 * k) / most * most_signed * flip
            q = np.clip(np.rint(np.where(most > 0, blocks * inverse, 0)), -32, 31)
            weight = blocks * blocks
            scale = np.abs((weight * blocks * q).sum(axis=-1) / (weight * q * q).sum(axis=-1))
            scale = np.where(np.isfinite(scale), scale, 0)
            used = np.full(both.shape, True) if flip == 1.0 else both
            least = np.where(used, np.minimum(least, scale), least)
            largest = np.where(used, np.maximum(largest, scale), largest)
    # A tie that float32 rounds the other way moves a scale by less than this; below 1e-15 ggml takes zero.
    least = np.where(most[..., 0] < 1.1e-15, 0, least * 0.99)
    return least, largest * 1.01


def _bound_f16(x: Floats) -> Floats:
    return np.where(np.abs(x) >= 65520, np.inf, np.maximum(np.abs(x) * 2.0**-11, 2.0**-25))


def _bound_bf16(x: Floats) -> Floats:
    return np.where(np.abs(x) >= 2.0**128 - 2.0**119, np.inf, np.maximum(np.abs(x) * 2.0**-8, 2.0**-134))


_DECODERS = {
    "Q4_0": _q4_0, "Q4_1": _q4_1, "Q5_0": _q5_0, "Q5_1": _q5_1, "Q8_0": _q8_0, "Q6_K": _q6_k,
    "F32": _f32, "F16": _f16, "BF16": _bf16,
}  # fmt: skip
_BOUNDS = {
    "Q4_0": lambda x: _bound_around_zero(x, 8),
    "Q5_0": lambda x: _bound_around_zero(x, 16),
    "Q4_1": lambda x: _bound_above_minimum(x, 15),
    "Q5_1": lambda x: _bound_above_minimum(x, 31),
    "Q8_0": _bound_q8_0,
    "Q6_K": _bound_q6_k,
    "F32": lambda x: np.where(np.isfinite(x), 0.0, np.inf),
    "F16": _bound_f16,
    "BF16": _bound_bf16,
}
TYPES = frozenset(_DECODERS)
"""What `decode` knows."""
