"""Damaged copies of binary files, the same for the same seed."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator, Sequence

from checkpoint_files import ARRAY, STRING

LARGE = [0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**40, 2**60, 2**63 - 1, 2**63, 2**64 - 1]
NOT_FINITE = [0x7F800000, 0x7FC00000, 0x7FF0 << 48, 0x7FF8 << 48]
"""Infinity and NaN of 32 and 64 bits."""
SCALARS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of GGUF's scalars, by type."""


def scattered(whole: bytes, head: int, count: int, seed: int) -> list[bytes]:
    """Copies with flipped bits, absurd numbers, cuts, repeats and insertions anywhere in the first `head` bytes."""
    dice = random.Random(seed)
    made = []
    for _ in range(count):
        copy = bytearray(whole)
        for _ in range(dice.randint(1, 3)):
            at = dice.randrange(min(head, len(copy)) or 1)
            match dice.randrange(6):
                case 0:
                    copy[at] ^= 1 << dice.randrange(8)
                case 1:
                    copy[at] = dice.randrange(256)
                case 2:
                    copy[at : at + 8] = dice.choice(LARGE).to_bytes(8, "little")
                case 3:
                    copy[at : at + 4] = (dice.choice(LARGE) & 0xFFFFFFFF).to_bytes(4, "little")
                case 4:
                    del copy[at : at + dice.randint(1, 40)]
                case _:
                    piece = bytes(copy[at : at + dice.randint(1, 40)])
                    copy[at:at] = piece
            if not copy:
                copy = bytearray(b"x")
        made.append(bytes(copy))
    return made


def aimed(whole: bytes, fields: Sequence[tuple[int, int]], count: int, seed: int) -> list[bytes]:
    """Copies in which one or two fields in a row (offset, bytes) say something else: an extreme, one more, what another says.

    In a row, since a value means something else where its type is another.
    """
    dice = random.Random(seed)
    made = []
    for _ in range(count):
        copy = bytearray(whole)
        first = dice.randrange(len(fields))
        for at, size in fields[first : first + dice.randint(1, 2)]:
            said = int.from_bytes(copy[at : at + size], "little")
            other, length = dice.choice(fields)
            values = [
                dice.choice(LARGE),
                dice.choice(NOT_FINITE),
                dice.randrange(14),
                said + dice.choice([-1, 1]),
                said ^ 1 << dice.randrange(8 * size),
                int.from_bytes(copy[other : other + length], "little"),
            ]
            copy[at : at + size] = (dice.choice(values) % (1 << 8 * size)).to_bytes(size, "little")
        made.append(bytes(copy))
    return made


def spliced(first: bytes, second: bytes, cuts: Sequence[tuple[int, int]], count: int, seed: int) -> list[bytes]:
    """The first file cut at a field or anywhere; in half of the copies the second goes on there."""
    dice = random.Random(seed)
    made = []
    for _ in range(count):
        at = dice.choice(cuts)[0] if dice.random() < 0.5 else dice.randrange(len(first))
        rest = dice.choice([b"", second[dice.choice([at, dice.randrange(len(second))]) :]])
        made.append(first[:at] + rest)
    return made


def gguf_fields(whole: bytes) -> list[tuple[int, int]]:
    """Where the numbers of a GGUF header stand: counts, lengths, types, values, sizes and offsets, each with its bytes."""
    return list(_fields(whole))


def _fields(whole: bytes) -> Iterator[tuple[int, int]]:
    yield from ((4, 4), (8, 8), (16, 8))
    tensors, keys = struct.unpack_from("<QQ", whole, 8)
    at = 24
    for _ in range(keys):
        yield at, 8
        at += 8 + _number(whole, at, 8)
        yield at, 4
        kind, count, at = _number(whole, at, 4), 1, at + 4
        if kind == ARRAY:
            yield from ((at, 4), (at + 4, 8))
            kind, count, at = _number(whole, at, 4), _number(whole, at + 4, 8), at + 12
        for element in range(count):
            size = 8 if kind == STRING else SCALARS[kind]
            if element < 3:  # a vocabulary would be nearly all
                yield at, size
            at += size + (_number(whole, at, 8) if kind == STRING else 0)
    for _ in range(tensors):
        yield at, 8
        at += 8 + _number(whole, at, 8)
        axes = _number(whole, at, 4)
        yield from ((at, 4), *((at + 4 + 8 * axis, 8) for axis in range(axes)), (at + 4 + 8 * axes, 4), (at + 8 + 8 * axes, 8))
        at += 16 + 8 * axes


def dat_fields(whole: bytes) -> list[tuple[int, int]]:
    """The same for an importance matrix in the older format: the count, and each entry's lengths and calls."""
    found, at = [(0, 4)], 4
    for _ in range(_number(whole, 0, 4)):
        name = _number(whole, at, 4)
        calls = at + 4 + name
        found += [(at, 4), (calls, 4), (calls + 4, 4), (calls + 8, 4)]
        at = calls + 8 + 4 * _number(whole, calls + 4, 4)
    return [*found, (at, 4), (at + 4, 4)]


def _number(whole: bytes, at: int, size: int) -> int:
    return int.from_bytes(whole[at : at + size], "little")
