"""The tensors of one torch file: what its pickle says, held against the bytes that are there.

Two layouts: the zip (archive.py), and the stream that torch.save wrote before 1.6: pickles of a magic number, of a version,
of the machine, of the object, of the storages' keys, and then for each storage its count of elements and its bytes.
Source: torch/serialization.py, `_legacy_save`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from qconvd.checkpoints.base import TensorInfo
from qconvd.checkpoints.files import opened, quoted, read_at, truncated
from qconvd.checkpoints.torch import machine
from qconvd.checkpoints.torch.archive import Archive, bad, open_archive
from qconvd.checkpoints.torch.state import weights_of
from qconvd.checkpoints.torch.stream import Stream
from qconvd.checkpoints.torch.values import Storage, Tensor, element_bytes
from qconvd.engine.expr import Permute, Read, Transpose
from qconvd.errors import Incomplete, QconvdError, Unsupported

MAGIC = 0x1950A86A20F9469CFC6C
VERSION = 1001
Found = Mapping[str, tuple[TensorInfo, TensorInfo]]
"""By name: the tensor that lies in the file, and the tensor of the model. They differ where the file holds it turned."""


def read_tensors(folder: Path, file: str) -> Found:
    """The weights of `folder/file`, in the order of its state dict.

    Raises `Incomplete` while bytes are missing, `Unsupported` for what is recognised and no checkpoint of weights,
    `BadCheckpoint` for what contradicts itself.
    """
    path = folder / file
    where = str(path)
    with opened(path) as (descriptor, size):
        if read_at(descriptor, 0, 1) == b"P":
            archive = open_archive(descriptor, size, where)
            whole = _of_archive(archive)
            place = _in_archive(archive)
        else:
            stream = Stream(descriptor, 0, size, where, lambda: _cut(size, where))
            whole, place = _of_stream(stream, size, path)
        starts: dict[str, int] = {}
        found = {}
        for name, tensor in weights_of(whole, where).items():
            key = tensor.storage.key
            if key not in starts:
                starts[key] = place(tensor.storage)
            found[name] = _placed(name, tensor, starts[key], file, where)
    return found


def _of_archive(archive: Archive) -> Any:
    start, size = archive.range("data.pkl")
    if not any(read_at(archive.descriptor, start, min(size, 64))):
        what = "has zeros where its pickle should be, which is not written yet"
        raise Incomplete(what, where=archive.where, fix="wait for the copy to finish, or copy the file again")
    ended = bad("has a pickle without an end", archive.where)
    return machine.load(Stream(archive.descriptor, start, size, archive.where, lambda: ended))


def _in_archive(archive: Archive) -> Callable[[Storage], int]:
    def place(storage: Storage) -> int:
        start, size = archive.range(f"data/{storage.key}")
        need = _nbytes(storage, archive.where)
        if size < need:
            what = f"has {size} bytes in its storage {quoted(storage.key)}, where its pickle says {need}"
            raise bad(what, archive.where)
        return start

    return place


@dataclass(frozen=True, slots=True)
class Streamed:
    """A file from before 1.6, as its pickles describe it."""

    whole: Any
    starts: Mapping[str, int]
    """By the key of a storage, where its bytes begin: behind its count of elements, of eight bytes."""
    storages: Mapping[str, Storage]
    end: int
    """How many bytes the file has."""


def read_stream(stream: Stream) -> Streamed:
    """The pickles of such a file. Raises as `read_tensors` does."""
    where = stream.where
    first = machine.load(stream)
    if first != MAGIC:
        raise bad("is a pickle, but none that torch.save made", where)
    if machine.load(stream) != VERSION:
        raise bad("is of a version of torch's format that nobody knows", where)
    about = machine.load(stream)
    if not isinstance(about, dict) or about.get("little_endian") is not True:
        what = "has its numbers in big-endian order, or does not say"
        raise Unsupported(what, where=where, fix="save it again on a machine with little-endian numbers")
    storages: dict[str, Storage] = {}
    whole = machine.load(stream, storages)
    weights_of(whole, where)  # what is no checkpoint is refused for that, however long it is
    keys = machine.load(stream)
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise bad("has a list of storages that is none", where)
    starts: dict[str, int] = {}
    at = stream.position
    for key in keys:
        if key in starts:
            raise bad(f"has its storage {quoted(key)} twice", where)
        if key not in storages:
            raise bad(f"has a storage {quoted(key)} that its pickle does not speak of", where)
        starts[key] = at + 8
        at += 8 + _nbytes(storages[key], where)
    return Streamed(whole, starts, storages, at)


def _of_stream(stream: Stream, size: int, path: Path) -> tuple[Any, Callable[[Storage], int]]:
    where = stream.where
    found = read_stream(stream)
    if size < found.end:
        raise truncated(path, size, found.end)
    if size > found.end:
        raise bad(f"goes on for {size - found.end} bytes behind its last storage", where)
    for key, start in found.starts.items():
        count, due = read_at(stream.descriptor, start - 8, 8), found.storages[key].numel
        if due and not any(count):
            what = f"has zeros where its storage {quoted(key)} should begin, which is not written yet"
            raise Incomplete(what, where=where, fix="wait for the copy to finish, or copy the file again")
        if int.from_bytes(count, "little", signed=True) != due:
            said = int.from_bytes(count, "little", signed=True)
            raise bad(f"has {said} elements in its storage {quoted(key)}, where its pickle says {due}", where)

    def place(storage: Storage) -> int:
        if storage.key not in found.starts:
            raise bad(f"does not hold the storage {quoted(storage.key)}, though its pickle says so", where)
        return found.starts[storage.key]

    return found.whole, place


def _placed(name: str, tensor: Tensor, start: int, file: str, where: str) -> tuple[TensorInfo, TensorInfo]:
    label = f"tensor {quoted(name)}"
    try:
        item = element_bytes(tensor.kind)
        within = element_bytes(tensor.storage.kind)
    except KeyError:
        what = f"{label} is of torch's type {tensor.kind.torch}, which is not read"
        raise Unsupported(what, where=where, fix="give qconvd the model in 16 or 32 bits") from None
    if prod(max(1, n) for n in tensor.shape) * item >= 1 << 63:  # also of no elements: no array has such a shape
        raise bad(f"{label} claims an absurd size", where)
    count = prod(tensor.shape)
    order = _order(tensor)
    if count and order is None:
        sizes = f"shape {list(tensor.shape)}, strides {list(tensor.strides)}"
        what = f"{label} is a view with gaps or repeats ({sizes})"
        raise Unsupported(what, where=where, fix="save it again after `tensor.contiguous()`, or take the model's safetensors")
    first = tensor.storage.first * within + tensor.offset * item
    if first + count * item > tensor.storage.numel * within:
        raise bad(f"{label} reaches beyond the end of its storage", where)
    order = order or tuple(range(len(tensor.shape)))
    shape = tuple(tensor.shape[a] for a in order)
    stored = TensorInfo(name, tensor.kind.dtype, shape, file, start + first, count * item)
    if shape == tensor.shape and order == tuple(sorted(order)):
        return stored, stored
    back = tuple(order.index(a) for a in range(len(order)))
    read = Read(name, stored.dtype, shape)
    *rest, a, b = range(len(order))
    made = Transpose(read) if back == (*rest, b, a) else Permute(read, back)
    return stored, TensorInfo(name, stored.dtype, tensor.shape, file, stored.offset, stored.nbytes, made)


def _order(tensor: Tensor) -> tuple[int, ...] | None:
    """The axes in the order in which they lie in memory, without gaps; None if there is no such order."""
    long = [a for a, n in enumerate(tensor.shape) if n != 1]
    if 0 in tensor.shape:
        return tuple(range(len(tensor.shape)))
    by_stride = sorted(long, key=lambda a: -tensor.strides[a])
    step = 1
    for axis in reversed(by_stride):
        if tensor.strides[axis] != step:
            return None
        step *= tensor.shape[axis]
    if by_stride == long:
        return tuple(range(len(tensor.shape)))
    # An axis of one element may stand anywhere.
    return (*(a for a, n in enumerate(tensor.shape) if n == 1), *by_stride)


def _nbytes(storage: Storage, where: str) -> int:
    try:
        return storage.numel * element_bytes(storage.kind)
    except KeyError:
        what = f"has weights of torch's type {storage.kind.torch}, which is not read"
        raise Unsupported(what, where=where, fix="give qconvd the model in 16 or 32 bits") from None


def _cut(size: int, where: str) -> QconvdError:
    what = f"ends inside its pickle ({size} bytes so far)"
    return Incomplete(what, where=where, fix="wait for the copy to finish, or copy the file again")
