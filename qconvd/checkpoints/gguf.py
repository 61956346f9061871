"""GGUF files: the header and the tensor table, which give the file's exact length. No tensor is read.

Layout: magic, version, counts, key-value pairs, tensor table, padding to the alignment, data. Source: the GGUF specification in
ggml's docs. Version 2 and 3 differ only in that 3 may be big-endian; version 1 counted in 32 bits.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

from qconvd.checkpoints.base import FileInfo, ModelInfo, TensorInfo
from qconvd.checkpoints.files import (
    entries,
    inventory,
    is_folder,
    is_hidden,
    is_temporary,
    is_there,
    model_name,
    opened,
    quoted,
    read_at,
    truncated,
)
from qconvd.checkpoints.gguf_stream import ARRAY, STRING, LongArray, Stream
from qconvd.checkpoints.refusals import TEXT_START, refuse_text
from qconvd.errors import BadCheckpoint, Incomplete, QconvdError, Unsupported
from qconvd.ggml_types import REMOVED, TYPES

__all__ = ["GgufReader", "Header", "LongArray", "gguf_metadata", "read_header"]

MAX_TENSORS = 100_000
MAX_KEYS = 4096
MAX_AXES = 4
NAME_LIMIT = 1024
KEY_LIMIT = 1024
METADATA_LIMIT = 256 << 20
"""Bytes of metadata that are carried over to another file; the largest vocabularies take about 20 MB."""
ALIGNMENT_LIMIT = 1 << 20
_INT64 = 1 << 63
_SPLIT = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")


class GgufReader:
    """GGUF: a lone file, a split set of them, or a folder that holds one of these."""

    name = "gguf"

    def claims(self, path: Path) -> bool:
        """Whether the path ends in `.gguf`, or is a folder with such files."""
        if path.name.lower().endswith(".gguf") and not is_folder(path):
            return True
        return bool(_held(path))

    def inspect(self, path: Path) -> ModelInfo:
        """Read the header of every part.

        Raises `Incomplete` for missing parts or bytes, `Unsupported` for versions and types that are not read and for
        folders of several models, `BadCheckpoint` for everything that contradicts itself.
        """
        folder, parts = (
            (path, _one_model(path, _held(path))) if is_folder(path) else (path.parent, _split(path.parent, path.name))
        )
        headers = {part: read_header(folder, part) for part in parts}
        tensors: dict[str, TensorInfo] = {}
        for part, header in headers.items():
            for name, tensor in header.tensors.items():
                if name in tensors:
                    what = f"the same tensor {quoted(name)} is in {tensors[name].file} and in {part}"
                    raise BadCheckpoint(what, where=str(folder), fix=_AGAIN)
                tensors[name] = tensor
        first = headers[parts[0]]
        if first.metadata.get("general.type") == "imatrix":
            raise Unsupported(
                "is an importance matrix and no model",
                where=str(folder / parts[0]),
                fix="give qconvd the model that it was made of, and name the matrix in the target: gguf: {imatrix: FILE}",
            )
        wanted = first.metadata.get("split.tensors.count")
        if len(parts) > 1 and isinstance(wanted, int) and wanted != len(tensors):
            raise BadCheckpoint(
                f"{len(tensors)} tensors in all parts, but split.tensors.count says {wanted}", where=str(folder), fix=_AGAIN
            )
        files: tuple[FileInfo, ...] = tuple(FileInfo(part, headers[part].size, "weights") for part in parts)
        architecture = first.metadata.get("general.architecture")
        config = {"architectures": [architecture], "model_type": architecture} if isinstance(architecture, str) else {}
        return ModelInfo(
            path=folder,
            name=model_name(path),
            kind=self.name,
            tensors=tensors,
            files=inventory(folder, set(parts)) if is_folder(path) else files,
            config=config,
            metadata=first.metadata,
        )


@dataclass(frozen=True, slots=True)
class Header:
    """What one file says of itself. Long arrays of the metadata are counted, not kept."""

    version: int
    metadata: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]
    alignment: int
    data: int
    """Where the tensors' bytes begin."""
    size: int


