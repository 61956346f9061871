"""IQ3_XXS and IQ3_S: groups of 4 magnitudes on 256 or 512 points of {1, 3, … 15}⁴. The search is on_lattice.py's."""

from __future__ import annotations

import numpy as np

from qconvd_ggml.lattice import Lattice
from qconvd_ggml.on_lattice import ANY, OWN, Kind, build, put_levels, put_signs
from qconvd_ggml.tile import LANES, Importance, Scalar, Vector, inline, lattice_kernel, put16, shared

WIDTH = 32
_XXS = Kind(
    width=WIDTH, group=4, span=15, step=0.2, even=True, least=1e-8, again=OWN, factor=1.0125, squares=2, share=0,
    clear=True, size=98,
)  # fmt: skip
_S = Kind(
    width=WIDTH, group=4, span=9, step=0.2, even=False, least=0, again=ANY, factor=1.033, squares=2, share=0,
    clear=False, size=110, closes_up=True,
)  # fmt: skip


@inline
def _value_xxs(q: Scalar) -> Scalar:
    # iq3xxs_grid has 62 where 60 would stand.
    return np.float32(62) if q == np.float32(15) else np.float32(4) * q


@inline
def _unit_xxs(half: Scalar, level: Scalar) -> Scalar:
    return half * (np.float32(0.5) + level) * np.float32(0.5)


@shared
def _pack_xxs(point: Vector, sign: Vector, level: Vector, half: Scalar, first: Scalar, out: Vector) -> None:
    put16(out, 0, half)
    for k in range(8):
        lane = first + k
        for g in range(8):
            out[2 + 8 * k + g] = np.uint8(point[g * LANES + lane])
        put_signs(sign, level, lane, out, 66 + 4 * k)


@inline
def _value_s(q: Scalar) -> Scalar:
    return q


@inline
def _unit_s(half: Scalar, level: Scalar) -> Scalar:
    return half * (np.float32(1) + np.float32(2) * level)


@shared
def _pack_s(point: Vector, sign: Vector, level: Vector, half: Scalar, first: Scalar, out: Vector) -> None:
    put16(out, 0, half)
    for k in range(8):
        lane = first + k
        high = np.uint8(0)
        for g in range(8):
            index = point[g * LANES + lane]
            out[2 + 8 * k + g] = np.uint8(index & np.uint16(255))
            high |= np.uint8(np.uint8(index >> np.uint16(8)) << np.uint8(g))
        out[66 + k] = high
        for g in range(4):
            out[74 + 4 * k + g] = sign[g * LANES + lane]
    put_levels(level, first, 8, out, 106)


_xxs = build(_XXS, _pack_xxs, _value_xxs, _unit_xxs)
_s = build(_S, _pack_s, _value_s, _unit_s)


@lattice_kernel
def iq3_xxs(
    kind: int, narrow: Vector, wide: Vector, importance: Importance, out: Vector, groups: int, sums: Vector, lattice: Lattice
) -> None:
    """IQ3_XXS: 98 bytes for 256 weights; a group is a block of 32."""
    _xxs(kind, narrow, wide, importance, out, groups, sums, lattice)


@lattice_kernel
def iq3_s(
    kind: int, narrow: Vector, wide: Vector, importance: Importance, out: Vector, groups: int, sums: Vector, lattice: Lattice
) -> None:
    """IQ3_S: 110 bytes for 256 weights; a group is a block of 32."""
    _s(kind, narrow, wide, importance, out, groups, sums, lattice)
