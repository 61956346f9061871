"""IQ4_NL and IQ4_XS: 4-bit indices into sixteen unevenly spaced values (quantize_row_iq4_nl_impl in ggml-quants.c).

1. Per block of 32 weights the scale d is searched. The first candidate is 1/d = 127 / M, M being the weight of largest
   magnitude; others put M near the first value, -127: 1/d = (-127 + t) / M for t = -7 … 7. Each weight takes the value nearest
   to x/d; with these q, the least squares scale is sum(w x q) / sum(w q q). The candidate with the largest
   sum(w x q)² / sum(w q q) wins, the first on ties.
   w is x², so that large weights matter most; weighting.py says what it is with an importance matrix.
2. IQ4_NL: a block keeps d as a half. IQ4_XS: 8 blocks share a half, D = -(the d of largest magnitude) / 32, and each has a
   6-bit multiple of it.
3. The final indices are those nearest to x/d, with d as step 2 left it but for the half's rounding.

A block without a weight of 1e-15 has d = 0 and, like any weight that is 0, index 8, which stands for 1 * d.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from qconvd_ggml.measure import STEP, measure
from qconvd_ggml.symmetric import LEAST, largest
from qconvd_ggml.tile import (
    LANES,
    Importance,
    Scalar,
    Vector,
    f16_bits,
    f16_value,
    fold,
    inline,
    kernel,
    load,
    nearest_int,
    no_importance,
    pair_nibbles,
    pick,
    put16,
    shared,
    weighted_kernel,
)
from qconvd_ggml.weighting import weigh_by_super_block

BLOCK = 32
PER = 8
"""Blocks of IQ4_XS's super-block."""
VALUES = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
"""kvalues_iq4nl in ggml-common.h."""
_TRIES = 7


def _thresholds() -> tuple[np.float32, ...]:
    """The least float32 that is nearer to a value than to the one before it, as ggml's float32 subtractions see it.

    best_index_int8 asks `x - low < high - x`. Both sides are rounded, but monotonously, so one threshold says the same.
    """
    found = []
    for low, high in zip(map(np.float32, VALUES), map(np.float32, VALUES[1:]), strict=False):
        middle = (low + high) / np.float32(2)
        while not middle - low < high - middle:
            middle = np.nextafter(middle, low)
        while middle - low < high - middle:
            middle = np.nextafter(middle, high)
        found.append(middle)
    return tuple(found)


_THRESHOLDS = _thresholds()


def _stairs(levels: tuple[Scalar, ...]) -> Callable[..., Scalar]:
    """A function from x/d to the level that belongs to the nearest value. NaN gets the last one, as in ggml."""
    lowest = levels[0]

    @inline
    def bottom(v: Scalar) -> Scalar:  # noqa: ARG001
        return lowest

    def climb(
        below: Callable[..., Scalar], thresholds: Sequence[np.float32], levels: Sequence[Scalar]
    ) -> Callable[..., Scalar]:
        """Five steps: each function takes numba its time."""
        a, b, c, d, e = thresholds
        level_a, level_b, level_c, level_d, level_e = levels

        @inline
        def steps(v: Scalar) -> Scalar:
            found = pick(v < a, below(v), level_a)
            found = pick(v < b, found, level_b)
            found = pick(v < c, found, level_c)
            found = pick(v < d, found, level_d)
            return pick(v < e, found, level_e)

        return steps

    found = bottom
    for first in (0, 5, 10):
        found = climb(found, _THRESHOLDS[first : first + 5], levels[first + 1 : first + 6])
    return found


_VALUES = tuple(np.float32(v) for v in VALUES)
_value = _stairs(_VALUES)
_index = _stairs(tuple(np.uint8(i) for i in range(16)))
_border = _stairs((np.float32(-np.inf), *_THRESHOLDS))
"""The least x/d with the same value."""
_value_below = _stairs((_VALUES[0], *_VALUES[:-1]))
"""The value that belongs to what is below the border."""


@inline
def _fit_step(j: Scalar, lane: Scalar, x: Vector, state: Scalar, fixed: Scalar) -> Scalar:
    xq, qq = state
    w, inverse = fixed
    v = x[j * LANES + lane]
    q = _value(inverse * v)
    wq = w[j * LANES + lane] * q
    return (xq + wq * v, qq + wq * q)


