"""The source digest: whether a model is the one that was converted before, without reading 140 GB.

Hashed are the side files and headers in full, every file's name and size, and blocks of the weights: all of a small
model, and of a large one up to 4,096 blocks of 4 KiB, spread over all its tensors. So whatever training touches changes the
digest, and so does every edit of a config or tokenizer. What can be missed is a patch of a few rows of a large tensor that
changes nothing else (docs/reference/sources.md).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from qconvd.checkpoints.base import SIDE_FILE_LIMIT, ModelInfo, TensorInfo
from qconvd.checkpoints.files import opened, read_at, truncated
from qconvd.errors import BadCheckpoint

SMALL = 64 << 20
"""Bytes of weights up to which all of them are hashed."""

BLOCK = 4096
BLOCKS = 4096
PER_TENSOR = 16
_SCHEME = b"qconvd source digest 1"


def identity(model: ModelInfo) -> str:
    """The source digest as `sha256:…`; independent of the folder's name and of all times.

    Reads at most the side files, the headers, and 64 MiB (`SMALL`) or 16 MiB (`BLOCKS` times `BLOCK`) of weights. Raises
    `Incomplete` if a file has vanished or shrunk since the headers were read.
    """
    digest = hashlib.sha256(_SCHEME)
    by_file: dict[str, list[TensorInfo]] = {}
    for tensor in model.stored.values():
        by_file.setdefault(tensor.file, []).append(tensor)
    samples = _samples(model)
    if model.kind == "torch":  # whose headers may stand anywhere in the file
        for tensor in model.stored.values():
            digest.update(f"\0{tensor.name}\0{tensor.dtype}\0{tensor.shape}\0{tensor.file}\0{tensor.offset}\0".encode())
    for file in sorted(model.files, key=lambda f: f.path):
        if file.role == "ignored":
            continue
        digest.update(f"\0{file.role}\0{file.path}\0{file.size}\0".encode())
        path = model.path / file.path
        with opened(path) as (descriptor, size):
            if size != file.size:
                raise truncated(path, size, file.size) if size < file.size else BadCheckpoint("has grown", where=str(path))
            if file.role == "side":
                if size > SIDE_FILE_LIMIT:
                    raise BadCheckpoint(f"{size} bytes are too many for a side file", where=str(path))
                _update(digest, descriptor, path, 0, size)
                continue
            tensors = by_file.get(file.path, [])
            _update(digest, descriptor, path, 0, min((t.offset for t in tensors), default=min(size, SMALL)))
            for start, count in samples.get(file.path, ()):
                _update(digest, descriptor, path, start, count)
    return f"sha256:{digest.hexdigest()}"


def _samples(model: ModelInfo) -> dict[str, list[tuple[int, int]]]:
    """Which byte ranges of which files are hashed, in the order of the files."""
    tensors = sorted((t for t in model.stored.values() if t.nbytes), key=lambda t: (t.file, t.offset))
    whole = model.weight_bytes <= SMALL
    chosen = tensors if whole else _spread(tensors, BLOCKS)
    each = max(1, min(PER_TENSOR, BLOCKS // max(1, len(chosen))))
    found: dict[str, list[tuple[int, int]]] = {}
    for tensor in chosen:
        ranges = [(tensor.offset, tensor.nbytes)] if whole else list(_blocks(tensor, each))
        found.setdefault(tensor.file, []).extend(ranges)
    return found


def _spread(tensors: Sequence[TensorInfo], most: int) -> Sequence[TensorInfo]:
    if len(tensors) <= most:
        return tensors
    return [tensors[i * (len(tensors) - 1) // (most - 1)] for i in range(most)]


def _blocks(tensor: TensorInfo, count: int) -> Iterator[tuple[int, int]]:
    """`count` blocks of a tensor, evenly spread: one alone from its middle, several from its first byte to its last."""
    if tensor.nbytes <= count * BLOCK:
        yield tensor.offset, tensor.nbytes
        return
    last = tensor.nbytes - BLOCK
    for i in range(count):
        yield tensor.offset + (last // 2 if count == 1 else last * i // (count - 1)), BLOCK


def _update(digest: hashlib._Hash, descriptor: int, path: Path, start: int, count: int) -> None:
    while count > 0:
        part = read_at(descriptor, start, min(count, 1 << 20))
        if not part:
            raise truncated(path, start, start + count)
        digest.update(part)
        start, count = start + len(part), count - len(part)
