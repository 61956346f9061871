"""How scales and levels of the K types lie in a super-block: block_q2_K … block_q6_K in ggml-common.h.

Levels come as bytes in the order of their weights, those of a whole tile, whose super-blocks take `size` bytes each of `out`;
levels lie from `at` on in them. Scales come as `q[k * lanes + list]`, lists being those of scales.py: all super-blocks' scales,
then their minimums.
"""

from __future__ import annotations

import numpy as np

from qconvd_ggml.tile import Scalar, Vector, inline, shared

SUPER = 256
"""Weights of a super-block."""
LOW_2 = np.uint8(3)


@inline
def pack_scales_2(q: Vector, lanes: Scalar, block: Scalar, out: Vector, at: Scalar) -> None:
    for k in range(16):
        low, high = q[k * lanes + block], q[k * lanes + lanes // 2 + block]
        out[at + k] = np.uint8(low | (high << 4))


@inline
def unpack_scale_2(out: Vector, at: Scalar, k: Scalar) -> Scalar:
    both = out[at + k]
    return np.float32(both & np.uint8(15)), np.float32(both >> np.uint8(4))


@inline
def pack_scales_45(q: Vector, lanes: Scalar, block: Scalar, out: Vector, at: Scalar) -> None:
    """Twelve bytes: six bits each of the first four scales and minimums, whose high bits hold those of the last four."""
    for k in range(8):
        scale, minimum = q[k * lanes + block], q[k * lanes + lanes // 2 + block]
        if k < 4:
            out[at + k] = np.uint8(scale)
            out[at + 4 + k] = np.uint8(minimum)
        else:
            out[at + 4 + k] = np.uint8((scale & 15) | ((minimum & 15) << 4))
            out[at + k - 4] |= np.uint8((scale >> 4) << 6)
            out[at + k] |= np.uint8((minimum >> 4) << 6)


@inline
def unpack_scale_45(out: Vector, at: Scalar, k: Scalar) -> Scalar:
    if k < 4:
        return np.float32(out[at + k] & np.uint8(63)), np.float32(out[at + k + 4] & np.uint8(63))
    scale = (out[at + k + 4] & np.uint8(15)) | ((out[at + k - 4] >> np.uint8(6)) << np.uint8(4))
    minimum = (out[at + k + 4] >> np.uint8(4)) | ((out[at + k] >> np.uint8(6)) << np.uint8(4))
    return np.float32(np.uint8(scale)), np.float32(np.uint8(minimum))


@shared
def pack_2(q: Vector, out: Vector, size: Scalar, at: Scalar) -> None:
    """64 bytes, each of the low two bits of four levels that lie 32 weights apart."""
    for block in range(q.size // SUPER):
        for half in range(2):
            start, to = block * SUPER + 128 * half, block * size + at + 32 * half
            a, b, c, d = (
                q[start : start + 32],
                q[start + 32 : start + 64],
                q[start + 64 : start + 96],
                q[start + 96 : start + 128],
            )
            both = out[to : to + 32]
            for i in range(both.size):
                low = np.uint8((a[i] & LOW_2) | np.uint8((b[i] & LOW_2) << np.uint8(2)))
                high = np.uint8(np.uint8((c[i] & LOW_2) << np.uint8(4)) | np.uint8((d[i] & LOW_2) << np.uint8(6)))
                both[i] = np.uint8(low | high)


@shared
def pack_4(q: Vector, out: Vector, size: Scalar, at: Scalar) -> None:
    """128 bytes of nibbles: the low ones of even sub-blocks, the high ones of odd ones."""
    for block in range(q.size // SUPER):
        for pair in range(4):
            start, to = block * SUPER + 64 * pair, block * size + at + 32 * pair
            low, high, both = q[start : start + 32], q[start + 32 : start + 64], out[to : to + 32]
            for i in range(both.size):
                both[i] = np.uint8((low[i] & np.uint8(15)) | np.uint8(high[i] << np.uint8(4)))


@shared
def _bits(q: Vector, bit: Scalar, out: Vector, size: Scalar, at: Scalar) -> None:
    """32 bytes, in whose bit k is this bit of the levels of the k-th 32 weights; no level has a higher one."""
    for block in range(q.size // SUPER):
        bits = out[block * size + at : block * size + at + 32]
        bits[:] = np.uint8(0)
        for k in range(8):
            levels = q[block * SUPER + 32 * k : block * SUPER + 32 * (k + 1)]
            for i in range(bits.size):
                bits[i] |= np.uint8(np.uint8(levels[i] >> np.uint8(bit)) << np.uint8(k))


@shared
def pack_5(q: Vector, out: Vector, size: Scalar, at: Scalar) -> None:
    """32 bytes of fifth bits, one bit per sub-block, then the nibbles."""
    _bits(q, 4, out, size, at)
    pack_4(q, out, size, at + 32)


@inline
def pack_scales_3(q: Vector, lanes: Scalar, block: Scalar, out: Vector, at: Scalar) -> None:
    """Twelve bytes for sixteen scales of six bits: eight with two low halves each, four with four pairs of high bits each."""
    for k in range(12):
        out[at + k] = np.uint8(0)
    for k in range(16):
        scale = q[k * lanes + block]
        out[at + k % 8] |= np.uint8((scale & 15) << (4 * (k // 8)))
        out[at + 8 + k % 4] |= np.uint8((scale >> 4) << (2 * (k // 4)))


@shared
def pack_3(q: Vector, out: Vector, size: Scalar, at: Scalar) -> None:
    """32 bytes of third bits, one bit for each 32 weights, then the low two bits."""
    _bits(q, 2, out, size, at)
    pack_2(q, out, size, at + 32)


@shared
def pack_6(q: Vector, out: Vector, size: Scalar, at: Scalar) -> None:
    """The q of a super-block: 128 bytes of low nibbles, 64 bytes of high bit pairs."""
    four, nibble = np.uint8(4), np.uint8(15)
    for block in range(q.size // SUPER):
        for half in range(2):
            start, to = block * SUPER + 128 * half, block * size + at
            a, b, c, d = (
                q[start : start + 32],
                q[start + 32 : start + 64],
                q[start + 64 : start + 96],
                q[start + 96 : start + 128],
            )
            first, second = out[to + 64 * half : to + 64 * half + 32], out[to + 64 * half + 32 : to + 64 * half + 64]
            pairs = out[to + 128 + 32 * half : to + 160 + 32 * half]
            for i in range(pairs.size):
                first[i] = np.uint8((a[i] & nibble) | np.uint8(c[i] << four))
                second[i] = np.uint8((b[i] & nibble) | np.uint8(d[i] << four))
                low = np.uint8((a[i] >> four) | np.uint8((b[i] >> four) << np.uint8(2)))
                high = np.uint8(np.uint8((c[i] >> four) << four) | np.uint8((d[i] >> four) << np.uint8(6)))
                pairs[i] = np.uint8(low | high)