@inline
def _refit_step(j: Scalar, lane: Scalar, x: Vector, state: Scalar, fixed: Scalar) -> Scalar:
    xq, qq = state
    w, inverse, border, below, above = fixed
    v, weight = x[j * LANES + lane], w[j * LANES + lane]
    q = pick(inverse * v < border[j * _PART + lane], below[j * _PART + lane], above[j * _PART + lane])
    wq = weight * q
    return (xq + wq * v, qq + wq * q)


_PART = 16
"""Lanes that are searched at a time, so that what is kept of their weights stays in the first-level cache."""
_largest = largest(BLOCK)
_fit, _refit = fold(_fit_step, BLOCK), fold(_refit_step, BLOCK)


@shared
def _try_around(x: Vector, w: Vector, signed: Vector, scale: Vector, best: Vector) -> None:
    """The candidates of step 1 that put M near -127, for the first _PART lanes.

    Their inverse scales, -134/M to -120/M, differ by less than neighbouring borders of one sign do (23 % and more).
    So no weight meets more than one border on the way, and which values it may take is found once for all of them.
    Where M is so small (4e-37) that an inverse scale overflows, this is not so; such blocks, below LEAST, have no scale anyway.
    """
    zero = np.float32(0)
    border, below = np.empty(BLOCK * _PART, np.float32), np.empty(BLOCK * _PART, np.float32)
    above = np.empty(BLOCK * _PART, np.float32)
    low, high = np.float32(-127 - _TRIES), np.float32(-127 + _TRIES)
    for j in range(BLOCK):
        for lane in range(_PART):
            v, m = x[j * LANES + lane], signed[lane]
            a, b = low / m * v, high / m * v
            most = pick(a < b, b, a)
            border[j * _PART + lane] = _border(most)
            below[j * _PART + lane] = _value_below(most)
            above[j * _PART + lane] = _value(most)
    for t in range(-_TRIES, _TRIES + 1):
        top = np.float32(t - 127)
        for lane in range(_PART):
            inverse = top / signed[lane]
            xq, qq = _refit(0, lane, x, (zero, zero), (w, inverse, border, below, above))
            better = (qq > zero) & (xq * xq > best[lane] * qq)
            s = xq / qq
            scale[lane] = pick(better, s, scale[lane])
            best[lane] = pick(better, s * xq, best[lane])


@shared
def _search(x: Vector, w: Vector, scale: Vector) -> None:
    """Step 1 for a tile: fills the best scale of each lane."""
    zero = np.float32(0)
    signed, best, magnitude = np.empty(LANES, np.float32), np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    for lane in range(LANES):
        magnitude[lane], signed[lane] = _largest(x, lane)
    for lane in range(LANES):
        inverse = np.float32(1) / (-signed[lane] / np.float32(-127))
        xq, qq = _fit(0, lane, x, (zero, zero), (w, inverse))
        s = pick(qq > zero, xq / qq, zero)
        scale[lane] = s
        best[lane] = s * xq
    for first in range(0, LANES, _PART):
        # Slices, so that the compiler sees that no place in them is below zero.
        part = slice(first, first + _PART)
        _try_around(x[first:], w[first:], signed[part], scale[part], best[part])
    for lane in range(LANES):
        scale[lane] = pick(magnitude[lane] < LEAST, zero, scale[lane])


