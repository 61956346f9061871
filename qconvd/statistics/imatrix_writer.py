"""Importance matrices in llama.cpp's GGUF format, written: what llama-imatrix makes and llama-quantize reads.

Source: llama.cpp, tools/imatrix/imatrix.cpp (`save_imatrix`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from qconvd.containers.gguf import GgufContainer
from qconvd.engine.durable import write_whole
from qconvd.engine.plan import ContainerSpec, OutputTensor

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Sums: TypeAlias = tuple[NDArray[np.float32], NDArray[np.float32]]
    """Sums of squares, (experts, columns), and how many tokens each expert saw, (experts,)."""


@dataclass(frozen=True, slots=True)
class Origin:
    """What a matrix was made from: a name for the text, and how many chunks of how many tokens of it."""

    dataset: str
    chunks: int
    length: int


def write_imatrix(path: Path, entries: Mapping[str, Sums], origin: Origin) -> None:
    """Write a matrix by the names of its tensors. It is there whole or not at all; equal matrices give equal bytes."""
    import numpy as np

    arrays: dict[str, NDArray[np.float32]] = {}
    for name, (sums, counts) in sorted(entries.items()):
        arrays[f"{name}.in_sum2"] = np.ascontiguousarray(sums, "<f4")
        arrays[f"{name}.counts"] = np.ascontiguousarray(counts, "<f4").reshape(-1, 1)
    spec = ContainerSpec("gguf", (
        ("general.type", "str", "imatrix"),
        ("imatrix.datasets", "arr[str]", [origin.dataset]),
        ("imatrix.chunk_count", "u32", origin.chunks),
        ("imatrix.chunk_size", "u32", origin.length),
    ))  # fmt: skip
    tensors = [OutputTensor(name, "F32", array.shape, array.nbytes) for name, array in arrays.items()]
    (file,) = GgufContainer().layout(spec, tensors)
    data = bytearray(file.nbytes)
    header = GgufContainer().header(spec, file, tensors)
    data[: len(header)] = header
    for place in file.tensors:
        data[place.offset : place.offset + place.nbytes] = arrays[place.tensor].tobytes()
    write_whole(path, bytes(data))
