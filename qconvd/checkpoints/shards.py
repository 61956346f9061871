"""Which files of a folder are the model, and whether they agree with the index.

An index names a file for every tensor. What it names must be a plain file name: a path with a folder, `..` or a root in it
could make qconvd read, and publish, what was never part of the model. Symlinks under plain names are followed, since the
snapshots of the Hugging Face cache consist of them (files.py has the exception).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from qconvd.checkpoints.base import TensorInfo
from qconvd.checkpoints.files import INDEX_LIMIT, once, quoted, read_json
from qconvd.errors import BadCheckpoint, Incomplete, Unsupported


@dataclass(frozen=True, slots=True)
class Naming:
    """How the files of one kind of checkpoint are called in a folder. `files` matches all that may hold the model."""

    kind: str
    single: str
    index_ending: str
    files: re.Pattern[str]

    @property
    def index(self) -> str:
        return f"{self.single}.index.json"


SAFETENSORS = Naming("safetensors", "model.safetensors", ".safetensors.index.json", re.compile(r".*\.safetensors"))
_SHARD = re.compile(r"(.+)-(\d{5,6})-of-(\d{5,6})\.(\w+)")
# Beside the files of transformers these hold the same weights in the layout of the model's makers, or no model at all.
_BESIDE = re.compile(r"(consolidated|adapter_model)([.-].*)?\.\w+")


def choose_shards(
    folder: Path, names: Collection[str], naming: Naming = SAFETENSORS
) -> tuple[Mapping[str, str], tuple[str, ...]]:
    """The index (tensor name to file, empty if there is none) and the files that hold the model, in order.

    `names` are the folder's visible entries. The order of choice: the files that the index names, else `model.safetensors` (or
    what `naming` calls so), else a numbered set, else all. Raises `Incomplete` for missing shards, `BadCheckpoint` for a bad
    index, `Unsupported` if the folder holds more than one model.
    """
    single = naming.single
    held = sorted(n for n in names if naming.files.fullmatch(n))
    index_file = _index_file(folder, names, held, naming)
    if index_file:
        index = read_index(folder, index_file, naming)
        shards = tuple(sorted(set(index.values())))
        if single in names and single not in shards:
            if any(shard in names for shard in shards):
                raise _two(folder, (single, shards[0]))
            return {}, (single,)  # transformers, too, prefers the single file to the index of shards that are not there
        _check_there(folder, shards, names)
        return index, shards
    if single in held:
        return {}, (single,)
    files = [n for n in held if not _BESIDE.fullmatch(n)] or [n for n in held if not n.startswith("adapter_model")] or held
    return {}, _numbered(folder, files)


def read_index(folder: Path, file: str, naming: Naming = SAFETENSORS) -> dict[str, str]:
    """The `weight_map` of an index. Raises `BadCheckpoint` unless it maps names, each once, to plain file names."""
    where = str(folder / file)
    found = read_json(folder / file, INDEX_LIMIT, object_pairs_hook=once(where)).get("weight_map")
    if not isinstance(found, dict) or not found:
        raise BadCheckpoint("has no weight_map", where=where, fix=_AGAIN)
    for tensor, shard in found.items():
        if not isinstance(shard, str) or not naming.files.fullmatch(shard.rpartition("/")[2]):
            raise BadCheckpoint(f"names no {naming.kind} file for tensor {quoted(tensor)}", where=where, fix=_AGAIN)
        if "/" in shard or "\\" in shard or "\0" in shard or shard.startswith(".") or not shard.isprintable():
            what = f"points outside the folder: tensor {quoted(tensor)} is said to be in {quoted(shard)}"
            raise BadCheckpoint(what, where=where, fix="an index may only name files that lie beside it")
    return found


def check_shards(
    folder: Path, index: Mapping[str, str], shards: Mapping[str, Mapping[str, TensorInfo]]
) -> dict[str, TensorInfo]:
    """All tensors by name. Raises `BadCheckpoint` if two shards hold one tensor, or if the index and the shards disagree."""
    tensors: dict[str, TensorInfo] = {}
    for shard, held in shards.items():
        for name, tensor in held.items():
            if name in tensors:
                what = f"the same tensor {quoted(name)} is in {tensors[name].file} and in {shard}"
                fix = "leave only the files of one model in the folder" if not index else _AGAIN
                raise BadCheckpoint(what, where=str(folder), fix=fix)
            tensors[name] = tensor
    if not tensors:
        raise BadCheckpoint("the model holds no tensors", where=str(folder), fix=_AGAIN)
    for name, shard in index.items():
        if name not in tensors or tensors[name].file != shard:
            what = f"has no tensor {quoted(name)}, though the index says so"
            raise BadCheckpoint(what, where=str(folder / shard), fix="download the index and the shards again")
    extra = next((t for t in tensors.values() if t.name not in index), None) if index else None
    if extra:
        what = f"has the tensor {quoted(extra.name)}, which the index does not name"
        raise BadCheckpoint(what, where=str(folder / extra.file), fix="download the index and the shards again")
    return tensors


_AGAIN = "copy or download the file again"


def _index_file(folder: Path, names: Collection[str], held: Collection[str], naming: Naming) -> str:
    if naming.index in names:
        return naming.index
    # transformers' variants (`model.fp16.safetensors.index.json`) count only if nothing plainer is there.
    others = sorted(n for n in names if n.endswith(naming.index_ending) and not n.startswith("consolidated"))
    if naming.single in held or not others:
        return ""
    if len(others) > 1:
        raise _two(folder, others[:2])
    return others[0]


def _numbered(folder: Path, files: list[str]) -> tuple[str, ...]:
    sets = {(m[1], int(m[3]), len(m[3]), m[4]) for m in map(_SHARD.fullmatch, files) if m}
    if not sets:
        return tuple(files)
    if len(sets) > 1 or any(not _SHARD.fullmatch(f) for f in files):
        raise _two(folder, (files[0], files[-1]))
    stem, count, digits, ending = next(iter(sets))
    if count > 10_000:
        raise BadCheckpoint(f"{files[0]} claims to be one of {count} shards", where=str(folder))
    wanted = tuple(f"{stem}-{i:0{digits}}-of-{count:0{digits}}.{ending}" for i in range(1, count + 1))
    _check_there(folder, wanted, files)
    return wanted


def _check_there(folder: Path, wanted: Collection[str], names: Collection[str]) -> None:
    missing = [shard for shard in wanted if shard not in names]
    if missing:
        listed = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        what = f"{len(missing)} of {len(wanted)} shards are missing: {listed}"
        raise Incomplete(what, where=str(folder), fix="wait for the download to finish, or download these files")


def _two(folder: Path, files: Collection[str]) -> Unsupported:
    what = f"the folder holds more than one model: {' and '.join(files)}"
    return Unsupported(what, where=str(folder), fix="leave the files of one model in it, and put the others elsewhere")
