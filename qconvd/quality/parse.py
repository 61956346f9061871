"""Artifacts parsed by code that did not write them: the container's reader, which shares nothing with its writer.

For safetensors that is Hugging Face's library; for GGUF the checkpoint reader, because the gguf library needs seconds for a
vocabulary of 128,000 tokens (the tests hold the files against it instead).
"""

from __future__ import annotations

from pathlib import Path

from qconvd.checkpoints.base import TensorInfo
from qconvd.containers.base import Interleaves
from qconvd.plugins import container

SUFFIXES = {".safetensors": "safetensors", ".gguf": "gguf"}


def tensors_in(path: Path, kind: str) -> list[TensorInfo]:
    """The tensors of a finished file in the order of their offsets. Raises `BadCheckpoint` if the reader refuses it."""
    return sorted(container(kind).read(path), key=lambda t: (t.offset, t.nbytes))


def ranges_in(path: Path, kind: str) -> list[tuple[int, int]]:
    """Where a container's own data lies between the tensors of a finished file; nowhere for most."""
    found = container(kind)
    return list(found.ranges(path)) if isinstance(found, Interleaves) else []
