"""IQ2_XXS, IQ2_XS and IQ2_S: groups of 8 magnitudes on 256, 512 or 1024 points of {1, 3, 5}⁸. The search is on_lattice.py's.

IQ2_XXS starts from a scale that was searched for plain integers 0 … 4 first: scales.py, with the weights of a block as a list.
"""

from __future__ import annotations

import numpy as np

from qconvd_ggml.lattice import Lattice
from qconvd_ggml.on_lattice import ALWAYS, OWN, Kind, build, put_levels, put_signs
from qconvd_ggml.scales import positive_scales
from qconvd_ggml.tile import LANES, Importance, Scalar, Vector, inline, lattice_kernel, put16, shared

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
_WEIGHTS = XXS_WIDTH * LANES
_integers = positive_scales(4, XXS_WIDTH, LANES)


@shared
def _integer_scale(x: Vector, w: Vector, most: Vector, top: Vector, scale: Vector) -> None:  # noqa: ARG001
    """Fills the scale for integers 0 … 4, and three times that: the magnitude that the search's scales refer to."""
    _integers(x, w, np.empty(_WEIGHTS, np.int32), scale)
    for lane in range(LANES):
        top[lane] = scale[lane] * np.float32(3)


@inline
def _value(q: Scalar) -> Scalar:
    # iq2xxs_grid and the others have 8, 25 and 43 for 1, 3 and 5.
    return np.float32(8) if q < np.float32(2) else (np.float32(25) if q < np.float32(4) else np.float32(43))


@inline
def _unit(half: Scalar, level: Scalar) -> Scalar:
    return half * (np.float32(0.5) + level) * np.float32(0.25)


@shared
def _pack_xxs(point: Vector, sign: Vector, level: Vector, half: Scalar, first: Scalar, out: Vector) -> None:
    put16(out, 0, half)
    for k in range(8):
        lane = first + k
        for g in range(4):
            out[2 + 8 * k + g] = np.uint8(point[g * LANES + lane])
        put_signs(sign, level, lane, out, 6 + 8 * k)


@shared
def _pack_xs(point: Vector, sign: Vector, level: Vector, half: Scalar, first: Scalar, out: Vector) -> None:
    put16(out, 0, half)
    for k in range(16):
        for g in range(2):
            at = g * LANES + first + k
            put16(out, 2 + 4 * k + 2 * g, np.uint16(point[at] | np.uint16(np.uint16(sign[at] & np.uint8(127)) << np.uint16(9))))
    put_levels(level, first, 16, out, 66)


@shared
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
    put_levels(level, first, 16, out, 74)


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
