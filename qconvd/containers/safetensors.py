"""The safetensors container: layout over shards, header bytes, the shards' index, and reading back with the library.

A file is a little-endian u64 (length of the header), the header as JSON, padded with spaces to a multiple of 8, then the
tensors without a gap. Source: the format section of safetensors' README.

Order. Shards are filled in the order in which the tensors are given, which is the order in which the engine makes them: so
a shard holds neighbouring layers and is written from front to back. Inside a shard, tensors of wider elements come first
and the given order is kept among equals. As nothing may lie between tensors, this is the only order in which every tensor
is aligned to its own element, as safetensors' own writer does it; in a model of one element type it changes nothing.

`ContainerSpec.options`: `max_shard_size` (bytes, default 5 GB as on the Hub) and `stem` (default `model`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from math import prod
from pathlib import Path
from typing import Any, ClassVar

from qconvd.checkpoints.base import TensorInfo
from qconvd.dtypes import ELEMENT_BYTES
from qconvd.engine.plan import ContainerSpec, FileSpec, OutputTensor, Placed, SideFile
from qconvd.errors import BadCheckpoint, Unsupported

MAX_SHARD_SIZE = 5_000_000_000
MAX_HEADER = 100_000_000
"""Bytes of JSON that the safetensors library accepts as a header."""


class SafetensorsContainer:
    """Places tensors in `stem.safetensors`, or `stem-00001-of-0000N.safetensors` above the limit of a shard."""

    kind: ClassVar[str] = "safetensors"

    def layout(self, spec: ContainerSpec, tensors: Sequence[OutputTensor]) -> tuple[FileSpec, ...]:
        """Files with every offset final. Raises `Unsupported` for what the container cannot hold."""
        _check(tensors)
        shards = list(_shards(tensors, int(spec.options.get("max_shard_size", MAX_SHARD_SIZE))))
        stem = spec.options.get("stem", "model")
        files = []
        for number, shard in enumerate(shards, 1):
            name = stem if len(shards) == 1 else f"{stem}-{number:05d}-of-{len(shards):05d}"
            ordered = sorted(shard, key=lambda t: -ELEMENT_BYTES[t.dtype])
            offset = len(_header(spec, ordered))
            placed = []
            for tensor in ordered:
                placed.append(Placed(tensor.name, offset, tensor.nbytes))
                offset += tensor.nbytes
            files.append(FileSpec(f"{name}.safetensors", offset, tuple(placed), number if len(shards) > 1 else 0))
        return tuple(files)

    def header(self, spec: ContainerSpec, file: FileSpec, tensors: Sequence[OutputTensor]) -> bytes:
        """Length and JSON: all bytes before the first tensor."""
        by_name = {t.name: t for t in tensors}
        return _header(spec, [by_name[p.tensor] for p in file.tensors])

    def read(self, path: Path) -> Sequence[TensorInfo]:
        """What the safetensors library finds in a file, in file order. Raises `BadCheckpoint` with its complaint.

        The library refuses gaps, overlaps and a file of another length than its header promises, so a tensor begins
        where the one before it ends.
        """
        from safetensors import SafetensorError, safe_open

        found = []
        try:
            with path.open("rb") as file:
                offset = 8 + int.from_bytes(file.read(8), "little")
            with safe_open(path, framework="numpy") as opened:
                for name in opened.offset_keys():
                    part = opened.get_slice(name)
                    dtype, shape = str(part.get_dtype()), tuple(part.get_shape())
                    if dtype not in ELEMENT_BYTES:
                        raise BadCheckpoint(f"tensor {name} has the unknown type {dtype}", where=str(path))
                    nbytes = prod(shape) * ELEMENT_BYTES[dtype]
                    found.append(TensorInfo(name, dtype, shape, path.name, offset, nbytes))
                    offset += nbytes
        except (SafetensorError, OSError) as error:
            raise BadCheckpoint(f"the safetensors library cannot read it: {error}", where=str(path)) from error
        return found


def safetensors_index(files: Sequence[FileSpec], tensors: Sequence[OutputTensor]) -> SideFile | None:
    """The index that readers of sharded models need, named after the shards; None for a single file.

    `total_size` counts the tensors' bytes without headers, as transformers does.
    """
    if len(files) < 2:
        return None
    stem = files[0].path.rsplit("-", 3)[0]
    where = {p.tensor: f.path for f in files for p in f.tensors}
    metadata = {"total_parameters": sum(prod(t.shape) for t in tensors), "total_size": sum(t.nbytes for t in tensors)}
    text = json.dumps({"metadata": metadata, "weight_map": dict(sorted(where.items()))}, indent=2, ensure_ascii=False) + "\n"
    return SideFile(f"{stem}.safetensors.index.json", len(text.encode()), text=text)


def _check(tensors: Sequence[OutputTensor]) -> None:
    seen: set[str] = set()
    for t in tensors:
        if t.dtype not in ELEMENT_BYTES:
            raise Unsupported(f"safetensors has no type {t.dtype}", where=t.name)
        if t.nbytes != prod(t.shape) * ELEMENT_BYTES[t.dtype]:
            raise Unsupported(f"{t.nbytes} bytes are planned for {t.dtype} {list(t.shape)}", where=t.name)
        if t.name in seen or t.name == "__metadata__":
            raise Unsupported("the name is used twice" if t.name in seen else "the name is reserved", where=t.name)
        seen.add(t.name)


def _shards(tensors: Sequence[OutputTensor], limit: int) -> Iterator[list[OutputTensor]]:
    """Fill one shard after the other; a tensor larger than the limit gets a shard of its own."""
    if limit <= 0:
        raise Unsupported(f"a shard of {limit} bytes holds nothing", fix="give max_shard_size a positive size, e.g. 5GB")
    shard: list[OutputTensor] = []
    size = 0
    for tensor in tensors:
        if shard and size + tensor.nbytes > limit:
            yield shard
            shard, size = [], 0
        shard.append(tensor)
        size += tensor.nbytes
    yield shard


def _header(spec: ContainerSpec, ordered: Sequence[OutputTensor]) -> bytes:
    # transformers refuses a file whose metadata does not say `format`.
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"} | {key: str(value) for key, _, value in spec.metadata}}
    offset = 0
    for t in ordered:
        entries[t.name] = {"dtype": t.dtype, "shape": list(t.shape), "data_offsets": [offset, offset + t.nbytes]}
        offset += t.nbytes
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER:
        raise Unsupported(f"a header of {len(text)} bytes is more than safetensors reads", fix="give a smaller max_shard_size")
    return len(text).to_bytes(8, "little") + text
