"""Safetensors checkpoints: one file's header, checked to the last byte, and folders of them.

The format: 8 bytes little-endian length of the header, the header as JSON, then the tensors' bytes without gaps. Source:
the format section of safetensors' README; the header limit is that of its Rust implementation. The header gives the file's
exact length, so a file is complete when it is that long.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from qconvd.checkpoints.base import ModelInfo, TensorInfo
from qconvd.checkpoints.files import (
    CONFIG_LIMIT,
    entries,
    is_folder,
    is_hidden,
    is_temporary,
    is_there,
    once,
    opened,
    parse_json,
    quoted,
    read_at,
    read_json,
    truncated,
)
from qconvd.checkpoints.folder import Tensors, folder_model
from qconvd.checkpoints.quantized import packing
from qconvd.checkpoints.refusals import TEXT_START, no_config, refuse_config, refuse_layout, refuse_text
from qconvd.checkpoints.shards import choose_shards
from qconvd.checkpoints.torch.complete import WEIGHTS
from qconvd.dtypes import ELEMENT_BYTES
from qconvd.errors import BadCheckpoint, Incomplete, Unsupported

HEADER_LIMIT = 100_000_000
"""Bytes of a header, as safetensors itself allows."""

TENSOR_AXES = 32
_INT64 = 1 << 63
_ADAPTER = "adapter_model"
# Types that safetensors knows and that no conversion here reads.
_OTHER_TYPES = frozenset({"F4", "F6_E2M3", "F6_E3M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "C64"})


class SafetensorsReader:
    """Folders that hold safetensors and a config.json, as Hugging Face's libraries write them."""

    name = "safetensors"

    def claims(self, path: Path) -> bool:
        """Whether a folder holds safetensors, or an index of them; or the path is named like such a file."""
        if path.name.endswith(".safetensors") and not is_folder(path):
            return True
        found = [e.name for e in _visible(path)]
        ours = [name for name in found if name.endswith((".safetensors", ".safetensors.index.json"))]
        # An adapter may lie beside a whole model that torch wrote.
        whole = any(WEIGHTS.fullmatch(name) and not name.startswith(_ADAPTER) for name in found)
        return bool(ours) and not (whole and all(name.startswith(_ADAPTER) for name in ours))

    def inspect(self, path: Path) -> ModelInfo:
        """Read config.json, the index and every shard's header.

        Raises `Incomplete` for missing shards or bytes, `Unsupported` for adapters, diffusion and some quantized models,
        `BadCheckpoint` for everything that contradicts itself.
        """
        if not is_folder(path):
            raise _lone(path)
        names = {e.name: e for e in _visible(path)}
        index, shards = choose_shards(path, names)
        refuse_layout(path, names, shards)
        if "config.json" not in names:
            raise no_config(path, names)
        config = read_json(path / "config.json", CONFIG_LIMIT)
        packed = packing(path, config, names)
        refuse_config(path, config)
        headers = {shard: read_header(path, shard) for shard in shards}
        return folder_model(
            path,
            self.name,
            packed.config if packed else config,
            index,
            {shard: Tensors(header.tensors, header.tensors) for shard, header in headers.items()},
            packed,
            metadata={key: value for header in headers.values() for key, value in header.metadata.items()},
            notes=_passed_over(names),
        )


@dataclass(frozen=True, slots=True)
class Header:
    """What one file's header says, with offsets that count from the start of the file."""

    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]


def read_header(folder: Path, file: str) -> Header:
    """Read and check the header of `folder/file`.

    Raises `Incomplete` if the file is shorter than its header says and `BadCheckpoint` if header and file disagree in any
    other way: so whatever this returns can be read without a further check.
    """
    path = folder / file
    where = str(path)
    with opened(path) as (descriptor, size):
        if size < 8:
            raise truncated(path, size, 8)
        first = read_at(descriptor, 0, 8)
        length = int.from_bytes(first, "little")
        if length == 0 and not any(read_at(descriptor, 8, 4096)):
            raise Incomplete("begins with zeros: its header is not written yet", where=where, fix="wait for the copy to finish")
        if length > HEADER_LIMIT:
            refuse_text(path, read_at(descriptor, 0, TEXT_START), size, "a safetensors file")
            what = f"claims a header of {length} bytes; safetensors allows {HEADER_LIMIT}"
            raise BadCheckpoint(what, where=where, fix="this is no safetensors file, or a damaged one")
        if 8 + length > size:
            # What is there of the header tells a file that is still being copied from one that never was one.
            if read_at(descriptor, 8, 1) not in (b"{", b""):
                raise BadCheckpoint(f"claims a header of {length} bytes, more than the file's {size}", where=where, fix=_AGAIN)
            raise Incomplete(f"ends inside its header: {size} of at least {8 + length} bytes are there", where=where, fix=_WAIT)
        text = read_at(descriptor, 8, length)
    if not text.startswith(b"{"):
        raise BadCheckpoint("has no JSON header", where=where, fix=_AGAIN)
    if b"\0" in text:  # a downloader that fills the file in any order has not come here yet
        raise Incomplete("has zeros in its header, which is not written yet", where=where, fix=_WAIT)
    header = parse_json(text, where, "has a header that is", object_pairs_hook=once(where, " in its header"))
    return _tensors(header, path, file, 8 + length, size)


