"""Metadata of a GGUF file with its long arrays, which headers only count."""

from __future__ import annotations

import struct
from typing import Any

from qconvd.api import BadCheckpoint, ModelInfo, gguf_metadata

STRING, ARRAY = 8, 9
LAYOUTS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


def all_metadata(model: ModelInfo) -> dict[str, Any]:
    """Every key of a GGUF model with its whole value. Raises `BadCheckpoint` for text that is not UTF-8."""
    return {key: _value(data, f"{model.path}, metadata key {key}") for key, data in gguf_metadata(model)}


def _value(data: bytes, where: str) -> Any:
    kind = int.from_bytes(data[:4], "little")
    if kind == STRING:
        return _strings(data, 4, 1, where)[0]
    if kind != ARRAY:
        return struct.unpack(f"<{LAYOUTS[kind]}", data[4:])[0]
    kind, count = struct.unpack("<IQ", data[4:16])
    if kind == STRING:
        return _strings(data, 16, count, where)
    return list(struct.unpack_from(f"<{count}{LAYOUTS[kind]}", data, 16))


def _strings(data: bytes, at: int, count: int, where: str) -> list[str]:
    found = []
    size = struct.Struct("<Q").unpack_from
    try:
        for _ in range(count):
            end = at + 8 + size(data, at)[0]
            found.append(data[at + 8 : end].decode())
            at = end
    except UnicodeDecodeError as error:
        raise BadCheckpoint("holds a text that is not UTF-8", where=where) from error
    return found


def short_float(value: float) -> float:
    """The shortest decimal that is this float32: 1e-05 for 9.999999747378752e-06."""
    for digits in range(1, 10):
        near = float(f"{value:.{digits}g}")
        try:
            if struct.pack("<f", near) == struct.pack("<f", value):
                return near
        except OverflowError:
            break
    return value
