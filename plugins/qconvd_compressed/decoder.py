"""What the tensors of a linear stand for. Shares nothing with the encoder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

from qconvd.api import Array, Buffer, Unit
from qconvd_compressed.schemes import CODEBOOK_BLOCK

Singles = NDArray[np.float32]


def decode(unit: Unit, rows: tuple[int, int], data: Sequence[Buffer]) -> Array:
    """The rows of a linear as float32 (rows, columns)."""
    how = {"integers": _integers, "floats": _floats, "llm_int8": _llm_int8, "codebook": _codebook}[unit.options["scheme"]]
    return how(unit, rows[1] - rows[0], [bytes(d) for d in data])


def halves(raw: bytes, dtype: str) -> Singles:
    """F16 or BF16 as float32."""
    if dtype == "F16":
        return np.frombuffer(raw, "<f2").astype(np.float32)
    # The upper half of a float32: two zero bytes go in front, as numbers are little-endian.
    wide = np.zeros((len(raw) // 2, 2), "<u2")
    wide[:, 1] = np.frombuffer(raw, "<u2")
    return wide.view("<f4").reshape(-1)


def unpacked(words: NDArray[np.uint32], bits: int) -> Array:
    """(rows, words) as (rows, values): low bits first, each less the half of its range."""
    shifts = np.arange(0, 32, bits, dtype=np.uint32)
    values = words[:, :, None] >> shifts & np.uint32(2**bits - 1)
    return values.reshape(len(words), -1).astype(np.int64) - 2 ** (bits - 1)


def _integers(unit: Unit, rows: int, data: Sequence[bytes]) -> Array:
    bits, width = int(unit.options["bits"]), int(unit.options["group_size"])
    columns = unit.shape[1]
    if unit.outputs[0].dtype == "I32":
        codes = unpacked(np.frombuffer(data[0], "<u4").reshape(rows, -1), bits)
    else:
        codes = np.frombuffer(data[0], "i1").astype(np.int64).reshape(rows, columns)
    scales = halves(data[1], unit.outputs[1].dtype).reshape(rows, -1)
    zeros: Array = np.zeros(scales.shape, np.int64)
    if len(data) > 2:
        words = np.frombuffer(data[2], "<u4").reshape(-1, scales.shape[1])
        zeros = unpacked(np.ascontiguousarray(words.T), bits).T
    spread = [np.repeat(a, width, axis=1) for a in (scales, zeros)]
    return (codes - spread[1]).astype(np.float32) * spread[0]


def _floats(unit: Unit, rows: int, data: Sequence[bytes]) -> Array:
    height, width = int(unit.options["height"]), int(unit.options["width"])
    columns = unit.shape[1]
    # Every byte is an index: wrapping, which never happens, is cheaper than asking.
    values = np.take(e4m3(), np.frombuffer(data[0], np.uint8), mode="wrap").reshape(rows, columns)
    scales = halves(data[1], unit.outputs[1].dtype).reshape(-1, -(-columns // width))
    for band, scale in enumerate(scales):
        values[band * height : (band + 1) * height] *= np.repeat(scale, width)[:columns]
    return values


@cache
def e4m3() -> Singles:
    """The number of each code: a sign, four bits of exponent, three of fraction; all ones is no number."""
    codes = np.arange(256)
    exponent, fraction = codes >> 3 & 15, codes & 7
    values = np.where(exponent == 0, np.ldexp(fraction / 8, -6), np.ldexp(1 + fraction / 8, exponent - 7))
    return np.where(codes & 127 == 127, np.nan, np.where(codes & 128, -values, values)).astype(np.float32)


def _llm_int8(unit: Unit, rows: int, data: Sequence[bytes]) -> Array:  # noqa: ARG001
    codes = np.frombuffer(data[0], "i1").astype(np.float64).reshape(rows, -1)
    return (codes * np.frombuffer(data[1], "<f4")[:, None] / 127).astype(np.float32)


def _codebook(unit: Unit, rows: int, data: Sequence[bytes]) -> Array:
    count = rows * unit.shape[1]
    numbers = pairs_of(unit.options["type"])[np.frombuffer(data[0], np.uint8)].view(np.float32)[:count]
    largest, whole = largest_as_read(unit, data), count // CODEBOOK_BLOCK
    blocks = numbers[: whole * CODEBOOK_BLOCK].reshape(whole, CODEBOOK_BLOCK)
    blocks *= largest[:whole, None]
    numbers[whole * CODEBOOK_BLOCK :] *= largest[whole:]  # of one block, if there is another
    return numbers.reshape(rows, -1)


def largest_as_read(unit: Unit, data: Sequence[Buffer]) -> Singles:
    """What the numbers of each block are multiplied by."""
    if "state" in unit.options:
        offset = offset_of(data)
        scales = np.repeat(np.frombuffer(data[2], "<f4"), 256)[: len(data[1])]
        largest: Singles = (moving_point()[np.frombuffer(data[1], np.uint8)] * scales + np.float32(offset)).astype(np.float32)
        return largest
    return np.frombuffer(data[1], "<f4")


def offset_of(data: Sequence[Buffer]) -> float:
    """The mean of the blocks' largest, of double quantization."""
    return float(json.loads(bytes(data[3]))["nested_offset"])


@cache
def pairs_of(name: str) -> NDArray[np.uint64]:
    """(256,): the two float32 numbers that a byte stands for, the high code's first."""
    table, byte = np.array(NF4 if name == "nf4" else FP4, np.float32), np.arange(256)
    return np.stack([table[byte >> 4], table[byte & 15]], axis=1).view(np.uint64).reshape(-1)


NF4 = [
    -1.0, -0.69619280, -0.52507305, -0.39491749, -0.28444138, -0.18477343, -0.09105004, 0.0,
    0.07958030, 0.16093020, 0.24611230, 0.33791524, 0.44070983, 0.56261700, 0.72295684, 1.0,
]  # fmt: skip
"""By code; eight digits, which is what a float32 holds."""
FP4 = [0, 1 / 192, 2 / 3, 1, 1 / 3, 1 / 2, 1 / 6, 1 / 4, 0, -1 / 192, -2 / 3, -1, -1 / 3, -1 / 2, -1 / 6, -1 / 4]


def moving_point() -> NDArray[np.float64]:
    """The 256 numbers of bitsandbytes' 8-bit type: k leading zeros of seven bits move the point by k digits, the bits
    after them and a one count evenly from 0.1 to 1; all zeros are 0, and of the negative ones -0 is 1."""
    found = [0.0, 1.0]
    for zeros in range(7):
        parts = 2 ** (6 - zeros)
        middles = 0.1 + 0.9 * (np.arange(parts) + 0.5) / parts
        found += [*(middles / 10**zeros), *(-middles / 10**zeros)]
    return np.sort(np.array(found))
