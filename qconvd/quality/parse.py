"""Artifacts parsed by code that did not write them: the container's reader, which shares nothing with its writer.

For safetensors that is Hugging Face's library; for GGUF the checkpoint reader, because the gguf library needs seconds for a
vocabulary of 128,000 tokens (the tests hold the files against it instead).
"""

from __future__ import annotations

from pathlib import Path

from qconvd.checkpoints.base import TensorInfo
from qconvd.plugins import container

SUFFIXES = {".safetensors": "safetensors", ".gguf": "gguf"}


def tensors_in(path: Path, kind: str) -> list[TensorInfo]:
    """The tensors of a finished file in the order of their offsets. Raises `BadCheckpoint` if the reader refuses it."""
    return sorted(container(kind).read(path), key=lambda t: (t.offset, t.nbytes))
