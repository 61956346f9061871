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

from collections.abc import Callable, Sequence
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
    scale, minimum = _candidates(x, w, low, spread, top, least + step * np.arange(steps + 1))
    # The search goes on with the minimums that it finds, which are not followed here.
    scale = np.where(sound & _even(w), 1.4 * np.maximum(scale, first), np.inf)
    scale = np.where(spread == 0, 0, scale)
    minimum = np.maximum(minimum, np.abs(low)) + first
    clipped = _share(error, _further(x, w, False), magnitudes)
    kept = np.minimum(_share(error, w, magnitudes), np.where(_even(w), 2.5 * spread, np.inf))
    kept = np.where(spread == 0, np.abs(x - low), kept)
    nearest = np.minimum(np.maximum(scale / 2, clipped), kept)
    return Fit(scale[..., 0], minimum[..., 0], nearest, kept, w.sum(axis=-1))


_CLOSE = 1.6
"""What is bounded within so many times the range's own scale need not be found."""


def _candidates(x: Floats, w: Floats, low: Floats, spread: Floats, top: int, over: Floats) -> tuple[Floats, Floats]:
    """No less than the scales, and magnitudes of minimums, that fit levels found with the inverse scales (top + over) / spread.

    What is bounded closely by two sums is not found.
    """
    scale, minimum = _bounded_candidates(x, w, low, spread, top, over)
    loose = ~(scale <= _CLOSE * spread / top)[..., 0]
    if loose.any():
        found = _found_candidates(x[loose], w[loose], low[loose], spread[loose], top, over)
        scale[loose], minimum[loose] = found
    return scale, minimum


def _found_candidates(x: Floats, w: Floats, low: Floats, spread: Floats, top: int, over: Floats) -> tuple[Floats, Floats]:
    scale, minimum = np.zeros_like(low), np.zeros_like(low)
    for each in over:
        d, m = _least_squares(x, w, low, (each + top) / spread, top)
        scale, minimum = np.maximum(scale, d), np.maximum(minimum, m)
    return scale, minimum


def _bounded_candidates(x: Floats, w: Floats, low: Floats, spread: Floats, top: int, over: Floats) -> tuple[Floats, Floats]:
    """The same, and often close, from two sums instead of one rounding of all weights per inverse scale.

    Levels are q = inverse * (x - low) + r with |r| <= 1/2, or `over` where one is cut off at the top. Least squares of x on q
    are 1 / inverse * (1 - cov(r, q) / var(q)), and |cov(r, q)| <= max |r| * deviation(q), which is at least inverse *
    deviation(x) - max |r|. The minimum is mean(x) - scale * mean(q). With a minimum of zero the scale is a mean of x / q, for
    which the same holds: the root mean square of q is no less than its deviation.
    """
    total = w.sum(axis=-1, keepdims=True)
    with np.errstate(all="ignore"):
        mean = (w * x).sum(axis=-1, keepdims=True) / total
        deviation = np.sqrt((w * (x - mean) ** 2).sum(axis=-1, keepdims=True) / total)
        inverse, off = (over + top) / spread, np.maximum(0.5, over)
        room = inverse * deviation - off
        scale = np.where(room > 0, deviation / room, np.inf)
        minimum = np.where(room > 0, scale * (inverse * (mean - low) + off) - mean, np.inf)
    return scale.max(axis=-1, keepdims=True), minimum.max(axis=-1, keepdims=True)


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
    further = _further(x, w, True)
    nearest = np.minimum(np.maximum(scale / 2, np.minimum(_share(error, further), magnitude)), kept)
    return Fit(scale[..., 0], np.zeros_like(scale[..., 0]), nearest, kept, w.sum(axis=-1))


def fitted_scales(x: Floats, w: Floats, tops: Sequence[float], levels: Callable[[Floats], Floats]) -> tuple[Floats, Floats]:
    """The least and the largest magnitude of the scales that fit levels around zero, found with inverse scales.

    `x` and `w` have shape (group, sub-group, width). The inverse scales of a sub-group make its largest weight each of `tops`;
    `levels` rounds weights in units of a scale.
    """
    most = np.abs(x).max(axis=-1)
    signed = np.where(x.max(axis=-1) == most, most, -most)
    least, largest = _fitted_scales(x, w, signed, tops, levels)
    # Where both signs reach it, either may be the one.
    both = signed == -x.min(axis=-1)
    if both.any():
        turned = _fitted_scales(x[both], w[both], -signed[both], tops, levels)
        least[both], largest[both] = np.minimum(least[both], turned[0]), np.maximum(largest[both], turned[1])
    return least, largest


def _fitted_scales(
    x: Floats, w: Floats, signed: Floats, tops: Sequence[float], levels: Callable[[Floats], Floats]
) -> tuple[Floats, Floats]:
    unit = np.where(signed == 0, 0, 1 / signed)
    # Weights come first, groups last: sums are then over whole arrays, not over a few numbers each.
    x, w = (np.ascontiguousarray(np.moveaxis(part, -1, 0)) for part in (x, w))
    wx = w * x
    least, largest = np.full(x.shape[1:], np.inf), np.zeros(x.shape[1:])
    products = np.empty_like(x)
    for top in tops:
        q = levels(np.multiply(x, unit * top))
        xq = np.multiply(wx, q, out=products).sum(axis=0)
        qq = np.multiply(np.square(q, out=q), w, out=products).sum(axis=0)
        scale = np.nan_to_num(np.abs(xq / qq), posinf=0)
        least, largest = np.minimum(least, scale), np.maximum(largest, scale)
    return least, largest


def _share(error: Floats, w: Floats, magnitudes: bool = False) -> Floats:
    """How much of an error one that counts `w` may have to itself."""
    with np.errstate(all="ignore"):
        share = error / w
        return np.where(w > 0, share if magnitudes else np.sqrt(share), np.inf)


def _further(x: Floats, w: Floats, from_zero: bool) -> Floats:
    """For each weight, the sum of `w` over those of its group that are further out, and its own.

    Out is away from zero, or else whichever way less is summed.
    """
    order = np.argsort(x, axis=-1)
    sorted_w = np.take_along_axis(w, order, axis=-1)
    smaller = np.cumsum(sorted_w, axis=-1)
    larger = smaller[..., -1:] - smaller + sorted_w
    out = np.where(np.take_along_axis(x, order, axis=-1) > 0, larger, smaller) if from_zero else np.minimum(smaller, larger)
    further = np.empty_like(w)
    np.put_along_axis(further, order, out, axis=-1)
    return further


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
