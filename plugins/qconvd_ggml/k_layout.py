"""How scales and levels of the K types lie in a super-block: block_q2_K … block_q6_K in ggml-common.h.

`q` holds levels as bytes, transposed like the weights of a tile; `first` is the super-block's first lane. Scales come as
`q[k * lanes + list]`, lists being those of scales.py: all super-blocks' scales, then their minimums.
"""

from __future__ import annotations

import numpy as np

from qconvd_ggml.tile import LANES, Scalar, Vector, inline

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


@inline
def pack_2(q: Vector, first: Scalar, out: Vector, at: Scalar) -> None:
    """64 bytes, each of the low two bits of four levels that lie 32 weights apart."""
    for half in range(2):
        for pair in range(2):
            for j in range(16):
                lane = j * LANES + first + 8 * half + pair
                a, b, c, d = q[lane] & LOW_2, q[lane + 2] & LOW_2, q[lane + 4] & LOW_2, q[lane + 6] & LOW_2
                low, high = a | np.uint8(b << np.uint8(2)), np.uint8(c << np.uint8(4)) | np.uint8(d << np.uint8(6))
                out[at + 32 * half + 16 * pair + j] = np.uint8(low | high)


@inline
def pack_4(q: Vector, first: Scalar, out: Vector, at: Scalar) -> None:
    """128 bytes of nibbles: the low ones of even sub-blocks, the high ones of odd ones."""
    for pair in range(4):
        for j in range(32):
            lane = j * LANES + first + 2 * pair
            low, high = q[lane] & np.uint8(15), np.uint8(q[lane + 1] << np.uint8(4))
            out[at + 32 * pair + j] = np.uint8(low | high)


@inline
def pack_5(q: Vector, first: Scalar, out: Vector, at: Scalar) -> None:
    """32 bytes of fifth bits, one bit per sub-block, then the nibbles."""
    for j in range(32):
        fifth = np.uint8(0)
        for k in range(8):
            fifth |= np.uint8(np.uint8(q[j * LANES + first + k] >> np.uint8(4)) << np.uint8(k))
        out[at + j] = fifth
    pack_4(q, first, out, at + 32)


@inline
def pack_scales_3(q: Vector, lanes: Scalar, block: Scalar, out: Vector, at: Scalar) -> None:
    """Twelve bytes for sixteen scales of six bits: eight with two low halves each, four with four pairs of high bits each."""
    for k in range(12):
        out[at + k] = np.uint8(0)
    for k in range(16):
        scale = q[k * lanes + block]
        out[at + k % 8] |= np.uint8((scale & 15) << (4 * (k // 8)))
        out[at + 8 + k % 4] |= np.uint8((scale >> 4) << (2 * (k // 4)))


@inline
def pack_3(q: Vector, first: Scalar, out: Vector, at: Scalar) -> None:
    """32 bytes of third bits, one bit for each 32 weights, then the low two bits."""
    for pair in range(2):
        for j in range(16):
            third = np.uint8(0)
            for k in range(8):
                third |= np.uint8(np.uint8(q[j * LANES + first + 2 * k + pair] >> np.uint8(2)) << np.uint8(k))
            out[at + 16 * pair + j] = third
    pack_2(q, first, out, at + 32)


@inline
def pack_6(q: Vector, first: Scalar, out: Vector, at: Scalar) -> None:
    """The q of a super-block: 128 bytes of low nibbles, 64 bytes of high bit pairs."""
    for half in range(2):
        for pair in range(2):
            for j in range(16):
                lane = j * LANES + first + 8 * half + pair
                a, b, c, e = q[lane], q[lane + 2], q[lane + 4], q[lane + 6]
                y = at + 16 * pair + j
                out[y + 64 * half] = np.uint8((a & np.uint8(15)) | np.uint8(c << np.uint8(4)))
                out[y + 64 * half + 32] = np.uint8((b & np.uint8(15)) | np.uint8(e << np.uint8(4)))
                low = np.uint8((a >> np.uint8(4)) | np.uint8((b >> np.uint8(4)) << np.uint8(2)))
                high = np.uint8(np.uint8((c >> np.uint8(4)) << np.uint8(4)) | np.uint8((e >> np.uint8(4)) << np.uint8(6)))
                out[y + 128 + 32 * half] = np.uint8(low | high)
