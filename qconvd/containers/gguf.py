"""GGUF version 3: the header that llama.cpp reads, and where each tensor lies behind it.

Layout (little-endian): magic, version, tensor count, metadata count, metadata, tensor table, padding, then every tensor at
a multiple of `general.alignment` (32 unless the metadata says otherwise), each padded with zero bytes to the next multiple.
Source: the GGUF page of ggml's documentation (docs/gguf.md).
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from qconvd.checkpoints.base import TensorInfo
from qconvd.engine.plan import ContainerSpec, FileSpec, OutputTensor, Placed
from qconvd.errors import QconvdError, Unsupported
from qconvd.ggml_types import TYPES

MAGIC = b"GGUF"
VERSION = 3
ALIGNMENT = 32
MOST_PARTS = 0xFFFF

VALUE_TYPES = {
    "u8": (0, "<B"), "i8": (1, "<b"), "u16": (2, "<H"), "i16": (3, "<h"), "u32": (4, "<I"), "i32": (5, "<i"),
    "f32": (6, "<f"), "bool": (7, "<?"), "u64": (10, "<Q"), "i64": (11, "<q"), "f64": (12, "<d"),
}  # fmt: skip
"""Scalar metadata types: their number in the file and how a value is packed."""
STRING, ARRAY = 8, 9
RAW = "raw"
"""A value as it stands in a file: base64 of its type and its bytes. For what another GGUF file says, and for long arrays."""
LONG = 4096
"""Elements of an array that `packed_metadata` packs."""

TENSOR_TYPES = {t.name: number for number, t in TYPES.items()}
"""ggml's numbers of the tensor types."""


class GgufContainer:
    """One GGUF file per artifact, or several; tensors stand in the order in which they are given.

    `ContainerSpec.options`: `path` (default `{stem}.gguf`), `max_size` (bytes of tensors in a file) and `max_tensors`. Above
    either the artifact is split as llama.cpp's gguf-split does it, into `{stem}-00001-of-00003.gguf` and so on: the metadata
    is in the first file, and every file says which of how many it is. A tensor is never cut, however large it is.
    """

    kind: ClassVar[str] = "gguf"

    def layout(self, spec: ContainerSpec, tensors: Sequence[OutputTensor]) -> tuple[FileSpec, ...]:
        """The files with every offset final. Raises `QconvdError` for what GGUF cannot hold."""
        path = str(spec.options.get("path", "{stem}.gguf"))
        parts = list(_parts(spec, tensors))
        if len(parts) < 2:
            return (_placed(spec, tensors, path),)
        if len(parts) > MOST_PARTS:
            fix = "allow larger parts"
            raise QconvdError(f"a split into {len(parts)} files is more than GGUF can number ({MOST_PARTS})", fix=fix)
        files = []
        for number, part in enumerate(parts, 1):
            own = replace(spec, metadata=(*_carried(spec, number), *_split_keys(number, len(parts), len(tensors))))
            name = f"{path.removesuffix('.gguf')}-{number:05}-of-{len(parts):05}.gguf"
            file = replace(_placed(own, part, name), shard=number)
            files.append(replace(file, header=base64.b64encode(self.header(own, file, part)).decode()))
        return tuple(files)

    def header(self, spec: ContainerSpec, file: FileSpec, tensors: Sequence[OutputTensor]) -> bytes:
        """Everything before the first tensor of a file that is not split, padding included."""
        alignment = _alignment(spec)
        metadata = _metadata(spec, len(tensors))
        size = _size(metadata) + _table_size(tensors)
        end = _padded(size, alignment)
        offsets = {p.tensor: p.offset - end for p in file.tensors}
        table = (_tensor_info(tensor, offsets[tensor.name]) for tensor in tensors)
        return b"".join((*metadata, *table, bytes(end - size)))

    def read(self, path: Path) -> Sequence[TensorInfo]:
        """The tensor table as the checkpoint reader understands it, which shares no code with this writer."""
        from qconvd.checkpoints.gguf import read_header

        return list(read_header(path.parent, path.name).tensors.values())


def packed_metadata(metadata: Iterable[tuple[str, str, Any]]) -> list[tuple[str, str, Any]]:
    """The same metadata, with long arrays in the file's own bytes already. Raises `QconvdError` as `layout` does.

    A vocabulary of hundreds of thousands of strings would be packed anew for every file, and read anew with every plan.
    """
    return [
        (key, RAW, base64.b64encode(_entry(key, kind, value)).decode())
        if kind.startswith("arr[") and len(value) >= LONG
        else (key, kind, value)
        for key, kind, value in metadata
    ]


def _parts(spec: ContainerSpec, tensors: Sequence[OutputTensor]) -> Iterator[Sequence[OutputTensor]]:
    """The tensors of each file. Source: gguf-split.cpp, which counts padded tensors and no metadata."""
    most_bytes, most_tensors = spec.options.get("max_size"), spec.options.get("max_tensors")
    start = size = 0
    for at, tensor in enumerate(tensors):
        nbytes = _padded(tensor.nbytes, ALIGNMENT)
        full = (most_bytes is not None and size + nbytes > most_bytes) or at - start == most_tensors
        if full and at > start:
            yield tensors[start:at]
            start, size = at, 0
        size += nbytes
    yield tensors[start:]


