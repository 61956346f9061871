"""The zip that torch.save makes since torch 1.6: where in the file the bytes of each member are. Nothing is extracted.

`NAME/data.pkl` is the pickle, `NAME/data/KEY` the bytes of a storage, `NAME/byteorder` says `little` or `big`; members are
stored, not compressed, so a tensor is a byte range of the file. Sources: PKWARE's APPNOTE 6.3.10 (4.3.7 to 4.3.16, 4.5.3);
torch, caffe2/serialize/inline_container.cc.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from qconvd.checkpoints.files import quoted, read_at
from qconvd.checkpoints.torch.stream import FIX
from qconvd.errors import BadCheckpoint, Incomplete, Unsupported

DIRECTORY_LIMIT = 64 << 20
"""Bytes of a zip's directory: about 70 for each tensor."""
MEMBERS = 200_000
END = b"PK\5\6"
END_SIZE = 22
COMMENT_LIMIT = 65_535
_LOCATOR, _END64, _CENTRAL, _LOCAL = b"PK\6\7", b"PK\6\6", b"PK\1\2", b"PK\3\4"
_ALL_ONES = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Member:
    """A member as the directory describes it. `header` is where its local header begins."""

    name: str
    header: int
    size: int


@dataclass(frozen=True, slots=True)
class Archive:
    """A zip of torch. `root` is the folder in it that holds everything, with its slash."""

    descriptor: int
    where: str
    root: str
    members: Mapping[str, Member]
    begin: int
    """Where the directory begins: no member reaches beyond it."""

    def range(self, name: str) -> tuple[int, int]:
        """Where in the file the bytes of `root` + `name` begin, and how many they are. Raises `BadCheckpoint`."""
        member = self.members.get(self.root + name)
        if member is None:
            raise bad(f"has no member {quoted(self.root + name)}, though its pickle says so", self.where)
        if member.header + 30 > self.begin:  # a zip64 may claim any place
            raise bad(f"has a directory that does not fit its member {quoted(member.name)}", self.where)
        header = read_at(self.descriptor, member.header, 30)
        if not any(header):
            what = f"has zeros where {quoted(member.name)} should be, which is not written yet"
            raise Incomplete(what, where=self.where, fix="wait for the copy to finish, or copy the file again")
        length, extra = struct.unpack_from("<2H", header.ljust(30, b"\0"), 26)
        named = read_at(self.descriptor, member.header + 30, length)
        start = member.header + 30 + length + extra
        if header[:4] != _LOCAL or named != member.name.encode() or start + member.size > self.begin:
            raise bad(f"has a directory that does not fit its member {quoted(member.name)}", self.where)
        return start, member.size


def open_archive(descriptor: int, size: int, where: str) -> Archive:
    """Read and check the directory of a file that begins like a zip.

    Raises `Incomplete` while its end is missing, `Unsupported` for what is a zip of something else, `BadCheckpoint` for one
    that contradicts itself or is none that torch writes.
    """
    begin, count, nbytes = directory(descriptor, size, where)
    members: dict[str, Member] = {}
    for member in members_of(read_at(descriptor, begin, nbytes), count, where):
        if member.name in members:
            raise bad(f"has two members called {quoted(member.name)}", where)
        members[member.name] = member
    pickles = [name for name in members if is_pickle(name)]
    if len(pickles) != 1:
        what = "is a zip that torch.save did not make: it holds no data.pkl" if not pickles else "holds more than one data.pkl"
        raise bad(what, where)
    root = pickles[0].removesuffix("data.pkl")
    if f"{root}constants.pkl" in members:
        fix = "take the safetensors of the same model, or save its state dict with torch"
        raise Unsupported("is a TorchScript program, not a checkpoint", where=where, fix=fix)
    archive = Archive(descriptor, where, root, members, begin)
    if f"{root}byteorder" in members:
        start, length = archive.range("byteorder")
        order = read_at(descriptor, start, min(length, 16))
        if order != b"little":
            what = f"has its numbers in the byte order {quoted(order.decode(errors='replace'))}"
            raise Unsupported(what, where=where, fix="save it again on a machine with little-endian numbers")
    return archive


def ends(tail: bytes, size: int) -> int | None:
    """Where in a file of `size` bytes that end in `tail` the end record of a zip is; None if there is none that fits."""
    at = tail.rfind(END)
    while at >= 0:
        record = tail[at : at + END_SIZE]
        comment = int.from_bytes(record[20:22], "little")
        directory, offset = int.from_bytes(record[12:16], "little"), int.from_bytes(record[16:20], "little")
        begins = size - len(tail) + at
        # Above 4 GiB both fields are all ones and the true figures stand in the zip64 record before this one.
        fits = _ALL_ONES in (offset, directory) or offset + directory <= begins
        if len(record) == END_SIZE and at + END_SIZE + comment == len(tail) and fits:
            return begins
        at = tail.rfind(END, 0, at)
    return None


