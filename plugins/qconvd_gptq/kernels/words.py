"""Codes as 32-bit words, low bits first, along the columns of a transposed matrix: along the input features."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numba import types

from qconvd_gptq.kernels import CACHE

Scalar: TypeAlias = Any
Vector: TypeAlias = Any

_codes = types.Array(types.uint8, 2, "C", readonly=True)
_words = types.Array(types.uint32, 2, "C")


def _pack(codes: Vector, bits: Scalar, out: Vector) -> None:
    """(k, n) uint8 to (k * bits / 32, n) uint32; 2, 4 or 8 bits."""
    each = 32 // bits
    for word in range(out.shape[0]):
        for n in range(out.shape[1]):
            out[word, n] = np.uint32(0)
        for i in range(each):
            shift = np.uint32(i * bits)
            for n in range(out.shape[1]):
                out[word, n] |= np.uint32(codes[word * each + i, n]) << shift


pack = CACHE.entry(_pack, types.void(_codes, types.int64, _words))


def _pack3(codes: Vector, out: Vector) -> None:
    """(k, n) uint8 of 3 bits to (k * 3 / 32, n) uint32: 32 codes fill three words as one stream; the 11th and 22nd straddle."""
    for block in range(out.shape[0] // 3):
        for word in range(3):
            for n in range(out.shape[1]):
                out[3 * block + word, n] = np.uint32(0)
        for i in range(32):
            word, shift = 3 * block + i * 3 // 32, np.uint32(i * 3 % 32)
            for n in range(out.shape[1]):
                out[word, n] |= np.uint32(codes[32 * block + i, n]) << shift
            if shift > np.uint32(29):
                back = np.uint32(32) - shift
                for n in range(out.shape[1]):
                    out[word + 1, n] |= np.uint32(codes[32 * block + i, n]) >> back


pack3 = CACHE.entry(_pack3, types.void(_codes, _words))
