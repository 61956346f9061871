"""How far a right decoding of a K type may be from the weights, with and without an importance matrix.

What a sub-block's search may miss is in bounds.py. Added to it is what its scale and its minimum lose when they become whole
numbers of the super-block's; these were rounded, or with an importance matrix chosen so that their own weighted error is no
more than by rounding. Last, a reader's levels are the nearest ones to the scales that it sees.
"""

from __future__ import annotations

import numpy as np

from qconvd_ggml import bounds
from qconvd_ggml.decode_base import ROUNDING, Bound, Floats, WeightedBound, rounded

_ZERO = 1e-9
"""Super-blocks below this: any scale is zero as a half."""
_WEIGHTED_TRIES = (-0.9, 0.05, 36)


def _counts(x: Floats, importance: Floats, squares: int) -> Floats:
    """What errors count with an importance matrix."""
    mean = (x * x).mean(axis=(1, 2), keepdims=True) * squares
    counts: Floats = importance * np.sqrt(mean + x * x)
    return counts


def _rounded_scale(most: Floats, total: Floats | None, unit: Floats, top: int, whole: bool) -> Floats:
    """What the scales of sub-blocks, up to `most`, may lose as numbers of up to `top` units."""
    lost = np.maximum(2 * unit * 2.0**-11, 2.0**-25) * top
    half = unit if whole else unit / 2
    if total is None:
        return np.broadcast_to(half + lost, most.shape)
    with np.errstate(all="ignore"):
        share = np.sqrt(total.sum(axis=1, keepdims=True) / total)
    shifted: Floats = np.minimum(half * np.where(total > 0, share, np.inf), most + 2.3 * unit) + lost
    return shifted


def _finish(x: Floats, bound: Floats, unit: Floats) -> Floats:
    magnitude = np.abs(x)
    most = magnitude.max(axis=(1, 2), keepdims=True)
    bound = np.where(unit[:, :, None] > 30000, np.inf, bound + most * ROUNDING)
    # The searches work with cubes of weights in float32.
    bound = np.where(most > 1e12, np.inf, bound)
    return np.where(most < _ZERO, magnitude, bound)


def _affine(
    x: Floats,
    w: Floats,
    top: int,
    scale_top: int,
    tries: tuple[float, float, int],
    magnitudes: bool = False,
    weighted: bool = False,
) -> Floats:
    fit = bounds.affine(x, w, top, *tries, magnitudes)
    total = fit.total if weighted else None
    unit = fit.scale.max(axis=1, keepdims=True) / scale_top
    low = fit.minimum.max(axis=1, keepdims=True) / scale_top
    shrunk = _rounded_scale(fit.scale, total, unit, scale_top, False)
    moved = _rounded_scale(fit.minimum, total, low, scale_top, False)
    return _finish(x, fit.nearest + (top * shrunk + moved)[:, :, None], np.maximum(unit, low))


def _symmetric(x: Floats, w: Floats, half: int, scale_top: int, descent: bool = False, searched: bool = False) -> Floats:
    fit = bounds.symmetric(x, w, half, descent)
    unit = fit.scale.max(axis=1, keepdims=True) / scale_top
    # The scale of largest magnitude is met; one as large of the other sign is a whole unit off.
    shrunk = _rounded_scale(fit.scale, fit.total if searched else None, unit, scale_top, True)
    return _finish(x, fit.nearest + half * shrunk[:, :, None], unit)


def _q2_k(x: Floats) -> Floats:
    x = x.reshape(-1, 16, 16)
    return _affine(x, np.abs(x), 3, 15, (-0.5, 0.1, 15), magnitudes=True)


def _q3_k(x: Floats) -> Floats:
    x = x.reshape(-1, 16, 16)
    return _symmetric(x, x * x, 4, 32, descent=True)


def _q45_k(x: Floats, top: int, tries: tuple[float, float, int]) -> Floats:
    x = x.reshape(-1, 8, 32)
    return _affine(x, np.sqrt((x * x).mean(axis=2, keepdims=True)) + np.abs(x), top, 63, tries)


def _q2_k_weighted(x: Floats, importance: Floats) -> Floats:
    x = x.reshape(-1, 16, 16)
    return _affine(x, _counts(x, importance.reshape(x.shape), 1), 3, 15, _WEIGHTED_TRIES, weighted=True)


def _q3_k_weighted(x: Floats, importance: Floats) -> Floats:
    x = x.reshape(-1, 16, 16)
    return _symmetric(x, _counts(x, importance.reshape(x.shape), 2), 4, 32, searched=True)


def _q45_k_weighted(x: Floats, importance: Floats, top: int) -> Floats:
    x = x.reshape(-1, 8, 32)
    return _affine(x, _counts(x, importance.reshape(x.shape), 2), top, 63, _WEIGHTED_TRIES, weighted=True)


def _q6_k_weighted(x: Floats, importance: Floats) -> Floats:
    x = x.reshape(-1, 16, 16)
    return _symmetric(x, importance.reshape(x.shape), 32, 128)


def _q6_k(x: Floats) -> Floats:
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
    tops = [-(32 + k / 10) for k in range(-9, 10)]
    least, largest = bounds.fitted_scales(
        blocks, blocks * blocks, tops, lambda v: np.clip(np.rint(v, out=v), -32, 31, out=v)
    )  # fmt: skip
    # A tie that float32 rounds the other way moves a scale by less than this; below 1e-15 ggml takes zero.
    least = np.where(np.abs(blocks).max(axis=-1) < 1.1e-15, 0, least * 0.99)
    return least, largest * 1.01


BOUNDS: dict[str, Bound] = {
    "Q2_K": _q2_k,
    "Q3_K": _q3_k,
    "Q4_K": lambda x: _q45_k(x, 15, (-1.0, 0.1, 20)),
    "Q5_K": lambda x: _q45_k(x, 31, (-0.5, 0.1, 15)),
    "Q6_K": _q6_k,
}
WEIGHTED_BOUNDS: dict[str, WeightedBound] = {
    "Q2_K": _q2_k_weighted,
    "Q3_K": _q3_k_weighted,
    "Q4_K": lambda x, importance: _q45_k_weighted(x, importance, 15),
    "Q5_K": lambda x, importance: _q45_k_weighted(x, importance, 31),
    "Q6_K": _q6_k_weighted,
}
