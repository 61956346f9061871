"""IQ2_XXS, IQ2_XS and IQ2_S: groups of 8 magnitudes on 256, 512 or 1024 points of {1, 3, 5}⁸. The search is on_lattice.py's.

IQ2_XXS starts from a scale that was searched for plain integers 0 … 4 first (ggml's make_qp_quants): the scale with the least
weighted error among nine near max/4, then up to five rounds in which every weight may take another integer where that
explains more. There, as in ggml, an integer below zero is kept as a byte: -1 is 255.
"""

from __future__ import annotations

import numpy as np

from qconvd_ggml.lattice import Lattice
from qconvd_ggml.on_lattice import ALWAYS, OWN, Kind, build
from qconvd_ggml.tile import LANES, Importance, Scalar, Vector, fold, inline, lattice_kernel, nearest_int, put16, shared

_XXS = Kind(
    width=32, group=8, span=6, step=0.1, even=True, least=1e-15, again=ALWAYS, factor=1, squares=1, share=0,
    clear=True, size=66,
)  # fmt: skip
_XS = Kind(
    width=16, group=8, span=9, step=0.1, even=True, least=1e-15, again=OWN, factor=1, squares=1, share=0,
    clear=True, size=74,
)  # fmt: skip
_S = Kind(
    width=16, group=8, span=9, step=0.1, even=False, least=1e-8, again=OWN, factor=0.9875, squares=2, share=0.25,
    clear=False, size=82,
)  # fmt: skip
XXS_WIDTH, XS_WIDTH, S_WIDTH = _XXS.width, _XS.width, _S.width
_TOP = np.int32(4)


@inline
def _byte(level: Scalar) -> Scalar:
    return np.float32(np.uint8(level))


@inline
def _error_step(j: Scalar, lane: Scalar, x: Vector, total: Scalar, fixed: Scalar) -> Scalar:
    w, inverse, scale = fixed
    v = x[j * LANES + lane]
    diff = v - scale * np.float32(min(_TOP, nearest_int(inverse * v)))
    return total + w[j * LANES + lane] * diff * diff


@inline
def _first_error_step(j: Scalar, lane: Scalar, x: Vector, total: Scalar, fixed: Scalar) -> Scalar:
    w, inverse, scale = fixed
    v = x[j * LANES + lane]
    diff = v - scale * _byte(nearest_int(inverse * v))
    return total + w[j * LANES + lane] * diff * diff


_error, _first_error = fold(_error_step, 32), fold(_first_error_step, 32)


@shared
def _integer_scale(x: Vector, w: Vector, most: Vector, top: Vector, scale: Vector) -> None:
    """Fills the scale for integers 0 … 4, and three times that: the magnitude that the search's scales refer to."""
    zero, one = np.float32(0), np.float32(1)
    inverse, least = np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    xq, qq, q = np.empty(LANES, np.float32), np.empty(LANES, np.float32), np.empty(32 * LANES, np.float32)
    for lane in range(LANES):
        i = np.float32(_TOP) / max(zero, most[lane])
        inverse[lane] = i
        least[lane] = _first_error(0, lane, x, zero, (w, i, one / i))
    for t in range(-4, 5):
        if t == 0:
            continue
        number = np.float32(0.1) * np.float32(t) + np.float32(_TOP)
        for lane in range(LANES):
            i = number / max(zero, most[lane])
            error = _error(0, lane, x, zero, (w, i, one / i))
            inverse[lane] = i if error < least[lane] else inverse[lane]
            least[lane] = error if error < least[lane] else least[lane]
    for lane in range(LANES):
        xq[lane] = zero
        qq[lane] = zero
    for j in range(32):
        for lane in range(LANES):
            v, weight = x[j * LANES + lane], w[j * LANES + lane]
            level = min(_TOP, nearest_int(inverse[lane] * v))
            q[j * LANES + lane] = _byte(level)
            xq[lane] += weight * v * np.float32(level)
            qq[lane] += weight * np.float32(level) * np.float32(level)
    for _ in range(5):
        changed = 0
        for j in range(32):
            for lane in range(LANES):
                v, weight, old = x[j * LANES + lane], w[j * LANES + lane], q[j * LANES + lane]
                xq_rest, qq_rest = xq[lane] - weight * v * old, qq[lane] - weight * old * old
                level = min(_TOP, nearest_int(v * qq_rest / xq_rest))
                new = np.float32(level)
                xq_new, qq_new = xq_rest + weight * v * new, qq_rest + weight * new * new
                better = xq_new * xq_new * qq[lane] > xq[lane] * xq[lane] * qq_new
                better = better & (xq_rest > zero) & (qq_rest > zero) & (new != old)
                q[j * LANES + lane] = _byte(level) if better else old
                xq[lane] = xq_new if better else xq[lane]
                qq[lane] = qq_new if better else qq[lane]
                changed += 1 if better else 0
        if changed == 0:
            break
    for lane in range(LANES):
        s = xq[lane] / qq[lane] if qq[lane] > zero else zero
        scale[lane] = s
        top[lane] = s * np.float32(3)


