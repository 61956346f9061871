"""IQ4_NL, IQ4_XS, MXFP4, TQ1_0, TQ2_0, whose levels stand for fixed values: decoders, and how far they may be from the weights.

Layouts: ggml-common.h.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qconvd_ggml import bounds
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


def _bound_iq4(x: Floats, per: int, importance: Floats | None) -> Floats:
    """IQ4_NL (`per` 1) and IQ4_XS (8 blocks to a half): half the widest gap between values, or the way from the last value.

    The search takes one of sixteen least squares scales; `_iq4_scales` says between which two they lie. A scale that is
    rounded to 6 bits moves by at most one step, 1/32 of the largest.
    """
    blocks = x.reshape(-1, per, 32)
    magnitude = np.abs(blocks)
    most = magnitude.max(axis=2)
    if importance is None:
        w = blocks * blocks
    else:
        mean = (blocks * blocks).mean(axis=(1, 2), keepdims=True)
        w = importance.reshape(blocks.shape) * np.sqrt(2 * mean + blocks * blocks)
    least, largest = _iq4_scales(blocks, w)
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


def _iq4_scales(blocks: Floats, w: Floats) -> tuple[Floats, Floats]:
    """The least and the largest magnitude of the scales that the search may choose, where an error counts `w`."""
    # The search begins with 127 for the largest weight, and goes on with -120 … -134.
    # A tie that float32 decides the other way is decided so by a slightly smaller or larger scale.
    tops = [top * tie for top in (127, *range(-134, -119)) for tie in (1 - 1e-6, 1 + 1e-6)]
    least, largest = bounds.fitted_scales(blocks, w, tops, _nearest_values)
    # What does not count enough for float32 may get any mean of x / q, q being nearest to 120 … 134 times x / most, or zero.
    most = np.abs(blocks).max(axis=-1)
    counted = (w * blocks * blocks).sum(axis=-1)
    lost = (counted < 1e-30) | (w.max(axis=-1) < 1e-30)
    return np.where(lost, 0, least * 0.98), np.where(lost, most * (7.01 / 120), largest * 1.02)


_REACH = 140
_BORDERS = (_IQ4[1:] + _IQ4[:-1].astype(np.float64)) / 2
_NEAREST = _IQ4[np.searchsorted(_BORDERS, np.arange(-_REACH, _REACH, 0.5) + 0.25)].astype(np.float64)
"""The value nearest to what lies between n / 2 and (n + 1) / 2, from -_REACH on: borders between values are halves."""


def _nearest_values(v: Floats) -> Floats:
    steps = np.floor(2 * v).astype(np.int64) + 2 * _REACH
    values: Floats = _NEAREST[np.clip(steps, 0, len(_NEAREST) - 1)]
    return values


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
    "IQ4_NL": lambda x: _bound_iq4(x, 1, None),
    "IQ4_XS": lambda x: _bound_iq4(x, 8, None),
    "MXFP4": _bound_mxfp4,
    "TQ1_0": _bound_ternary,
    "TQ2_0": _bound_ternary,
}
WEIGHTED_BOUNDS: dict[str, WeightedBound] = {
    "IQ4_NL": lambda x, importance: _bound_iq4(x, 1, importance),
    "IQ4_XS": lambda x, importance: _bound_iq4(x, 8, importance),
}
