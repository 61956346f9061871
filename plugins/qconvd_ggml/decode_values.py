"""IQ4_NL, IQ4_XS, MXFP4, TQ1_0, TQ2_0, whose levels stand for fixed values: decoders, and how far they may be from the weights.

Layouts: ggml-common.h.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qconvd_ggml.decode_base import ROUNDING, Bound, Decoder, Floats, WeightedBound, half, rounded

_IQ4 = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)
_MXFP4 = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.float32)
"""Twice the values of E2M1."""


def _nibbles(raw: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Of each 16 bytes the low nibbles, then the high ones: (blocks, 32)."""
    parts = raw.reshape(-1, 16)
    return np.concatenate([parts & 15, parts >> 4], axis=1)


def _iq4_nl(raw: NDArray[np.uint8]) -> Floats:
    b = raw.reshape(-1, 18)
    weights: Floats = half(b[:, :2]) * _IQ4[_nibbles(b[:, 2:])]
    return weights


def _iq4_xs(raw: NDArray[np.uint8]) -> Floats:
    b = raw.reshape(-1, 136)
    low = np.stack([b[:, 4:8] & 15, b[:, 4:8] >> 4], axis=2).reshape(-1, 8)
    high = np.ascontiguousarray(b[:, 2:4]).view("<u2") >> 2 * np.arange(8, dtype=np.uint16) & 3
    scales = half(b[:, :2]) * ((low | high << 4).astype(np.float32) - 32)
    weights: Floats = scales[:, :, None] * _IQ4[_nibbles(b[:, 8:])].reshape(-1, 8, 32)
    return weights


def _mxfp4(raw: NDArray[np.uint8]) -> Floats:
    b = raw.reshape(-1, 17)
    unit = np.ldexp(np.float32(1), b[:, :1].astype(np.int32) - 128)
    weights: Floats = unit * _MXFP4[_nibbles(b[:, 1:])]
    return weights


def _digits(raw: NDArray[np.uint8], count: int) -> NDArray[np.uint8]:
    """The first `count` base 3 digits of bytes (blocks, n), all first digits first: (blocks, count * n)."""
    powers = (raw[:, None, :] * (3 ** np.arange(count, dtype=np.uint8))[:, None]).astype(np.uint8)
    return (powers.astype(np.uint16) * 3 >> 8).astype(np.uint8).reshape(len(raw), -1)


def _tq1_0(raw: NDArray[np.uint8]) -> Floats:
    b = raw.reshape(-1, 54)
    q = np.concatenate([_digits(b[:, :32], 5), _digits(b[:, 32:48], 5), _digits(b[:, 48:52], 4)], axis=1)
    return half(b[:, 52:]) * (q.astype(np.float32) - 1)


def _tq2_0(raw: NDArray[np.uint8]) -> Floats:
    b = raw.reshape(-1, 66)
    q = b[:, :64].reshape(-1, 2, 1, 32) >> np.array([0, 2, 4, 6], np.uint8)[:, None] & 3
    return half(b[:, 64:]) * (q.reshape(-1, 256).astype(np.float32) - 1)


def _bound_iq4(x: Floats, per: int, weighted: bool) -> Floats:
    """IQ4_NL (`per` 1) and IQ4_XS (8 blocks to a half): half the widest gap between values, or the way from the last value.

    The search takes one of sixteen least squares scales; `_iq4_scales` says between which two they lie. A scale that is
    rounded to 6 bits moves by at most one step, 1/32 of the largest.
    """
    blocks = x.reshape(-1, per, 32)
    magnitude = np.abs(blocks)
    most = magnitude.max(axis=2)
    if weighted:
        # An average of x/q over the block with any weights, q nearest to 120 … 134 times x/most: no more than 7 for q = 1, and
        # nothing at all where nothing counts.
        least, largest = np.zeros(most.shape), most * (7.01 / 120)
    else:
        least, largest = _iq4_scales(blocks)
    unit = largest.max(axis=1, keepdims=True) / 32
    half_scale = unit if per > 1 else largest
    # Any smaller scale may be the one, so what is lost at most counts, not what the largest loses.
    lost = np.where(half_scale >= 65520, np.inf, np.maximum(half_scale * 2.0**-11, 2.0**-25))
    if per > 1:
        largest, least = largest + unit, np.maximum(least - unit, 0)
        lost = lost * 32
    bound = np.maximum(12 * largest[:, :, None], magnitude - 113 * least[:, :, None])
    bound = np.where(least[:, :, None] == 0, np.maximum(bound, magnitude), bound)
    bound += (lost * 127)[:, :, None] + most.max(axis=1)[:, None, None] * ROUNDING
    # The search works with cubes of weights in float32, and takes what is below 1e-15 for zero.
    top = most.max(axis=1)[:, None, None]
    return np.where(top > 1e9, np.inf, np.where(top < 1e-9, np.maximum(bound, magnitude + most[:, :, None]), bound))


