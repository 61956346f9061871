"""Torch checkpoints: whether they are complete. Their content is a pickle, which nothing here runs.

A file of torch 1.6 or later is a zip, which ends with its end record, so it is complete when that record is there and fits
the file's length. An older one is a bare pickle, of which nothing tells the length.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NoReturn

from qconvd.checkpoints.base import ModelInfo
from qconvd.checkpoints.files import (
    CONFIG_LIMIT,
    INDEX_LIMIT,
    entries,
    is_folder,
    is_hidden,
    is_temporary,
    opened,
    read_at,
    read_json,
)
from qconvd.checkpoints.refusals import TEXT_START, NotAModel, refuse_config, refuse_layout, refuse_text
from qconvd.errors import BadCheckpoint, Incomplete, QconvdError, Unsupported

ENDINGS = (".bin", ".pt", ".pth", ".ckpt")
_WEIGHTS = re.compile(r"(pytorch_model|model|adapter_model|consolidated)[\w.-]*\.(bin|pt|pth|ckpt)")
_INDEX = "pytorch_model.bin.index.json"
# The magics of the formats before GGUF, as they stand in the file (little-endian u32).
_GGML = {b"lmgg": "GGML", b"fmgg": "GGMF", b"tjgg": "GGJT", b"algg": "GGLA"}
_END = b"PK\5\6"
_END_SIZE = 22
_COMMENT_LIMIT = 65_535


class TorchReader:
    """Recognises torch checkpoints, waits until they are complete, then refuses them by name."""

    name = "torch"

    def claims(self, path: Path) -> bool:
        """Whether the path is named like a torch checkpoint, or is a folder that holds one."""
        if path.name.endswith(ENDINGS) and not is_folder(path):
            return True
        return bool(_weights(path))

    def inspect(self, path: Path) -> ModelInfo:
        """Raise `Incomplete` while bytes are missing, then `Unsupported`, always."""
        if not is_folder(path):
            check_complete(path)
            _refuse(path)
        names = [e.name for e in entries(path)]
        weights = _weights(path)
        refuse_layout(path, names, weights)
        if "config.json" in names:
            refuse_config(path, read_json(path / "config.json", CONFIG_LIMIT), names)
        if _INDEX in names:
            named = read_json(path / _INDEX, INDEX_LIMIT).get("weight_map")
            if not isinstance(named, dict) or not named:
                raise BadCheckpoint("has no weight_map", where=str(path / _INDEX), fix="download the index again")
            wanted = {str(v) for v in named.values()}
            missing = sorted(wanted - set(names))
            if missing:
                what = f"{len(missing)} of {len(wanted)} shards are missing: {', '.join(missing[:3])}"
                raise Incomplete(what, where=str(path), fix="wait for the download to finish, or download these files")
        for file in weights:  # the index alone cannot be here: what it names would be missing
            check_complete(path / file)
        _refuse(path / weights[0])


def check_complete(path: Path) -> None:
    """Return if a zip's end record is there, or nothing can be said.

    Raises `Incomplete` if the record is missing, `Unsupported` for GGML and GGUF under torch's endings, `BadCheckpoint` for
    text and for what has a checkpoint's name and is none; `NotAModel` for anything else that has one of the endings.
    """
    with opened(path) as (descriptor, size):
        first = read_at(descriptor, 0, TEXT_START)
        tail = read_at(descriptor, max(0, size - _END_SIZE - _COMMENT_LIMIT), _END_SIZE + _COMMENT_LIMIT)
    if not first.strip(b"\0"):
        raise Incomplete("is empty, or begins with zeros", where=str(path), fix="wait for the copy to finish")
    if first[:4] in _GGML:
        what = f"is a {_GGML[first[:4]]} file under another ending"
        raise Unsupported(what, where=str(path), fix="rename it to end in .bin")
    if first[:4] == b"GGUF":
        raise Unsupported("is a GGUF file under another ending", where=str(path), fix="rename it to end in .gguf")
    if first[:2] in (b"P", b"PK"):
        if not _ends(tail, size):
            what = f"the end record of the zip is not there ({size} bytes so far)"
            raise Incomplete(what, where=str(path), fix="wait for the copy to finish, or copy the file again")
    elif first[0] != 0x80:  # the opcode that every pickle since protocol 2 begins with
        refuse_text(path, first, size, f"a PyTorch {path.suffix} file")
        if _WEIGHTS.fullmatch(path.name):
            what = "is no PyTorch checkpoint: it begins like neither a zip nor a pickle"
            raise BadCheckpoint(what, where=str(path), fix="copy or download the file again")
        raise NotAModel("is not a model file", where=str(path), fix="models are folders with safetensors and a config.json")


def _ends(tail: bytes, size: int) -> bool:
    """Whether the bytes end with a zip's end record whose directory lies before it. Source: PKWARE's APPNOTE, 4.3.16."""
    at = tail.rfind(_END)
    while at >= 0:
        record = tail[at : at + _END_SIZE]
        comment = int.from_bytes(record[20:22], "little")
        directory, offset = int.from_bytes(record[12:16], "little"), int.from_bytes(record[16:20], "little")
        begins = size - len(tail) + at
        # Above 4 GiB both fields are all ones and the true figures stand in the zip64 record before this one.
        fits = offset == 0xFFFFFFFF or directory == 0xFFFFFFFF or offset + directory <= begins
        if len(record) == _END_SIZE and at + _END_SIZE + comment == len(tail) and fits:
            return True
        at = tail.rfind(_END, 0, at)
    return False


def _refuse(path: Path) -> NoReturn:
    fix = "take the safetensors of the same model, or save it with transformers: model.save_pretrained(folder)"
    raise Unsupported(f"PyTorch {path.suffix} checkpoints are not read yet", where=str(path), fix=fix)


def _weights(folder: Path) -> list[str]:
    try:
        found = [e.name for e in entries(folder) if e.kind != "folder" and not is_hidden(e.name) and not is_temporary(e.name)]
    except QconvdError:
        return []
    indexed = [_INDEX] if _INDEX in found else []
    return [n for n in found if _WEIGHTS.fullmatch(n)] or indexed
