"""Artifacts parsed by code that others wrote: the safetensors and gguf libraries, or a plugin's reader for its container."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from qconvd.checkpoints.base import TensorInfo
from qconvd.errors import BadCheckpoint
from qconvd.plugins import container

SUFFIXES = {".safetensors": "safetensors", ".gguf": "gguf"}


def tensors_in(path: Path, kind: str) -> list[TensorInfo]:
    """The tensors of a finished file in the order of their offsets. Raises `BadCheckpoint` if the reader refuses it.

    The gguf library maps the file into memory; only the pages of its header are touched.
    """
    found = _gguf(path) if kind == "gguf" else container(kind).read(path)
    return sorted(found, key=lambda t: (t.offset, t.nbytes))


def _gguf(path: Path) -> Sequence[TensorInfo]:
    from gguf import GGUFReader

    try:
        tensors = GGUFReader(path).tensors
    except (ValueError, KeyError, IndexError, OSError, OverflowError) as error:
        raise BadCheckpoint(f"the gguf library cannot read it: {error}", where=str(path)) from error
    return [
        # GGUF writes the axis that is contiguous first.
        TensorInfo(
            t.name, t.tensor_type.name, tuple(int(n) for n in reversed(t.shape)), path.name, t.data_offset, int(t.n_bytes)
        )
        for t in tensors
    ]