def bad(what: str, where: str) -> BadCheckpoint:
    return BadCheckpoint(what, where=where, fix=FIX)


def is_pickle(name: str) -> bool:
    """Whether a member is the pickle of its archive."""
    return name.endswith("/data.pkl") and name.count("/") == 1


def directory(descriptor: int, size: int, where: str) -> tuple[int, int, int]:
    """Where the directory begins, how many members it lists, its bytes; as the records at the end of the file say it.

    Raises as `open_archive` does.
    """
    tail = read_at(descriptor, max(0, size - END_SIZE - COMMENT_LIMIT), END_SIZE + COMMENT_LIMIT)
    end = ends(tail, size)
    if end is None:
        what = f"the end record of the zip is not there ({size} bytes so far)"
        raise Incomplete(what, where=where, fix="wait for the copy to finish, or copy the file again")
    disk, first, here, count, nbytes, begin = struct.unpack("<4H2I", read_at(descriptor, end + 4, 16))
    locator = read_at(descriptor, end - 20, 20) if end >= 20 else b""
    # torch writes the records of a zip64 also where it would do without.
    if locator[:4] == _LOCATOR or 0xFFFF in (here, count) or _ALL_ONES in (nbytes, begin):
        if locator[:4] != _LOCATOR:
            raise bad("is a zip64 without its end record", where)
        end = int.from_bytes(locator[8:16], "little")
        record = read_at(descriptor, end, 56) if end + 56 <= size else b""
        if record[:4] != _END64:
            raise bad("is a zip64 without its end record", where)
        disk, first, here, count, nbytes, begin = struct.unpack_from("<2I4Q", record, 16)
    if disk or first or here != count:
        raise bad("is one part of a zip in several", where)
    if begin + nbytes != end:
        raise bad(f"has a directory of {nbytes} bytes from byte {begin} on, but it should end at byte {end}", where)
    if nbytes > DIRECTORY_LIMIT or count > MEMBERS:
        raise bad(f"claims a directory of {count} members in {nbytes} bytes", where)
    return begin, count, nbytes


def members_of(directory: bytes, count: int, where: str) -> Iterator[Member]:
    """What a directory lists. Raises `Unsupported` for compressed and encrypted members, `BadCheckpoint` for damage."""
    at = 0
    for _ in range(count):
        if len(directory) < at + 46 or directory[at : at + 4] != _CENTRAL:
            raise bad("has a directory that is damaged", where)
        flags, method = struct.unpack_from("<2H", directory, at + 8)
        packed, size, name_length, extra_length, comment_length = struct.unpack_from("<2I3H", directory, at + 20)
        (header,) = struct.unpack_from("<I", directory, at + 42)
        rest = directory[at + 46 : at + 46 + name_length + extra_length]
        name, extra = rest[:name_length], rest[name_length:]
        size, packed, header = _zip64(extra, (size, packed, header))
        called = _checked_name(name, where)
        if flags & 1:
            raise Unsupported(f"has the encrypted member {quoted(called)}", where=where, fix="give qconvd the plain file")
        if method or packed != size:
            fix = "save it again with torch.save, which does not compress"
            raise Unsupported(f"has the compressed member {quoted(called)}, which is not unpacked", where=where, fix=fix)
        yield Member(called, header, size)
        at += 46 + name_length + extra_length + comment_length
    if at != len(directory):
        raise bad("has a directory that is damaged", where)


def _zip64(extra: bytes, figures: tuple[int, int, int]) -> tuple[int, ...]:
    """Size, packed size and place of a member, taken from its zip64 field where they are all ones."""
    if _ALL_ONES not in figures:
        return figures
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<2H", extra)
        if kind == 1:
            field = extra[4 : 4 + length]
            longer: Iterator[Any] = iter(struct.unpack(f"<{len(field) // 8}Q", field[: len(field) // 8 * 8]))
            return tuple(next(longer, f) if f == _ALL_ONES else f for f in figures)
        extra = extra[4 + length :]
    return figures


def _checked_name(raw: bytes, where: str) -> str:
    try:
        name = raw.decode()
    except UnicodeDecodeError:
        raise bad("has a member whose name is not UTF-8", where) from None
    if name.startswith("/") or "\\" in name or "\0" in name or ":" in name or ".." in name.split("/"):
        raise bad(f"has a member whose name leads out of it: {quoted(name)}", where)
    return name
