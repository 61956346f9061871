"""Checkpoints written byte by byte, so that a test can write them wrong."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

CONFIG = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
TENSORS: dict[str, tuple[str, list[int]]] = {"a.weight": ("F32", [4, 8]), "b.weight": ("BF16", [3, 16]), "norm": ("F16", [8])}
SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "U8": 1}

STRING, ARRAY, U32, F32 = 8, 9, 4, 6


def data(count: int, seed: int = 1) -> bytes:
    """Bytes without a zero among them: zeros mean something in these tests."""
    return bytes((i * 7 + seed) % 255 + 1 for i in range(count))


def header_of(tensors: Mapping[str, tuple[str, list[int]]]) -> tuple[dict[str, Any], int]:
    """A safetensors header that is right, and the bytes of data it describes."""
    header: dict[str, Any] = {}
    at = 0
    for name, (dtype, shape) in tensors.items():
        end = at + prod(shape) * SIZES[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, end]}
        at = end
    return header, at


def safetensors(header: Mapping[str, Any] | bytes, body: bytes | int) -> bytes:
    """A file with this header, as data or as bytes, and this body, or one of that many bytes."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + (data(body) if isinstance(body, int) else body)


def write_safetensors(path: Path, tensors: Mapping[str, tuple[str, list[int]]] | None = None, seed: int = 1) -> Path:
    header, size = header_of(TENSORS if tensors is None else tensors)
    path.write_bytes(safetensors(header, data(size, seed)))
    return path


def write_model(folder: Path, config: Mapping[str, Any] | None = None) -> Path:
    """A whole model: config, tokenizer, one safetensors file."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG if config is None else config))
    (folder / "tokenizer.json").write_text("{}")
    write_safetensors(folder / "model.safetensors")
    return folder


def write_sharded(folder: Path, count: int = 3, index: bool = True) -> Path:
    """A model in `count` shards of two tensors each."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    weight_map = {}
    for i in range(1, count + 1):
        names = {f"layers.{i}.a": ("F16", [4, 4]), f"layers.{i}.b": ("F32", [8])}
        shard = f"model-{i:05}-of-{count:05}.safetensors"
        write_safetensors(folder / shard, names, seed=i)
        weight_map |= dict.fromkeys(names, shard)
    if index:
        write_index(folder, weight_map)
    return folder


def write_index(folder: Path, weight_map: Any) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def key(name: str, kind: int, value: bytes) -> bytes:
    """A metadata pair of GGUF; `value` is encoded already."""
    return text(name) + struct.pack("<I", kind) + value


def row(name: str | bytes, sizes: Sequence[int], kind: int, offset: int) -> bytes:
    """A row of GGUF's tensor table; `sizes` in GGUF's order, columns first."""
    return text(name) + struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, kind, offset)


def gguf(
    keys: Sequence[bytes] = (),
    rows: Sequence[bytes] = (),
    body: int = 0,
    version: int = 3,
    counts: tuple[int, int] | None = None,
) -> bytes:
    """A GGUF file with an alignment of 32 and `body` bytes of data; `counts` are what it claims, tensors first."""
    tensors, pairs = counts or (len(rows), len(keys))
    head = b"GGUF" + struct.pack("<IQQ", version, tensors, pairs) + b"".join(keys) + b"".join(rows)
    return head + bytes(-len(head) % 32) + data(body)


ARCHITECTURE = key("general.architecture", STRING, text("llama"))


def whole_gguf() -> bytes:
    """A GGUF that is right: an F32 vector, a Q4_0 matrix of 3 rows, a long and a short array."""
    tokens = key("tokenizer.ggml.tokens", ARRAY, struct.pack("<IQ", STRING, 300) + b"".join(text(f"t{i}") for i in range(300)))
    scores = key("tokenizer.ggml.scores", ARRAY, struct.pack("<IQ", F32, 300) + bytes(1200))
    short = key("split.sizes", ARRAY, struct.pack("<IQ3I", U32, 3, 7, 8, 9))
    rows = [row("norm", [8], 0, 0), row("w", [64, 3], 2, 32)]
    return gguf([ARCHITECTURE, tokens, scores, short], rows, 32 + 3 * 36)
