"""The K types: decoders. Layouts: block_q2_K … block_q6_K in ggml-common.h."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qconvd_ggml.decode_base import Decoder, Floats, half


def _quarters(raw: NDArray[np.uint8]) -> NDArray[np.int32]:
    """Of super-blocks, (blocks, 64) bytes of four levels of two bits each, to (blocks, 256)."""
    shifts = np.array([0, 2, 4, 6], np.uint8).reshape(4, 1)
    return ((raw.reshape(-1, 2, 1, 32) >> shifts) & 3).reshape(-1, 256).astype(np.int32)


def _halves(raw: NDArray[np.uint8]) -> NDArray[np.int32]:
    """Of super-blocks, (blocks, 128) bytes of two levels of four bits each, to (blocks, 256)."""
    nibbles = raw.reshape(-1, 4, 1, 32)
    return np.concatenate([nibbles & 15, nibbles >> 4], axis=2).reshape(-1, 256).astype(np.int32)


def _affine(d: Floats, m: Floats, scales: Floats, minimums: Floats, q: NDArray[np.int32]) -> Floats:
    """Weights from a super-block's scales (blocks, 1), those of its sub-blocks (blocks, sub-blocks), and levels."""
    step, low = d * scales.astype(np.float32), m * minimums.astype(np.float32)
    weights: Floats = step[:, :, None] * q.reshape(*step.shape, -1).astype(np.float32) - low[:, :, None]
    return weights


def _q2_k(raw: NDArray[np.uint8]) -> Floats:
    b = raw.reshape(-1, 84)
    return _affine(half(b[:, 80:82]), half(b[:, 82:]), b[:, :16] & 15, b[:, :16] >> 4, _quarters(b[:, 16:80]))


def _q3_k(raw: NDArray[np.uint8]) -> Floats:
    b = raw.reshape(-1, 110)
    low, high = b[:, 96:104], b[:, 104:108]
    scales = np.concatenate([low & 15, low >> 4], axis=1)
    scales = scales | np.concatenate([(high >> shift & 3) << 4 for shift in (0, 2, 4, 6)], axis=1)
    third = np.unpackbits(b[:, :32].reshape(-1, 1, 32), axis=1, bitorder="little").reshape(-1, 256).astype(np.int32)
    q = (_quarters(b[:, 32:96]) | third << 2) - 4
    step = half(b[:, 108:]) * (scales.astype(np.float32) - 32)
    weights: Floats = step[:, :, None] * q.reshape(-1, 16, 16).astype(np.float32)
    return weights


def _six_bits(raw: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The eight scales and eight minimums in the twelve bytes that Q4_K and Q5_K have for them."""
    first, second, rest = raw[:, :4], raw[:, 4:8], raw[:, 8:12]
    scales = np.concatenate([first & 63, rest & 15 | first >> 6 << 4], axis=1)
    return scales, np.concatenate([second & 63, rest >> 4 | second >> 6 << 4], axis=1)


def _q4_k(raw: NDArray[np.uint8]) -> Floats:
    b = raw.reshape(-1, 144)
    return _affine(half(b[:, :2]), half(b[:, 2:4]), *_six_bits(b[:, 4:16]), _halves(b[:, 16:]))


def _q5_k(raw: NDArray[np.uint8]) -> Floats:
    b = raw.reshape(-1, 176)
    fifth = np.unpackbits(b[:, 16:48].reshape(-1, 1, 32), axis=1, bitorder="little").reshape(-1, 256).astype(np.int32)
    return _affine(half(b[:, :2]), half(b[:, 2:4]), *_six_bits(b[:, 4:16]), _halves(b[:, 48:]) | fifth << 4)


def _q6_k(raw: NDArray[np.uint8]) -> Floats:
    b = raw.reshape(-1, 210)
    low = b[:, :128].reshape(-1, 2, 1, 64)
    pairs = b[:, 128:192].reshape(-1, 2, 1, 32)
    low = np.concatenate([low & 15, low >> 4], axis=2).reshape(-1, 2, 4, 32)
    q = low | ((pairs >> np.array([0, 2, 4, 6], np.uint8).reshape(4, 1)) & 3) << 4
    q = q.reshape(-1, 16, 16).astype(np.int32) - 32
    scales = half(b[:, 208:]) * b[:, 192:208].view(np.int8).astype(np.float32)
    weights: Floats = scales[:, :, None] * q.astype(np.float32)
    return weights


DECODERS: dict[str, Decoder] = {"Q2_K": _q2_k, "Q3_K": _q3_k, "Q4_K": _q4_k, "Q5_K": _q5_k, "Q6_K": _q6_k}