def _placed(spec: ContainerSpec, tensors: Sequence[OutputTensor], path: str) -> FileSpec:
    alignment = _alignment(spec)
    at = _padded(_head_size(spec, tensors), alignment)
    placed = []
    for tensor in tensors:
        placed.append(Placed(tensor.name, at, tensor.nbytes))
        at += _padded(tensor.nbytes, alignment)
    return FileSpec(path, at, tuple(placed))


def _carried(spec: ContainerSpec, number: int) -> Iterable[tuple[str, str, Any]]:
    return spec.metadata if number == 1 else [entry for entry in spec.metadata if entry[0] == "general.alignment"]


def _split_keys(number: int, count: int, tensors: int) -> Iterable[tuple[str, str, Any]]:
    # In gguf-split the count is set last, once it is known, which puts it at the end.
    return ("split.no", "u16", number - 1), ("split.tensors.count", "i32", tensors), ("split.count", "u16", count)


def _alignment(spec: ContainerSpec) -> int:
    alignment = next((int(value) for key, _, value in spec.metadata if key == "general.alignment"), ALIGNMENT)
    if alignment < 8 or alignment & (alignment - 1):
        raise QconvdError(f"{alignment} is no alignment", where="general.alignment", fix="it is a power of two, at least 8")
    return alignment


def _padded(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment


def _head_size(spec: ContainerSpec, tensors: Sequence[OutputTensor]) -> int:
    return _size(_metadata(spec, len(tensors))) + _table_size(tensors)


def _size(parts: Iterable[bytes]) -> int:
    return sum(len(part) for part in parts)


def _table_size(tensors: Sequence[OutputTensor]) -> int:
    return sum(len(_tensor_info(tensor, 0)) for tensor in tensors)


def _metadata(spec: ContainerSpec, tensors: int) -> list[bytes]:
    """Magic, counts, keys and values, in parts: a vocabulary's are megabytes, and copied once by whoever joins them."""
    keys = [key for key, _, _ in spec.metadata]
    if len(set(keys)) != len(keys):
        raise QconvdError(f"metadata keys are given twice: {sorted({k for k in keys if keys.count(k) > 1})}")
    parts = [MAGIC, struct.pack("<IQQ", VERSION, tensors, len(keys))]
    for key, kind, value in spec.metadata:
        parts += (_string(key), _entry(key, kind, value))
    return parts


def _entry(key: str, kind: str, value: Any) -> bytes:
    try:
        return _value(kind, value)
    except (struct.error, AttributeError, TypeError, ValueError, OverflowError) as error:
        raise QconvdError(f"{str(value)[:60]!r} is no {kind}: {error}", where=f"metadata key {key}") from error


def _value(kind: str, value: Any) -> bytes:
    if kind == RAW:
        return base64.b64decode(value, validate=True)
    if kind == "str":
        return struct.pack("<I", STRING) + _string(value)
    if kind.startswith("arr[") and kind.endswith("]"):
        items = list(value)
        number, data = _array(kind[4:-1], items)
        return struct.pack("<IIQ", ARRAY, number, len(items)) + data
    number, layout = _scalar(kind)
    return struct.pack("<I", number) + struct.pack(layout, value)


def _array(kind: str, items: Sequence[Any]) -> tuple[int, bytes]:
    if kind == "str":
        return STRING, _strings(items)
    number, layout = _scalar(kind)
    return number, struct.pack(f"<{len(items)}{layout[1]}", *items)


def _scalar(kind: str) -> tuple[int, str]:
    try:
        return VALUE_TYPES[kind]
    except KeyError:
        known: Iterable[str] = (*VALUE_TYPES, "str", "arr[…]")
        raise QconvdError(f"GGUF has no metadata type {kind!r}", fix=f"known types: {', '.join(known)}") from None


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _strings(texts: Iterable[str]) -> bytes:
    """Many strings one after the other: a vocabulary is most of the time that a header takes."""
    parts: list[bytes] = []
    for text in texts:
        data = text.encode()
        size = len(data)
        parts.append(_SIZES[size] if size < len(_SIZES) else struct.pack("<Q", size))
        parts.append(data)
    return b"".join(parts)


_SIZES = tuple(struct.pack("<Q", size) for size in range(256))


def _tensor_info(tensor: OutputTensor, offset: int) -> bytes:
    if tensor.dtype not in TENSOR_TYPES:
        raise Unsupported(f"GGUF has no tensor type {tensor.dtype}", where=f"tensor {tensor.name}")
    if not 1 <= len(tensor.shape) <= 4:
        raise Unsupported(f"GGUF holds tensors of 1 to 4 axes, not {len(tensor.shape)}", where=f"tensor {tensor.name}")
    if len(tensor.name.encode()) > 63:
        raise Unsupported("names in GGUF have at most 63 bytes", where=f"tensor {tensor.name}")
    sizes = tuple(reversed(tensor.shape))
    table = struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, TENSOR_TYPES[tensor.dtype], offset)
    return _string(tensor.name) + table
