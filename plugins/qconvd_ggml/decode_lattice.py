"""IQ1, IQ2 and IQ3, whose weights stand in groups on points of a lattice: decoders, and how far they may be from the weights.

Layouts: ggml-common.h; what levels stand for: iq2xxs_grid … iq1s_grid there.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qconvd_ggml.decode_base import Bound, Decoder, Floats, half
from qconvd_ggml.lattice import point_levels

_IQ2 = np.array([8, 25, 43], np.float32)
_IQ3_XXS = np.array([4, 12, 20, 28, 36, 44, 52, 62], np.float32)
_IQ3_S = np.array([1, 3, 5, 7, 9, 11, 13, 15], np.float32)
_IQ1 = np.array([-1, 0, 1], np.float32)
_DELTA = np.float32(0.125)


def _words(raw: NDArray[np.uint8], kind: str) -> Floats:
    return np.ascontiguousarray(raw).view(kind).astype(np.uint32)


def _halves_of_bytes(raw: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Low and high nibble of each byte in turn: (blocks, 2 n)."""
    return np.stack([raw & 15, raw >> 4], axis=2).reshape(len(raw), -1)


def _signs(bits: NDArray[np.uint8]) -> Floats:
    """A byte's bits, the lowest first, as factors: (…, 8)."""
    return 1 - 2 * np.unpackbits(bits[..., None], axis=-1, bitorder="little").astype(np.float32)


def _even_signs(seven: Floats) -> Floats:
    """Of seven bits; the eighth sign makes the number of negative ones even."""
    bits = (seven & 127).astype(np.uint8)
    odd = np.unpackbits(bits[..., None], axis=-1).sum(axis=-1, dtype=np.uint8) & 1
    return _signs(bits | odd << 7)


def _place(dtype: str, values: NDArray[np.float32], index: Floats) -> Floats:
    """The values of points: (…, group)."""
    points: Floats = values[point_levels(dtype)]
    return points[index]


def _iq2_xxs(raw: NDArray[np.uint8]) -> Floats:
    b = raw.reshape(-1, 66)
    words = _words(b[:, 2:], "<u4").reshape(-1, 8, 2)
    index = words[..., :1] >> np.array([0, 8, 16, 24], np.uint32) & 255
    signs = _even_signs(words[..., 1:] >> np.array([0, 7, 14, 21], np.uint32))
    scales = half(b[:, :2]) * (np.float32(0.5) + (words[..., 1] >> 28).astype(np.float32)) * np.float32(0.25)
    weights: Floats = scales[..., None, None] * _place("IQ2_XXS", _IQ2, index) * signs
    return weights


def _iq2_xs(raw: NDArray[np.uint8]) -> Floats:
    b = raw.reshape(-1, 74)
    words = _words(b[:, 2:66], "<u2").reshape(-1, 16, 2)
    scales = half(b[:, :2]) * (np.float32(0.5) + _halves_of_bytes(b[:, 66:])) * np.float32(0.25)
    weights: Floats = scales[..., None, None] * _place("IQ2_XS", _IQ2, words & 511) * _even_signs(words >> 9)
    return weights


def _iq2_s(raw: NDArray[np.uint8]) -> Floats:
    b = raw.reshape(-1, 82)
    high = b[:, 66:74, None].astype(np.uint32) >> np.array([0, 2, 4, 6], np.uint32) & 3
    index = (b[:, 2:34] | high.reshape(-1, 32) << 8).reshape(-1, 16, 2)
    scales = half(b[:, :2]) * (np.float32(0.5) + _halves_of_bytes(b[:, 74:])) * np.float32(0.25)
    weights: Floats = scales[..., None, None] * _place("IQ2_S", _IQ2, index) * _signs(b[:, 34:66].reshape(-1, 16, 2))
    return weights


def _iq3_xxs(raw: NDArray[np.uint8]) -> Floats:
    b = raw.reshape(-1, 98)
    words = _words(b[:, 66:], "<u4")
    points = _place("IQ3_XXS", _IQ3_XXS, b[:, 2:66].astype(np.uint32)).reshape(-1, 8, 4, 8)
    signs = _even_signs(words[..., None] >> np.array([0, 7, 14, 21], np.uint32))
    scales = half(b[:, :2]) * (np.float32(0.5) + (words >> 28).astype(np.float32)) * np.float32(0.5)
    weights: Floats = scales[..., None, None] * points * signs
    return weights