def read_header(folder: Path, file: str) -> Header:
    """Read and check the header of `folder/file`, in bounded memory whatever it claims.

    Shapes are row-major: the reverse of GGUF's order. Raises `Incomplete` if the file ends before its tensor table says,
    `Unsupported` for old versions and types, `BadCheckpoint` for lies.
    """
    path = folder / file
    with opened(path) as (descriptor, size):
        start = read_at(descriptor, 0, TEXT_START)
        if not (start.startswith(b"GGUF") or b"GGUF".startswith(start)):
            refuse_text(path, start, size, "a GGUF file")
        stream = Stream(descriptor, size, str(path))
        version = _version(stream)
        tensor_count = stream.count("tensors", MAX_TENSORS)
        key_count = stream.count("metadata keys", MAX_KEYS)
        metadata = _metadata(stream, key_count)
        alignment = _alignment(metadata, str(path))
        tensors = [_tensor(stream, file) for _ in range(tensor_count)]
        data = stream.position + -stream.position % alignment
    placed = [replace(t, offset=data + t.offset) for t in tensors]
    named: dict[str, TensorInfo] = {}
    for tensor in placed:
        if tensor.name in named:
            raise BadCheckpoint(f"has tensor {quoted(tensor.name)} twice", where=str(path), fix=_AGAIN)
        named[tensor.name] = tensor
    _check_places(placed, alignment, data, path, size, stream.position)
    return Header(version, metadata, named, alignment, data, size)


def gguf_metadata(model: ModelInfo) -> list[tuple[str, bytes]]:
    """The metadata of a GGUF model as it stands in its (first) file: key, and type and value in the file's own bytes.

    Long arrays are all there, unlike in `Header.metadata`. Raises as `read_header` does, and `BadCheckpoint` for more than
    `METADATA_LIMIT` bytes.
    """
    path = model.path / next(f.path for f in model.files if f.role == "weights")
    with opened(path) as (descriptor, size):
        stream = Stream(descriptor, size, str(path))
        _version(stream)
        stream.count("tensors", MAX_TENSORS)
        spans = []
        for _ in range(stream.count("metadata keys", MAX_KEYS)):
            key = stream.text("a metadata key", KEY_LIMIT)
            start = stream.position
            _value(stream, key)
            spans.append((key, start, stream.position))
        if stream.position > METADATA_LIMIT:
            raise BadCheckpoint(
                f"has {stream.position} bytes of metadata; {METADATA_LIMIT} is the most that is kept", where=str(path)
            )
        return [(key, read_at(descriptor, start, stop - start)) for key, start, stop in spans]


def _version(stream: Stream) -> int:
    magic = stream.take(4, "the magic")
    if magic != b"GGUF":
        if not magic.strip(b"\0"):
            raise Incomplete(
                "begins with zeros: its header is not written yet", where=stream.where, fix="wait for the copy to finish"
            )
        raise BadCheckpoint("is no GGUF file: its magic is not there", where=stream.where, fix=_AGAIN)
    version = stream.u32("the version")
    if version in (2, 3):
        return version
    if version == 1:
        raise Unsupported("is GGUF version 1, from August 2023", where=stream.where, fix="take a current GGUF of the model")
    if version & 0xFFFF == 0:
        raise Unsupported("is a big-endian GGUF", where=stream.where, fix="take a little-endian GGUF of the model")
    raise Unsupported(f"is GGUF version {version}; 2 and 3 are read", where=stream.where, fix="update qconvd")


