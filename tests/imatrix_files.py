"""Importance matrices for tests, in llama.cpp's two formats."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

KEYS: dict[str, Any] = {"imatrix.datasets": ["made-up"], "imatrix.chunk_count": 1, "imatrix.chunk_size": 512}


def write_gguf(path: Path, entries: Mapping[str, tuple[Any, Any]], keys: Mapping[str, Any] = KEYS) -> Path:
    """Sums of squares (experts, columns) and counts (experts,) by tensor; with the gguf library."""
    from gguf import GGUFWriter

    writer = GGUFWriter(path, arch="imatrix")
    writer.add_type("imatrix")
    for key, value in keys.items():
        if isinstance(value, list):
            writer.add_array(key, value)
        else:
            writer.add_uint32(key, value)
    for name, (sums, counts) in entries.items():
        writer.add_tensor(name + ".in_sum2", np.asarray(sums, np.float32))
        writer.add_tensor(name + ".counts", np.asarray(counts, np.float32).reshape(-1, 1))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_dat(path: Path, entries: Mapping[str, tuple[int, Sequence[float]]], trailer: bytes = b"") -> Path:
    """Calls and values by tensor."""
    data = struct.pack("<i", len(entries))
    for name, (calls, values) in entries.items():
        data += struct.pack("<i", len(name.encode())) + name.encode() + struct.pack("<ii", calls, len(values))
        data += np.asarray(values, "<f4").tobytes()
    path.write_bytes(data + trailer)
    return path


def chunks(count: int, dataset: str) -> bytes:
    """What may stand at the end of a `.dat`."""
    return struct.pack("<ii", count, len(dataset.encode())) + dataset.encode()


def made_up(path: Path, tensors: Iterable[tuple[str, tuple[int, ...]]]) -> Path:
    """The matrix that llama.cpp's records were made with: values that depend on a tensor's name alone."""
    entries = {}
    for name, shape in tensors:
        if len(shape) < 2 or not name.endswith(".weight") or name.startswith(("token_embd", "output.", "position")):
            continue
        experts = shape[0] if len(shape) > 2 else 1
        random = np.random.default_rng(zlib.crc32(name.encode()))
        sums = (random.uniform(0.01, 3, (experts, shape[-1])) ** 2 * 512).astype(np.float32)
        entries[name] = (sums, np.full(experts, 512))
    return write_gguf(path, entries)
