"""The K types: decoders, and how far they may be from the weights. Layouts: block_q2_K … block_q6_K in ggml-common.h."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qconvd_ggml.decode_base import ROUNDING, Bound, Decoder, Floats, half, rounded


def _q6_k(raw: NDArray[np.uint8]) -> Floats:
    b = raw.reshape(-1, 210)
    low = b[:, :128].reshape(-1, 2, 1, 64)
    pairs = b[:, 128:192].reshape(-1, 2, 1, 32)
    low = np.concatenate([low & 15, low >> 4], axis=2).reshape(-1, 2, 4, 32)
    q = low | ((pairs >> np.array([0, 2, 4, 6], np.uint8).reshape(4, 1)) & 3) << 4
    q = q.reshape(-1, 16, 16).astype(np.int32) - 32
    scales = half(b[:, 208:]) * b[:, 192:208].view(np.int8).astype(np.float32)
    weights: Floats = scales[:, :, None] * q.astype(np.float32)
    return weights


def _bound_q6_k(x: Floats) -> Floats:
    """Q6_K: whichever of the candidate scales the search took, it is one of those computed here.

    So a sub-block's scale lies between the least and the largest of them, plus what is lost when it is rounded to 8 bits of
    the super-block's scale. Half a step of the largest, or the distance from the last level of the least.
    """
    blocks = x.reshape(-1, 16, 16)
    least, largest = _candidates(blocks)
    unit = largest.max(axis=1, keepdims=True) / 128
    _, lost = rounded(unit)
    spread = unit + lost * 128
    largest, least = largest + spread, np.maximum(least - spread, 0)
    magnitude = np.abs(blocks)
    far = np.maximum(largest[:, :, None] / 2, magnitude - 31 * least[:, :, None])
    # A scale that rounds to zero makes the whole sub-block zero.
    bound = np.where(least[:, :, None] == 0, np.maximum(far, magnitude), far)
    bound += magnitude.max(axis=(1, 2), keepdims=True) * ROUNDING
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


DECODERS: dict[str, Decoder] = {"Q6_K": _q6_k}
BOUNDS: dict[str, Bound] = {"Q6_K": _bound_q6_k}
WEIGHTED_BOUNDS: dict[str, Bound] = {}
