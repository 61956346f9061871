"""GGML files from before GGUF: the header that its readers want, and a record before every tensor.

Layout (little-endian): magic; for LLaMA a version (3); numbers of the model, 32 bits each; the vocabulary; then per tensor a
record, padding to a multiple of 32 (LLaMA) or none, and the numbers. No table says where tensors lie: readers go from
record to record. Sources: llama.cpp of June 2023 (llama.cpp, `llama_file_saver`), ggml's examples gpt-2, gpt-j and gpt-neox.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from qconvd.checkpoints.base import TensorInfo
from qconvd.engine.plan import ContainerSpec, FileSpec, OutputTensor, Placed
from qconvd.errors import QconvdError, Unsupported
from qconvd.ggml_types import TYPES

TENSOR_TYPES = {t.name: number for number, t in TYPES.items() if number <= 14}
"""ggml's numbers of the types that such files hold."""


class Shape(NamedTuple):
    """What one family's readers expect around the same parts."""

    magic: bytes
    numbers: int
    """How many numbers the header holds."""
    scores: bool = False
    """Whether every token has a score."""
    counted: bool = False
    """Whether the vocabulary begins with its length."""
    alignment: int = 1


FAMILIES = {
    "llama": Shape(struct.pack("<II", 0x67676A74, 3), 7, scores=True, alignment=32),
    "gpt2": Shape(struct.pack("<I", 0x67676D6C), 6, counted=True),
    "gptj": Shape(struct.pack("<I", 0x67676D6C), 7, counted=True),
    "gpt_neox": Shape(struct.pack("<I", 0x67676D6C), 8),
}


class GgmlContainer:
    """One file per artifact; tensors stand in the order in which they are given.

    `ContainerSpec.options`: `family` (a key of FAMILIES) and `path` (default `{stem}.bin`). `ContainerSpec.metadata`: `numbers`
    (arr[u32]), `tokens` (arr[bytes]: a character per byte, as in Latin-1) and for LLaMA `scores` (arr[f32]).
    """

    kind: ClassVar[str] = "ggml"

    def layout(self, spec: ContainerSpec, tensors: Sequence[OutputTensor]) -> tuple[FileSpec, ...]:
        """One file with every offset final. Raises `Unsupported` for a tensor that such a file cannot hold."""
        alignment = _family(spec).alignment
        at = len(_head(spec))
        placed = []
        for tensor in tensors:
            at += len(_record(tensor))
            at += -at % alignment
            placed.append(Placed(tensor.name, at, tensor.nbytes))
            at += tensor.nbytes
        return (FileSpec(str(spec.options.get("path", "{stem}.bin")), at, tuple(placed)),)

    def header(self, spec: ContainerSpec, file: FileSpec, tensors: Sequence[OutputTensor]) -> bytes:  # noqa: ARG002
        """Magic, numbers and vocabulary."""
        return _head(spec)

    def between(self, spec: ContainerSpec, file: FileSpec, tensors: Sequence[OutputTensor]) -> Mapping[int, bytes]:
        """The record of each tensor, directly behind what stands before it."""
        at, found = len(_head(spec)), {}
        for tensor, place in zip(tensors, file.tensors, strict=True):
            found[at] = _record(tensor)
            at = place.offset + place.nbytes
        return found

    def read(self, path: Path) -> Sequence[TensorInfo]:
        """The tensors as the checkpoint reader finds them, which shares no code with this writer."""
        from qconvd.checkpoints.ggml import read_file

        return list(read_file(path.parent, path.name).tensors.values())

    def ranges(self, path: Path) -> Sequence[tuple[int, int]]:
        """Where the records lie, by the same reader."""
        from qconvd.checkpoints.ggml import read_file

        return read_file(path.parent, path.name).records


def _family(spec: ContainerSpec) -> Shape:
    name = spec.options.get("family")
    if name not in FAMILIES:
        raise QconvdError(f"GGML has no family {name!r}", fix=f"known: {', '.join(FAMILIES)}")
    return FAMILIES[name]


def _head(spec: ContainerSpec) -> bytes:
    family = _family(spec)
    found: Mapping[str, Any] = {key: value for key, _, value in spec.metadata}
    numbers, tokens = list(found["numbers"]), list(found["tokens"])
    scores = list(found["scores"]) if family.scores else []
    if len(numbers) != family.numbers or (family.scores and len(scores) != len(tokens)):
        raise QconvdError(f"{len(numbers)} numbers and {len(scores)} scores are not what a {spec.options['family']} file holds")
    try:
        head = family.magic + struct.pack(f"<{len(numbers)}I", *numbers)
        if family.counted:
            head += struct.pack("<I", len(tokens))
        return head + b"".join(_tokens([token.encode("latin-1") for token in tokens], scores))
    except (struct.error, OverflowError) as error:
        raise Unsupported(f"a number does not fit into 32 bits: {error}", where="header") from error


def _tokens(tokens: Sequence[bytes], scores: Sequence[float]) -> Sequence[bytes]:
    if not scores:
        return [struct.pack("<I", len(token)) + token for token in tokens]
    return [struct.pack("<I", len(t)) + t + struct.pack("<f", s) for t, s in zip(tokens, scores, strict=True)]


def _record(tensor: OutputTensor) -> bytes:
    if tensor.dtype not in TENSOR_TYPES:
        raise Unsupported(f"GGML files have no tensor type {tensor.dtype}", where=f"tensor {tensor.name}")
    if len(tensor.shape) not in (1, 2):
        raise Unsupported(f"GGML files hold tensors of 1 or 2 axes, not {len(tensor.shape)}", where=f"tensor {tensor.name}")
    name, sizes = tensor.name.encode(), tuple(reversed(tensor.shape))
    try:
        numbers = struct.pack(f"<{3 + len(sizes)}I", len(sizes), len(name), TENSOR_TYPES[tensor.dtype], *sizes)
    except struct.error as error:
        raise Unsupported(f"its shape does not fit into 32 bits: {error}", where=f"tensor {tensor.name}") from error
    return numbers + name