def _iq4_scales(blocks: Floats) -> tuple[Floats, Floats]:
    """The least and the largest magnitude of the scales that the search without an importance matrix may choose."""
    most = np.abs(blocks).max(axis=-1, keepdims=True)
    most = np.where(blocks.max(axis=-1, keepdims=True) == most, most, -most)
    both = np.abs(blocks.max(axis=-1)) == np.abs(blocks.min(axis=-1))
    values = _IQ4.astype(np.float64)
    least, largest = np.full(blocks.shape[:2], np.inf), np.zeros(blocks.shape[:2])
    for t in range(-7, 8):
        for flip in (1.0, -1.0):
            inverse = (t - 127) / (most * flip)
            scaled = np.where(most != 0, blocks * inverse, 0)
            q = values[np.abs(scaled[..., None] - values).argmin(axis=-1)]
            weight = blocks * blocks
            scale = np.abs((weight * blocks * q).sum(axis=-1) / (weight * q * q).sum(axis=-1))
            scale = np.where(np.isfinite(scale), scale, 0)
            used = np.full(both.shape, True) if flip == 1.0 else both
            least = np.where(used, np.minimum(least, scale), least)
            largest = np.where(used, np.maximum(largest, scale), largest)
    # A tie that float32 rounds the other way moves a scale by less than this.
    return least * 0.98, largest * 1.02


def _bound_mxfp4(x: Floats) -> Floats:
    """Half a gap, or the way from the last value, 6."""
    blocks = x.reshape(-1, 32)
    magnitude = np.abs(blocks)
    most = magnitude.max(axis=1, keepdims=True)
    _, exponent = np.frexp(most)

    def bound(unit: Floats) -> Floats:
        gap = np.where(magnitude <= 2 * unit, unit / 4, np.where(magnitude <= 4 * unit, unit / 2, unit))
        return np.where(magnitude <= 6 * unit, gap, np.maximum(unit, magnitude - 6 * unit))

    found = bound(np.ldexp(1.0, exponent - 3))
    # Just below a power of two the logarithm may be rounded up.
    near = np.ldexp(most, -exponent) > 1 - 2.0**-16
    found = np.where(near, np.maximum(found, bound(np.ldexp(1.0, exponent - 2))), found)
    return np.where(most < 2.0**-124, magnitude, found)


def _bound_ternary(x: Floats) -> Floats:
    """What x/d rounds to is known, but for what lies just between two levels; d itself is rounded to 16 bits."""
    blocks = x.reshape(-1, 256)
    magnitude = np.abs(blocks)
    most = magnitude.max(axis=1, keepdims=True)
    _, lost = rounded(most)
    far = magnitude > most * (0.5 + 1e-6)
    near = magnitude < most * (0.5 - 1e-6)
    bound = np.where(far, most - magnitude, np.where(near, magnitude, most * (0.5 + 1e-6))) + lost + most * ROUNDING
    # The inverse of a subnormal scale may be infinite: all zero.
    return np.where(most < 2.0**-125, np.maximum(bound, magnitude), np.where(near & np.isfinite(lost), magnitude, bound))


DECODERS: dict[str, Decoder] = {
    "IQ4_NL": _iq4_nl, "IQ4_XS": _iq4_xs, "MXFP4": _mxfp4, "TQ1_0": _tq1_0, "TQ2_0": _tq2_0,
}  # fmt: skip
BOUNDS: dict[str, Bound] = {
    "IQ4_NL": lambda x: _bound_iq4(x, 1, False),
    "IQ4_XS": lambda x: _bound_iq4(x, 8, False),
    "MXFP4": _bound_mxfp4,
    "TQ1_0": _bound_ternary,
    "TQ2_0": _bound_ternary,
}
WEIGHTED_BOUNDS: dict[str, WeightedBound] = {
    "IQ4_NL": lambda x, _: _bound_iq4(x, 1, True),
    "IQ4_XS": lambda x, _: _bound_iq4(x, 8, True),
}
