"""What has to be read of a torch file to know its tensors: for a file that is elsewhere, and as long as it is.

A zip is known by its directory, which is at its end, and by its pickle; a file from before 1.6 by the pickles it begins with.
Where the bytes of a storage begin stands right before them, in as many places as there are storages: those few bytes are
written as they must be, instead of being asked for one by one. The readers hold the file against them when it is here.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from typing import TypeAlias

from qconvd.checkpoints.files import read_at
from qconvd.checkpoints.torch.archive import COMMENT_LIMIT, END_SIZE, directory, is_pickle, members_of
from qconvd.checkpoints.torch.stream import PICKLE_LIMIT, Stream
from qconvd.checkpoints.torch.tensors import read_stream
from qconvd.errors import Incomplete

FIRST = 64 << 10
"""Bytes that are asked for at first. The pickles of an older file may be longer: each further question is for eight times as
much."""
ALIGNMENT = 64
"""torch begins each storage in a zip at a multiple of it."""
Ask: TypeAlias = Callable[[int, int], bytes]
"""(start, count) to the bytes of the file from there on."""


def fill(descriptor: int, size: int, ask: Ask, where: str) -> None:
    """Write into a file of `size` zeros what describes its tensors.

    Raises `Unsupported` and `BadCheckpoint` as `read_tensors` does; what was written until then shows a reader the same.
    """
    first = ask(0, min(FIRST, size))
    os.pwrite(descriptor, first, 0)
    if first[:1] == b"P":
        _fill_archive(descriptor, size, ask, where)
    elif first[:1] == b"\x80":
        _fill_stream(descriptor, size, first, ask, where)


def _fill_archive(descriptor: int, size: int, ask: Ask, where: str) -> None:
    tail = max(0, size - END_SIZE - COMMENT_LIMIT)
    os.pwrite(descriptor, ask(tail, size - tail), tail)
    begin, count, nbytes = directory(descriptor, size, where)
    if begin < tail:
        os.pwrite(descriptor, ask(begin, tail - begin), begin)
    asked = []
    for member in members_of(read_at(descriptor, begin, nbytes), count, where):
        name = member.name.encode()
        if is_pickle(member.name) or member.name.endswith("/byteorder"):
            asked.append(member)
        elif member.header + 30 + len(name) > FIRST and member.header + 30 + len(name) + ALIGNMENT <= tail:
            extra = -(member.header + 30 + len(name)) % ALIGNMENT
            os.pwrite(descriptor, b"PK\3\4" + struct.pack("<22x2H", len(name), extra) + name, member.header)
    if sum(is_pickle(member.name) for member in asked) != 1:
        return
    for member in asked:
        _member(descriptor, member.header, 30 + len(member.name.encode()), min(member.size, PICKLE_LIMIT), begin, ask)


def _member(descriptor: int, header: int, named: int, size: int, end: int, ask: Ask) -> None:
    """A member whole. How much lies between its name and its bytes only its header tells."""
    done = header
    for more in (ALIGNMENT, int.from_bytes(read_at(descriptor, header + 28, 2), "little")):
        stop = min(end, header + named + more + size)
        if stop > done:
            os.pwrite(descriptor, ask(done, stop - done), done)
            done = stop


def _fill_stream(descriptor: int, size: int, first: bytes, ask: Ask, where: str) -> None:
    there = len(first)
    while True:
        ended = Incomplete(f"ends inside its pickle ({there} of {size} bytes were asked for)", where=where)
        try:
            found = read_stream(Stream(descriptor, 0, there, where, lambda ended=ended: ended))  # type: ignore[misc]
        except Incomplete:
            if there >= min(PICKLE_LIMIT, size):
                raise
        else:
            if found.end == size:
                for key, start in found.starts.items():
                    os.pwrite(descriptor, found.storages[key].numel.to_bytes(8, "little"), start - 8)
            return
        count = min(8 * there, PICKLE_LIMIT, size) - there
        os.pwrite(descriptor, ask(there, count), there)
        there += count
