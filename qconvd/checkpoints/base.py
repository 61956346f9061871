"""What a reader knows about a model on disk, without having read a weight."""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

from qconvd.checkpoints import json_text
from qconvd.errors import BadCheckpoint

if TYPE_CHECKING:
    from qconvd.engine.expr import Expr

T = TypeVar("T")
SIDE_FILE_LIMIT = 256 << 20
"""Bytes of a tokenizer or config that will be read into memory; the largest tokenizers in use are about 35 MB."""

TENSOR_LIMIT = 1 << 20
"""Bytes of a tensor that a plan may read: a table of the rotation's frequencies, never weights."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor of a checkpoint: where its bytes are, and what they mean.

    `shape` is in row-major order (the last axis is contiguous), `offset` counts from the start of `file`, `file` is
    relative to the model's folder. A tensor that lies otherwise in the file than the model means it, packed by a quantizer or
    turned, says in `made` how it is computed from what lies there (`ModelInfo.stored`): then `nbytes` are those of its
    elements, `file` and `offset` those of its first part.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: str
    offset: int
    nbytes: int
    made: Expr | None = None

    @property
    def columns(self) -> int:
        """Weights in a row: the last axis, or 1 for a scalar."""
        return self.shape[-1] if self.shape else 1

    @property
    def rows(self) -> int:
        """Rows when every axis but the last is flattened; a vector is one row."""
        return prod(self.shape[:-1])


@dataclass(frozen=True, slots=True)
class FileInfo:
    """A file of the model's folder: its path relative to the folder, its size, and what it is for."""

    path: str
    size: int
    role: Literal["weights", "side", "ignored"]


@dataclass(frozen=True)
class ModelInfo:
    """A model on disk as its headers describe it. Holds no weights and no open file."""

    path: Path
    """The model's folder; for a lone file, the folder that holds it."""
    name: str
    """The name that outputs are made from: the folder's, or the lone file's without its ending."""
    kind: str
    """The reader that understood it: `safetensors`, `gguf`, …"""
    tensors: Mapping[str, TensorInfo]
    """What the model consists of, under the names and in the shapes that its architecture gives them."""
    files: Sequence[FileInfo]
    config: Mapping[str, Any] = field(default_factory=dict)
    """config.json, or what the container's own metadata says."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    stored_as: Mapping[str, TensorInfo] | None = None
    """What lies in the files, where that is something else than `tensors`."""
    quantization: str = ""
    """How the weights were quantized before they came here (`GPTQ, 4 bits, group size 128`); empty if they were not."""
    notes: tuple[str, ...] = ()
    """What everybody should know who makes something of the model: each plan repeats it."""

    @property
    def stored(self) -> Mapping[str, TensorInfo]:
        """The tensors that lie in the files: those that `Read` means."""
        return self.tensors if self.stored_as is None else self.stored_as

    @property
    def architecture(self) -> str:
        """The class name in config.json (`LlamaForCausalLM`), or an empty string."""
        names = self.config.get("architectures") or [""]
        return str(names[0])

    @cached_property
    def parameters(self) -> int:
        """Weights in all tensors; a tied copy that is not stored does not count."""
        return sum(prod(t.shape) for t in self.tensors.values())

    @property
    def weight_bytes(self) -> int:
        return sum(t.nbytes for t in self.stored.values())

    @cached_property
    def _derived(self) -> dict[Hashable, Any]:
        return {}

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """What `make` derives from the model and `key` alone: computed once, kept with the model, not to be changed."""
        if key not in self._derived:
            self._derived[key] = make()
        found: T = self._derived[key]
        return found

    def has(self, name: str) -> bool:
        """Whether the folder holds a side file of this name."""
        return any(f.path == name and f.role != "weights" for f in self.files)

    def read_bytes(self, name: str) -> bytes:
        """The content of a side file. Raises `BadCheckpoint` if it is missing, unreadable or absurdly large."""
        known = next((f for f in self.files if f.path == name), None)
        place = str(self.path / name)
        if known is None:
            raise BadCheckpoint(f"the model has no {name}", where=str(self.path), fix=f"add {name} to the folder")
        if known.size > SIDE_FILE_LIMIT:
            raise BadCheckpoint(f"{known.size} bytes are too many for a {name}", where=place)
        try:
            return Path(place).read_bytes()
        except OSError as error:
            raise BadCheckpoint(f"cannot be read: {os.strerror(error.errno or 0)}", where=place) from error

    def tensor_bytes(self, name: str) -> bytes:
        """A small tensor as it is stored. Raises `BadCheckpoint` above `TENSOR_LIMIT` bytes, or if the file ends before."""
        tensor = self.tensors[name]
        where = f"{self.path / tensor.file}, tensor {name}"
        if tensor.nbytes > TENSOR_LIMIT:
            raise BadCheckpoint(f"{tensor.nbytes} bytes are more than a plan reads of a tensor", where=where)
        try:
            with (self.path / tensor.file).open("rb") as file:
                file.seek(tensor.offset)
                data = file.read(tensor.nbytes)
        except OSError as error:
            raise BadCheckpoint(f"cannot be read: {os.strerror(error.errno or 0)}", where=where) from error
        if len(data) != tensor.nbytes:
            raise BadCheckpoint("ends before its last byte", where=where)
        return data

    def read_json(self, name: str) -> Any:
        """The content of a JSON side file. Raises `BadCheckpoint` with line and column if it is not JSON."""
        try:
            return json_text.loads(self.read_bytes(name))
        except ValueError as error:  # also numbers too long for int
            raise BadCheckpoint(f"is not valid JSON: {error}", where=str(self.path / name)) from error


class CheckpointReader(Protocol):
    """Reads one kind of checkpoint. Registered through the `qconvd_checkpoint_readers` hook."""

    name: str

    def claims(self, path: Path) -> bool:
        """Whether the folder or file looks like this reader's kind; by names only, cheap."""
        ...

    def inspect(self, path: Path) -> ModelInfo:
        """Read the headers.

        Raises `Incomplete` if the headers promise bytes that are not there yet, `BadCheckpoint` if they lie.
        """
        ...