@inline
def _value(q: Scalar) -> Scalar:
    # iq2xxs_grid and the others have 8, 25 and 43 for 1, 3 and 5.
    return np.float32(8) if q < np.float32(2) else (np.float32(25) if q < np.float32(4) else np.float32(43))


@inline
def _unit(half: Scalar, level: Scalar) -> Scalar:
    return half * (np.float32(0.5) + level) * np.float32(0.25)


@inline
def _pack_xxs(point: Vector, sign: Vector, level: Vector, half: Scalar, first: Scalar, out: Vector) -> None:
    put16(out, 0, half)
    for k in range(8):
        lane = first + k
        word = np.uint32(level[lane]) << np.uint32(28)
        for g in range(4):
            out[2 + 8 * k + g] = np.uint8(point[g * LANES + lane])
            word = np.uint32(word | np.uint32(np.uint32(sign[g * LANES + lane] & np.uint8(127)) << np.uint32(7 * g)))
        put16(out, 6 + 8 * k, np.uint16(word & np.uint32(0xFFFF)))
        put16(out, 8 + 8 * k, np.uint16(word >> np.uint32(16)))


@inline
def _pack_levels(level: Vector, first: Scalar, out: Vector, at: Scalar) -> None:
    for k in range(8):
        out[at + k] = np.uint8(level[first + 2 * k] | np.uint8(level[first + 2 * k + 1] << np.uint8(4)))


@inline
def _pack_xs(point: Vector, sign: Vector, level: Vector, half: Scalar, first: Scalar, out: Vector) -> None:
    put16(out, 0, half)
    for k in range(16):
        for g in range(2):
            at = g * LANES + first + k
            put16(out, 2 + 4 * k + 2 * g, np.uint16(point[at] | np.uint16(np.uint16(sign[at] & np.uint8(127)) << np.uint16(9))))
    _pack_levels(level, first, out, 66)


@inline
def _pack_s(point: Vector, sign: Vector, level: Vector, half: Scalar, first: Scalar, out: Vector) -> None:
    put16(out, 0, half)
    for k in range(8):
        out[66 + k] = np.uint8(0)
    for k in range(16):
        for g in range(2):
            at, place = g * LANES + first + k, 2 * k + g
            out[2 + place] = np.uint8(point[at] & np.uint16(255))
            out[34 + place] = sign[at]
            out[66 + place // 4] |= np.uint8(np.uint8(point[at] >> np.uint16(8)) << np.uint8(2 * (place % 4)))
    _pack_levels(level, first, out, 74)


_xxs = build(_XXS, _pack_xxs, _value, _unit, _integer_scale)
_xs = build(_XS, _pack_xs, _value, _unit)
_s = build(_S, _pack_s, _value, _unit)


@lattice_kernel
def iq2_xxs(
    kind: int, narrow: Vector, wide: Vector, importance: Importance, out: Vector, groups: int, sums: Vector, lattice: Lattice
) -> None:
    """IQ2_XXS: 66 bytes for 256 weights; a group is a block of 32."""
    _xxs(kind, narrow, wide, importance, out, groups, sums, lattice)


@lattice_kernel
def iq2_xs(
    kind: int, narrow: Vector, wide: Vector, importance: Importance, out: Vector, groups: int, sums: Vector, lattice: Lattice
) -> None:
    """IQ2_XS: 74 bytes for 256 weights; a group is a block of 16."""
    _xs(kind, narrow, wide, importance, out, groups, sums, lattice)


@lattice_kernel
def iq2_s(
    kind: int, narrow: Vector, wide: Vector, importance: Importance, out: Vector, groups: int, sums: Vector, lattice: Lattice
) -> None:
    """IQ2_S: 82 bytes for 256 weights; a group is a block of 16."""
    _s(kind, narrow, wide, importance, out, groups, sums, lattice)
