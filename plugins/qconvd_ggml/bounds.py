"""How far what ggml's searches find may be from the weights. Plain numpy in float64, independent of the kernels.

A search returns a scale and levels whose weighted error is no more than that of the obvious scale which it starts with. From
that alone, for a group of weights x with w saying what errors count:

- the error of one weight is at most sqrt(E / w), E being the error of the start;
- where a reader's levels are the nearest ones, a weight within their reach is off by half a scale at most, and a weight beyond
  it by c only if all weights further out are off by c or more: c <= sqrt(E / the sum of their w);
- a scale around zero that least squares find is a mean of the x / q, which rounding to levels bounds; with a minimum the
  candidates are computed.

Importance may be zero, or so uneven that float32 keeps nothing of the rest: then what these say is infinite.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from qconvd_ggml.decode_base import Floats

_FLOAT32 = 1e-5
"""Allowed for sums of up to 32 products in float32, relative."""
_UNEVEN = 1e-4
"""If all but one weight of a group count less than this together, its least squares may be noise."""


class Fit(NamedTuple):
    """For groups of weights (…, group, width): the most that a search may find and miss."""

    scale: Floats
    """Of a group: no scale's magnitude is larger."""
    minimum: Floats
    """Of a group: nor any minimum's."""
    nearest: Floats
    """Of a weight: how far the nearest level may be. At most `kept`."""
    kept: Floats
    """Of a weight: how far the level may be that the search left."""
    total: Floats
    """Of a group: the sum of what its weights count."""


def affine(x: Floats, w: Floats, top: int, least: float, step: float, steps: int, magnitudes: bool = False) -> Fit:
    """The search of affine.py."""
    low, high = np.minimum(x.min(axis=-1, keepdims=True), 0), x.max(axis=-1, keepdims=True)
    spread = high - low
    first = spread / top
    start = np.clip(np.rint(np.where(first > 0, (x - low) / first, 0)), 0, top) * first + low
    e = np.abs(start - x)
    error = (w * (e if magnitudes else e * e)).sum(axis=-1, keepdims=True) * (1 + _FLOAT32)
    sound = _representable(x, w)
    error = np.where(sound, error, np.inf)
    scale, minimum = first, np.abs(low)
    for k in range(steps + 1):
        d, m = _least_squares(x, w, low, (least + step * k + top) / spread, top)
        scale, minimum = np.maximum(scale, d), np.maximum(minimum, m)
    # The search goes on with the minimums that it finds, which are not followed here.
    scale = np.where(sound & _even(w), 1.4 * scale, np.inf)
    scale = np.where(spread == 0, 0, scale)
    kept, clipped = _share(error, w, magnitudes), _share(error, np.minimum(_above(x, w), _above(-x, w)), magnitudes)
    kept = np.minimum(kept, np.where(_even(w), 2.5 * spread, np.inf))
    kept = np.where(spread == 0, np.abs(x - low), kept)
    nearest = np.minimum(np.maximum(scale / 2, clipped), kept)
    return Fit(scale[..., 0], (minimum + first)[..., 0], nearest, kept, w.sum(axis=-1))


def _least_squares(x: Floats, w: Floats, low: Floats, inverse: Floats, top: int) -> tuple[Floats, Floats]:
    """The scale, and the magnitude of the minimum, that fit the levels found with an inverse scale; zero if there are none."""
    q = np.clip(np.rint(np.where(np.isfinite(inverse), inverse * (x - low), 0)), 0, top)
    total, q_sum, qq = (part.sum(axis=-1, keepdims=True) for part in (w, w * q, w * q * q))
    x_sum, xq = (w * x).sum(axis=-1, keepdims=True), (w * x * q).sum(axis=-1, keepdims=True)
    determinant = total * qq - q_sum * q_sum
    with np.errstate(all="ignore"):
        d, m = (total * xq - x_sum * q_sum) / determinant, (qq * x_sum - q_sum * xq) / determinant
        d, m = np.where(m > 0, xq / qq, d), np.minimum(m, 0)
    fits = determinant > 1e-12 * total * qq
    return np.where(fits, d, 0), np.where(fits, -m, 0)


def symmetric(x: Floats, w: Floats, half: int, descent: bool = False) -> Fit:
    """The search of symmetric.py, or with `descent` that of q3_k.py."""
    most = np.abs(x).max(axis=-1, keepdims=True)
    step = most / half
    with np.errstate(all="ignore"):
        negative = np.clip(np.rint(np.where(step > 0, x / step, 0)), -half, half - 1) * step
        positive = -np.clip(np.rint(np.where(step > 0, -x / step, 0)), -half, half - 1) * step
    errors = [(w * (start - x) ** 2).sum(axis=-1, keepdims=True) for start in (negative, positive)]
    # Which end has no level depends on the sign of the largest weight; where both signs reach it, either may be the one.
    both = (x.max(axis=-1, keepdims=True) == most) & (x.min(axis=-1, keepdims=True) == -most)
    ends = np.where(x.max(axis=-1, keepdims=True) == most, errors[1], errors[0])
    error = np.where(both, np.maximum(*errors), ends) + _FLOAT32 * (w * x * x).sum(axis=-1, keepdims=True)
    error = np.where(_representable(x, w), error, np.inf)
    kept = _share(error, w)
    if descent:
        scale = most + np.minimum(np.where(np.abs(x) == most, kept, 0).max(axis=-1, keepdims=True), most)
        loose = scale * half
    else:
        scale = most * max(1.5 / (half - 0.9), 1 / (half - 1))
        # Least squares are a mean of x / q, which is at least half of what x was divided by, and at most 1.63 times that.
        loose = np.maximum(np.abs(x), 0.65 * np.abs(x) + 2.3 * most / (half - 0.9))
    kept = np.minimum(kept, loose)
    magnitude = np.abs(x)
    further = np.where(x > 0, _above(np.where(x > 0, x, -np.inf), w), _above(np.where(x < 0, -x, -np.inf), w))
    nearest = np.minimum(np.maximum(scale / 2, np.minimum(_share(error, further), magnitude)), kept)
    return Fit(scale[..., 0], np.zeros_like(scale[..., 0]), nearest, kept, w.sum(axis=-1))


def _share(error: Floats, w: Floats, magnitudes: bool = False) -> Floats:
    """How much of an error one that counts `w` may have to itself."""
    with np.errstate(all="ignore"):
        share = error / w
        return np.where(w > 0, share if magnitudes else np.sqrt(share), np.inf)


def _above(x: Floats, w: Floats) -> Floats:
    """For each weight, the sum of `w` over those of its group that are as large or larger."""
    total: Floats = ((x[..., :, None] <= x[..., None, :]) * w[..., None, :]).sum(axis=-1)
    return total


def _representable(x: Floats, w: Floats) -> Floats:
    """Whether the products of the search stay within float32's normal range."""
    products = w.sum(axis=-1, keepdims=True) * (w * np.abs(x)).sum(axis=-1, keepdims=True)
    squares = (w * np.abs(x)).sum(axis=-1, keepdims=True) ** 2
    sound: Floats = (np.minimum(products, squares) > 1e-30) & (np.maximum(products, squares) < 1e34)
    return sound


def _even(w: Floats) -> Floats:
    total, most = w.sum(axis=-1, keepdims=True), w.max(axis=-1, keepdims=True)
    even: Floats = total - most > _UNEVEN * total
    return even
