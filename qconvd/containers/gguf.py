"""GGUF version 3: the header that llama.cpp reads, and where each tensor lies behind it.

Layout (little-endian): magic, version, tensor count, metadata count, metadata, tensor table, padding, then every tensor at
a multiple of `general.alignment` (32 unless the metadata says otherwise), each padded with zero bytes to the next multiple.
Source: the GGUF page of ggml's documentation (docs/gguf.md).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

from qconvd.checkpoints.base import TensorInfo
from qconvd.engine.plan import ContainerSpec, FileSpec, OutputTensor, Placed
from qconvd.errors import QconvdError, Unsupported
from qconvd.ggml_types import TYPES

MAGIC = b"GGUF"
VERSION = 3
ALIGNMENT = 32

VALUE_TYPES = {
    "u8": (0, "<B"), "i8": (1, "<b"), "u16": (2, "<H"), "i16": (3, "<h"), "u32": (4, "<I"), "i32": (5, "<i"),
    "f32": (6, "<f"), "bool": (7, "<?"), "u64": (10, "<Q"), "i64": (11, "<q"), "f64": (12, "<d"),
}  # fmt: skip
"""Scalar metadata types: their number in the file and how a value is packed."""
STRING, ARRAY = 8, 9

TENSOR_TYPES = {t.name: number for number, t in TYPES.items()}
"""ggml's numbers of the tensor types."""


class GgufContainer:
    """One GGUF file per artifact; tensors stand in the order in which they are given."""

    kind: ClassVar[str] = "gguf"

    def layout(self, spec: ContainerSpec, tensors: Sequence[OutputTensor]) -> tuple[FileSpec, ...]:
        """One file, `spec.options["path"]` or `{stem}.gguf`. Raises `QconvdError` for what GGUF cannot hold."""
        alignment = _alignment(spec)
        at = _padded(_head_size(spec, tensors), alignment)
        placed = []
        for tensor in tensors:
            placed.append(Placed(tensor.name, at, tensor.nbytes))
            at += _padded(tensor.nbytes, alignment)
        return (FileSpec(spec.options.get("path", "{stem}.gguf"), at, tuple(placed)),)

    def header(self, spec: ContainerSpec, file: FileSpec, tensors: Sequence[OutputTensor]) -> bytes:
        """Everything before the first tensor, padding included."""
        alignment = _alignment(spec)
        end = _padded(_head_size(spec, tensors), alignment)
        offsets = {p.tensor: p.offset - end for p in file.tensors}
        head = bytearray(_metadata(spec, len(tensors)))
        for tensor in tensors:
            head += _tensor_info(tensor, offsets[tensor.name])
        return bytes(head) + bytes(end - len(head))

    def read(self, path: Path) -> Sequence[TensorInfo]:
        """The tensor table as the checkpoint reader understands it, which shares no code with this writer."""
        from qconvd.checkpoints.gguf import read_header

        return list(read_header(path.parent, path.name).tensors.values())


def _alignment(spec: ContainerSpec) -> int:
    alignment = next((int(value) for key, _, value in spec.metadata if key == "general.alignment"), ALIGNMENT)
    if alignment < 8 or alignment & (alignment - 1):
        raise QconvdError(f"{alignment} is no alignment", where="general.alignment", fix="it is a power of two, at least 8")
    return alignment


def _padded(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment


def _head_size(spec: ContainerSpec, tensors: Sequence[OutputTensor]) -> int:
    return len(_metadata(spec, len(tensors))) + sum(len(_tensor_info(tensor, 0)) for tensor in tensors)


def _metadata(spec: ContainerSpec, tensors: int) -> bytes:
    keys = [key for key, _, _ in spec.metadata]
    if len(set(keys)) != len(keys):
        raise QconvdError(f"metadata keys are given twice: {sorted({k for k in keys if keys.count(k) > 1})}")
    data = bytearray(MAGIC + struct.pack("<IQQ", VERSION, tensors, len(keys)))
    for key, kind, value in spec.metadata:
        try:
            data += _string(key) + _value(kind, value)
        except (struct.error, AttributeError, TypeError, ValueError, OverflowError) as error:
            raise QconvdError(f"{str(value)[:60]!r} is no {kind}: {error}", where=f"metadata key {key}") from error
    return bytes(data)


def _value(kind: str, value: Any) -> bytes:
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
        return STRING, b"".join(map(_string, items))
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
