"""A container: a file format that holds tensors. It decides layout and headers, and reads them back; it moves no weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Protocol, runtime_checkable

from qconvd.checkpoints.base import TensorInfo
from qconvd.engine.plan import ContainerSpec, FileSpec, OutputTensor


class Container(Protocol):
    """Registered through the `qconvd_containers` hook under the name that `ContainerSpec.kind` says."""

    kind: ClassVar[str]

    def layout(self, spec: ContainerSpec, tensors: Sequence[OutputTensor]) -> tuple[FileSpec, ...]:
        """Place the tensors, in their order, into one file or several; every number is final."""
        ...

    def header(self, spec: ContainerSpec, file: FileSpec, tensors: Sequence[OutputTensor]) -> bytes:
        """The bytes before the file's first tensor. `tensors` are those of this file, in file order."""
        ...

    def read(self, path: Path) -> Sequence[TensorInfo]:
        """Parse a finished file again, by code other than the writer's. Raises `BadCheckpoint`.

        `TensorInfo.file` is the path's name. Gaps between tensors must be zero bytes; the caller checks.
        """
        ...


@runtime_checkable
class Interleaves(Protocol):
    """A container with data of its own between the tensors: GGML writes a record before each."""

    def between(self, spec: ContainerSpec, file: FileSpec, tensors: Sequence[OutputTensor]) -> Mapping[int, bytes]:
        """These data by where they begin in the file; they overlap neither the header nor a tensor."""
        ...

    def ranges(self, path: Path) -> Sequence[tuple[int, int]]:
        """Where they lie in a finished file (start, stop), in order, by code other than the writer's."""
        ...
