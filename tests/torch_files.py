"""Torch files written opcode by opcode and member by member, so that a test can write them wrong; and real ones by torch."""

from __future__ import annotations

import io
import json
import shutil
import struct
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from checkpoint_files import CONFIG, data

PROTO = b"\x80\x02"
MARK, STOP, TUPLE, REDUCE, PERSID, SETITEM, SETITEMS, DICT, EMPTY = b"(", b".", b"t", b"R", b"Q", b"s", b"u", b"}", b")"
FALSE = b"\x89"
REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"
ORDERED = b"ccollections\nOrderedDict\n"


def text(value: str) -> bytes:
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def number(value: int) -> bytes:
    if -(1 << 31) <= value < 1 << 31:
        return b"J" + struct.pack("<i", value)
    raw = value.to_bytes(16, "little", signed=True)
    return b"\x8a\x10" + raw


def tuple_of(*values: bytes) -> bytes:
    return MARK + b"".join(values) + TUPLE


def storage(key: str = "0", numel: int = 12, kind: str = "FloatStorage") -> bytes:
    return tuple_of(text("storage"), f"ctorch\n{kind}\n".encode(), text(key), text("cpu"), number(numel)) + PERSID


def tensor(
    shape: Sequence[int] = (3, 4), strides: Sequence[int] | None = None, offset: int = 0, stored: bytes | None = None
) -> bytes:
    steps, step = [], 1
    for size in reversed(shape):
        steps.insert(0, step)
        step *= size
    steps = steps if strides is None else list(strides)
    sizes = tuple_of(*map(number, shape)), tuple_of(*map(number, steps))
    return REBUILD + tuple_of(stored or storage(), number(offset), *sizes, FALSE, ORDERED + EMPTY + REDUCE) + REDUCE


def state(tensors: Mapping[str, bytes] | None = None) -> bytes:
    """A pickle of a state dict whose values are pickled already."""
    held = {"w": tensor()} if tensors is None else tensors
    return PROTO + DICT + MARK + b"".join(text(name) + value for name, value in held.items()) + SETITEMS + STOP


def archive(
    pickle: bytes | None = None,
    members: Mapping[str, bytes] | None = None,
    *,
    root: str = "archive/",
    method: int = zipfile.ZIP_STORED,
) -> bytes:
    """A zip as torch writes it; `members` are added to, or take the place of, a storage of 48 bytes."""
    held = {"data.pkl": state() if pickle is None else pickle, "byteorder": b"little", "data/0": data(48)}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as file:
        for name, content in (held | dict(members or {})).items():
            file.writestr(name if name.startswith("!") else root + name, content)
    return buffer.getvalue()


def stream(
    pickle: bytes | None = None, keys: Sequence[str] = ("0",), bodies: Sequence[bytes] | None = None, **about: Any
) -> bytes:
    """A file as torch wrote them before 1.6."""
    said = {"protocol_version": 1001, "little_endian": True} | about
    pairs = b"".join(text(k) + (number(v) if type(v) is int else b"\x88" if v else b"\x89") for k, v in said.items())
    head = PROTO + b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19." + PROTO + b"M\xe9\x03." + PROTO + DICT + MARK + pairs + SETITEMS + STOP
    listed = PROTO + b"]" + MARK + b"".join(map(text, keys)) + b"e" + STOP
    held = [struct.pack("<q", 12) + data(48)] * len(keys) if bodies is None else bodies
    return head + (state() if pickle is None else pickle) + listed + b"".join(held)


def write(folder: Path, content: bytes, name: str = "pytorch_model.bin", config: Mapping[str, Any] | None = None) -> Path:
    """A model's folder with this file."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG if config is None else config))
    (folder / name).write_bytes(content)
    return folder


def saved(source: Path, out: Path, *, new: bool = True, shards: int = 1, wrap: str = "", tied: str = "") -> Path:
    """A safetensors model saved by torch itself. `tied` is a second name of the embeddings, which share their storage."""
    import torch
    from safetensors.torch import load_file

    out.mkdir(parents=True)
    for path in source.iterdir():
        if path.is_file() and path.suffix != ".safetensors":
            shutil.copy(path, out)
    weights = load_file(source / "model.safetensors")
    if tied:
        weights[tied] = weights["model.embed_tokens.weight"]
    names = sorted(weights) if shards > 1 else list(weights)  # as transformers' shards, one after the other
    size = -(-len(names) // shards)
    index = {}
    for i in range(shards):
        part = {name: weights[name] for name in names[i * size : (i + 1) * size]}
        file = "pytorch_model.bin" if shards == 1 else f"pytorch_model-{i + 1:05}-of-{shards:05}.bin"
        whole = {wrap: part, "epoch": 3} if wrap else part
        torch.save(whole, out / file, _use_new_zipfile_serialization=new)
        index |= dict.fromkeys(part, file)
    if shards > 1:
        (out / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return out
