"""How levels and scales of the K types lie in a super-block (block_q2_K … block_q6_K in ggml-common.h), in torch.

Levels are uint8 of shape (super-blocks, 256), in the order of the weights; scales uint8 of shape (super-blocks, sub-blocks).
Everything returned is uint8 of shape (super-blocks, bytes).
"""

from __future__ import annotations

import torch

from qconvd_ggml.cuda.arithmetic import Tensor


def pack_2(q: Tensor) -> Tensor:
    """64 bytes, each of the low two bits of four levels that lie 32 weights apart."""
    parts = (q & 3).view(-1, 2, 4, 32)
    return (parts[:, :, 0] | parts[:, :, 1] << 2 | parts[:, :, 2] << 4 | parts[:, :, 3] << 6).reshape(-1, 64)


def pack_4(q: Tensor) -> Tensor:
    """128 bytes of nibbles: the low ones of even sub-blocks of 32, the high ones of odd ones."""
    parts = (q & 15).view(-1, 4, 2, 32)
    return (parts[:, :, 0] | parts[:, :, 1] << 4).reshape(-1, 128)


def high_bits(q: Tensor, bit: int) -> Tensor:
    """32 bytes of one bit of each level, a bit for each 32 weights."""
    parts = (q >> bit & 1).view(-1, 8, 32)
    packed = parts[:, 0]
    for k in range(1, 8):
        packed = packed | parts[:, k] << k
    return packed


def pack_6(q: Tensor) -> Tensor:
    """128 bytes of low nibbles, 64 bytes of high bit pairs."""
    low, high = (q & 15).view(-1, 2, 2, 2, 32), (q >> 4).view(-1, 2, 4, 32)
    nibbles = low[:, :, 0] | low[:, :, 1] << 4
    return torch.cat((nibbles.reshape(-1, 128), pack_2(high.reshape(-1, 256))), 1)


def pack_scales_45(scale: Tensor, minimum: Tensor) -> Tensor:
    """Twelve bytes: six bits each of the first four scales and minimums, whose high bits hold those of the last four."""
    first = scale[:, :4] | scale[:, 4:] >> 4 << 6, minimum[:, :4] | minimum[:, 4:] >> 4 << 6
    return torch.cat((*first, scale[:, 4:] & 15 | (minimum[:, 4:] & 15) << 4), 1)


def pack_scales_3(scale: Tensor) -> Tensor:
    """Twelve bytes for sixteen scales of six bits: eight with two low halves each, four with four pairs of high bits each."""
    low = scale[:, :8] & 15 | (scale[:, 8:] & 15) << 4
    pairs = (scale >> 4).view(-1, 4, 4)
    return torch.cat((low, pairs[:, 0] | pairs[:, 1] << 2 | pairs[:, 2] << 4 | pairs[:, 3] << 6), 1)