def _tensors(header: dict[str, Any], path: Path, file: str, start: int, size: int) -> Header:
    metadata = header.pop("__metadata__", {})
    where = str(path)
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise BadCheckpoint("has __metadata__ that is not text by text", where=where, fix=_AGAIN)
    tensors = {name: _tensor(name, entry, file, start, where) for name, entry in header.items()}
    end, before = start, ""
    for tensor in sorted(tensors.values(), key=lambda t: (t.offset, t.nbytes)):
        if tensor.offset < end:
            what = f"has tensors that overlap: {quoted(before)} and {quoted(tensor.name)}"
            raise BadCheckpoint(what, where=where, fix=_AGAIN)
        if tensor.offset > end:
            what = f"has a gap of {tensor.offset - end} bytes before tensor {quoted(tensor.name)}"
            raise BadCheckpoint(what, where=where, fix=_AGAIN)
        end, before = tensor.offset + tensor.nbytes, tensor.name
    if size < end:
        raise truncated(path, size, end)
    if size > end:
        raise BadCheckpoint(f"has {size - end} bytes more than its header describes", where=where, fix=_AGAIN)
    return Header(tensors, metadata)


def _tensor(name: str, entry: Any, file: str, start: int, where: str) -> TensorInfo:
    label = f"tensor {quoted(name)}"
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise BadCheckpoint(f"{label} is not described by dtype, shape and data_offsets", where=where, fix=_AGAIN)
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ELEMENT_BYTES:
        if isinstance(dtype, str) and dtype in _OTHER_TYPES:
            raise Unsupported(f"{label} is stored as {dtype}, which is not read", where=where, fix=_SIXTEEN)
        known = ", ".join(ELEMENT_BYTES)
        raise BadCheckpoint(f"{label} has the unknown dtype {quoted(str(dtype))}", where=where, fix=f"known types: {known}")
    if not _numbers(shape) or len(shape) > TENSOR_AXES:
        raise BadCheckpoint(f"{label} has a shape that is not a list of sizes", where=where, fix=_AGAIN)
    if not _numbers(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise BadCheckpoint(f"{label} has data_offsets that are not a start and an end", where=where, fix=_AGAIN)
    nbytes = prod(shape) * ELEMENT_BYTES[dtype]
    if prod(max(1, n) for n in shape) * ELEMENT_BYTES[dtype] >= _INT64:  # also of no elements: no array has such a shape
        raise BadCheckpoint(f"{label} claims an absurd size", where=where, fix=_AGAIN)
    if nbytes != offsets[1] - offsets[0]:
        sizes = " x ".join(map(str, shape)) or "a scalar"
        what = f"{label} is {sizes} in {dtype}, {nbytes} bytes, but has {offsets[1] - offsets[0]}"
        raise BadCheckpoint(what, where=where, fix=_AGAIN)
    return TensorInfo(name, dtype, tuple(shape), file, start + offsets[0], nbytes)


_AGAIN = "copy or download the file again"
_WAIT = "wait for the copy to finish, or copy the file again"
_SIXTEEN = "give qconvd the model in 16 or 32 bits"


def _numbers(value: Any) -> bool:
    # A bool is an int in Python, and would pass isinstance.
    return isinstance(value, list) and all(type(n) is int and 0 <= n < _INT64 for n in value)


def _visible(path: Path) -> list[Any]:
    try:
        return [e for e in entries(path) if not is_hidden(e.name) and not is_temporary(e.name)]
    except BadCheckpoint:
        return []


def _passed_over(names: Iterable[str]) -> tuple[str, ...]:
    beside = [name for name in names if WEIGHTS.fullmatch(name) and not name.startswith(_ADAPTER)]
    if not beside:
        return ()
    more = f" and {len(beside) - 1} more" if len(beside) > 1 else ""
    return (f"{beside[0]}{more} beside the safetensors: the safetensors are read",)


def _lone(path: Path) -> Unsupported | Incomplete:
    read_header(path.parent, path.name)  # a broken or half-copied file has better reasons
    if is_there(path.parent / "config.json"):
        return Unsupported("is one file of a model", where=str(path), fix=f"give qconvd the folder: {path.parent}")
    fix = "put it with the config.json and tokenizer of its model into a folder of their own, and give qconvd that"
    return Unsupported("no config.json goes with a lone .safetensors file", where=str(path), fix=fix)