def _metadata(stream: Stream, count: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for _ in range(count):
        key = stream.text("a metadata key", KEY_LIMIT)
        if key in found:
            raise BadCheckpoint(f"has the metadata key {quoted(key)} twice", where=stream.where, fix=_AGAIN)
        found[key] = _value(stream, key)
    return found


def _value(stream: Stream, key: str) -> Any:
    kind = stream.u32(f"the type of {quoted(key)}")
    if kind == STRING:
        return stream.kept_text(f"the value of {quoted(key)}")
    if kind == ARRAY:
        return stream.array(f"the array {quoted(key)}")
    return stream.scalar(kind, f"the value of {quoted(key)}")


def _alignment(metadata: Mapping[str, Any], where: str) -> int:
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or not 0 < alignment <= ALIGNMENT_LIMIT or alignment & (alignment - 1):
        raise BadCheckpoint(
            f"has the alignment {alignment!r}, which is no power of two up to {ALIGNMENT_LIMIT}", where=where, fix=_AGAIN
        )
    return alignment


def _tensor(stream: Stream, file: str) -> TensorInfo:
    """A row of the tensor table; its offset still counts from the start of the data."""
    name = stream.text("a tensor's name", NAME_LIMIT)
    label = f"tensor {quoted(name)}"
    axes = stream.u32(f"the axes of {label}")
    if axes > MAX_AXES:
        raise BadCheckpoint(f"{label} has {axes} axes; GGUF allows {MAX_AXES}", where=stream.where, fix=_AGAIN)
    sizes = struct.unpack(f"<{axes}Q", stream.take(8 * axes, f"the shape of {label}"))
    kind = stream.u32(f"the type of {label}")
    offset = stream.u64(f"the offset of {label}")
    if kind in REMOVED:
        what = f"{label} has the type {REMOVED[kind]}, which llama.cpp no longer reads"
        raise Unsupported(what, where=stream.where, fix="take a current GGUF of the model")
    if kind not in TYPES:
        raise BadCheckpoint(f"{label} has the unknown type {kind}", where=stream.where, fix="a newer qconvd may know it")
    stored = TYPES[kind]
    columns, weights = (sizes[0] if sizes else 1), prod(sizes)
    if weights >= _INT64 or offset >= _INT64:
        raise BadCheckpoint(f"{label} claims an absurd size or place", where=stream.where, fix=_AGAIN)
    if columns % stored.block:
        what = f"{label} has rows of {columns}, no multiple of {stored.name}'s block of {stored.block}"
        raise BadCheckpoint(what, where=stream.where, fix=_AGAIN)
    return TensorInfo(name, stored.name, tuple(reversed(sizes)), file, offset, weights // stored.block * stored.size)


def _check_places(tensors: list[TensorInfo], alignment: int, data: int, path: Path, size: int, header_end: int) -> None:
    where, end, before = str(path), data, ""
    for tensor in sorted(tensors, key=lambda t: (t.offset, t.nbytes)):
        if (tensor.offset - data) % alignment:
            raise BadCheckpoint(f"tensor {quoted(tensor.name)} is not aligned to {alignment} bytes", where=where, fix=_AGAIN)
        if tensor.offset < end:
            what = f"has tensors that overlap: {quoted(before)} and {quoted(tensor.name)}"
            raise BadCheckpoint(what, where=where, fix=_AGAIN)
        end, before = tensor.offset + tensor.nbytes, tensor.name
    if size < (end if tensors else header_end):
        raise truncated(path, size, end)
    # Writers may or may not pad after the last tensor.
    if size > end + -end % alignment:
        raise BadCheckpoint(f"has {size - end} bytes more than its tensor table describes", where=where, fix=_AGAIN)


_AGAIN = "copy or download the file again"


def _held(folder: Path) -> list[str]:
    try:
        found = [e.name for e in entries(folder) if e.kind != "folder" and not is_hidden(e.name) and not is_temporary(e.name)]
    except QconvdError:
        return []
    return [n for n in found if n.lower().endswith(".gguf")]


def _one_model(folder: Path, files: list[str]) -> list[str]:
    # An mmproj is the vision part of the model beside it, an imatrix what its types were made with.
    models = [f for f in files if not any(word in f.lower() for word in ("mmproj", "imatrix"))] or files
    sets = {m[1] if (m := _SPLIT.fullmatch(f)) else f for f in models}
    if len(sets) > 1:
        what = f"the folder holds {len(sets)} GGUF models: {', '.join(sorted(sets)[:3])}{' …' if len(sets) > 3 else ''}"
        raise Unsupported(what, where=str(folder), fix="give qconvd one of the files")
    return _split(folder, models[0])


def _split(folder: Path, file: str) -> list[str]:
    """All parts of the set that a file belongs to, by their names."""
    match = _SPLIT.fullmatch(file)
    if not match:
        return [file]
    count = int(match[3])
    parts = [f"{match[1]}-{i:05}-of-{match[3]}.gguf" for i in range(1, count + 1)]
    missing = [p for p in parts if not is_there(folder / p)]
    if missing:
        what = f"{len(missing)} of {count} parts are missing: {', '.join(missing[:3])}{' …' if len(missing) > 3 else ''}"
        raise Incomplete(what, where=str(folder), fix="wait for the download to finish, or download these files")
    return parts or [file]