@inline
def _super_scales(scale: Vector, first: Scalar, tile: Vector, at: Scalar, d: Vector, step: Vector) -> None:
    """Step 2 of IQ4_XS for the super-block whose first lane is `first`: fills d as a reader sees it, and the step of step 3."""
    most, signed = np.float32(0), np.float32(0)
    for k in range(PER):
        s = scale[first + k]
        if abs(s) > most:
            most = abs(s)
            signed = s
    unit = -signed / np.float32(32)
    inverse = np.float32(1) / unit if unit != np.float32(0) else np.float32(0)
    half = f16_bits(unit)
    high = np.uint16(0)
    for k in range(PER):
        level = max(np.int32(-32), min(np.int32(31), nearest_int(inverse * scale[first + k])))
        step[first + k] = unit * np.float32(level)
        d[first + k] = f16_value(half) * np.float32(level)
        bits = np.uint8(level + np.int32(32))
        low = np.uint8(bits & np.uint8(15))
        if k % 2 == 0:
            tile[at + 4 + k // 2] = low
        else:
            tile[at + 4 + k // 2] |= np.uint8(low << np.uint8(4))
        high |= np.uint16(bits >> np.uint8(4)) << np.uint16(2 * k)
    put16(tile, at, half)
    put16(tile, at + 2, high)


@inline
def _quantize(x: Vector, d: Vector, step: Vector, q: Vector, y: Vector) -> None:
    """Step 3 for a tile: indices, and what a reader sees."""
    inverse = np.empty(LANES, np.float32)
    for lane in range(LANES):
        inverse[lane] = np.float32(1) / step[lane] if step[lane] != np.float32(0) else np.float32(0)
    for j in range(BLOCK):
        for lane in range(LANES):
            v = inverse[lane] * x[j * LANES + lane]
            q[j * LANES + lane] = _index(v)
            y[j * LANES + lane] = d[lane] * _value(v)


@shared
def _iq4(
    per: int, kind: int, narrow: Vector, wide: Vector, importance: Importance, out: Vector, groups: int, sums: Vector
) -> None:
    """`per` blocks share a half: 1 in IQ4_NL and 8 in IQ4_XS."""
    x, y, w = np.empty(BLOCK * LANES, np.float32), np.empty(BLOCK * LANES, np.float32), np.empty(BLOCK * LANES, np.float32)
    q = np.empty(BLOCK * LANES, np.uint8)
    pairs, turned = np.empty(BLOCK // 2 * LANES, np.uint8), np.empty(BLOCK // 2 * LANES, np.uint8)
    square, scale = np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    d, step = np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    size = 18 if per == 1 else 136
    for first in range(0, groups, LANES):
        load(kind, narrow, wide, first, BLOCK, y, x)
        weigh_by_super_block(x, y, importance, first, per, BLOCK, np.float32(2) / np.float32(per * BLOCK), square, w)
        _search(x, w, scale)
        tile = out[first // per * size : (first + LANES) // per * size]
        for lane in range(0, LANES, per):
            at = lane // per * size
            if per == 1:
                half = f16_bits(scale[lane])
                put16(tile, at, half)
                d[lane] = f16_value(half)
                step[lane] = scale[lane]
            else:
                _super_scales(scale, lane, tile, at, d, step)
        _quantize(x, d, step, q, y)
        for half_block in range(0, BLOCK * LANES, STEP * LANES):
            measure(x[half_block : half_block + STEP * LANES], y[half_block : half_block + STEP * LANES], sums)
        header = 2 if per == 1 else 8
        pair_nibbles(q, pairs, turned)
        for lane in range(LANES):
            at = lane // per * size + header + lane % per * (BLOCK // 2)
            for j in range(BLOCK // 2):
                tile[at + j] = pairs[lane * (BLOCK // 2) + j]


@kernel
def iq4_nl(kind: int, narrow: Vector, wide: Vector, out: Vector, groups: int, sums: Vector) -> None:
    """IQ4_NL: 18 bytes a block."""
    _iq4(1, kind, narrow, wide, no_importance(wide), out, groups, sums)


@kernel
def iq4_xs(kind: int, narrow: Vector, wide: Vector, out: Vector, groups: int, sums: Vector) -> None:
    """IQ4_XS: 136 bytes for 256 weights; a group is a block of 32."""
    _iq4(PER, kind, narrow, wide, no_importance(wide), out, groups, sums)


@weighted_kernel
def iq4_nl_weighted(
    kind: int, narrow: Vector, wide: Vector, importance: Importance, out: Vector, groups: int, sums: Vector
) -> None:
    """IQ4_NL with an importance matrix."""
    _iq4(1, kind, narrow, wide, importance, out, groups, sums)


@weighted_kernel
def iq4_xs_weighted(
    kind: int, narrow: Vector, wide: Vector, importance: Importance, out: Vector, groups: int, sums: Vector
) -> None:
    """IQ4_XS with an importance matrix."""
    _iq4(PER, kind, narrow, wide, importance, out, groups, sums)