def _iq3_s(raw: NDArray[np.uint8]) -> Floats:
    b = raw.reshape(-1, 110)
    high = np.unpackbits(b[:, 66:74], axis=1, bitorder="little").astype(np.uint32)
    points = _place("IQ3_S", _IQ3_S, b[:, 2:66] | high << 8).reshape(-1, 8, 4, 8)
    scales = half(b[:, :2]) * (1 + 2 * _halves_of_bytes(b[:, 106:])).astype(np.float32)
    weights: Floats = scales[..., None, None] * points * _signs(b[:, 74:106].reshape(-1, 8, 4))
    return weights


def _iq1_s(raw: NDArray[np.uint8]) -> Floats:
    b = raw.reshape(-1, 50)
    high = _words(b[:, 34:], "<u2")
    index = b[:, 2:34].reshape(-1, 8, 4) | (high[..., None] >> np.array([0, 3, 6, 9], np.uint32) & 7) << 8
    scales = half(b[:, :2]) * (2 * (high >> 12 & 7) + 1).astype(np.float32)
    delta = np.where(high & 0x8000, -_DELTA, _DELTA)
    weights: Floats = scales[..., None, None] * (_place("IQ1_S", _IQ1, index) + delta[..., None, None])
    return weights


def _iq1_m(raw: NDArray[np.uint8]) -> Floats:
    b = raw.reshape(-1, 56)
    words = _words(b[:, 48:], "<u2")
    scale = (words >> 12 << np.array([0, 4, 8, 12], np.uint32)).sum(axis=1).astype("<u2").view(np.float16)
    steps = (words[..., None] >> np.array([0, 3, 6, 9], np.uint32) & 7).reshape(-1, 16)
    high = _halves_of_bytes(b[:, 32:48]).astype(np.uint32)
    index = (b[:, :32] | (high & 7) << 8).reshape(-1, 16, 2)
    delta = np.where(high & 8, -_DELTA, _DELTA).reshape(-1, 16, 2, 1)
    scales = scale.astype(np.float32)[:, None] * (2 * steps + 1).astype(np.float32)
    weights: Floats = scales[..., None, None] * (_place("IQ1_S", _IQ1, index) + delta)
    return weights


def _bound(x: Floats, width: int, least: float, most: float, steps: int) -> Floats:
    """What no encoding exceeds, whatever counts how much: blocks of `width` weights, levels from `least` to `most`.

    A block's scale is an average of |x| / level over its weights, with any weights, so it is at most max |x| / least; rounded
    to an odd multiple of the super-block's step, 1/`steps` of its largest scale, it grows by a step at most; the factor that
    the step is multiplied with is below 1.13. A reader sees at most `most` times that, on either side of zero.

    With 1.5 to 3.5 bits per weight, groups that share a point and a search that prefers what counts more, single weights may
    be far off, so this bound is wide: it finds scales and blocks that are wrong by an order of magnitude, and not more.
    """
    blocks = x.reshape(-1, 256 // width, width)
    magnitude = np.abs(blocks)
    largest = magnitude.max(axis=2, keepdims=True) / least
    step = largest.max(axis=1, keepdims=True) / steps * 1.13
    scale = np.where(step >= 65520, np.inf, largest * 1.13 + step + steps * 2.0**-25)
    return magnitude + most * scale * (1 + 2.0**-10)


DECODERS: dict[str, Decoder] = {
    "IQ2_XXS": _iq2_xxs, "IQ2_XS": _iq2_xs, "IQ2_S": _iq2_s, "IQ3_XXS": _iq3_xxs, "IQ3_S": _iq3_s,
    "IQ1_S": _iq1_s, "IQ1_M": _iq1_m,
}  # fmt: skip
BOUNDS: dict[str, Bound] = {
    "IQ2_S": lambda x: _bound(x, 16, 1, 43 / 8, 31),
    "IQ3_XXS": lambda x: _bound(x, 32, 1, 62 / 4, 31),
    "IQ3_S": lambda x: _bound(x, 32, 1, 15, 31),
    "IQ1_M": lambda x: _bound(x, 16, 0.125, 1.125, 15),
    "IQ2_XXS": lambda x: _bound(x, 32, 1, 43 / 8, 31),
    "IQ2_XS": lambda x: _bound(x, 16, 1, 43 / 8, 31),
    "IQ1_S": lambda x: _bound(x, 32, 0.125, 1.125, 15),
}
"""With an importance matrix and without one."""
