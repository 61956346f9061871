"""Importance matrices in llama.cpp's GGUF format, from statistics that calibration gathered.

The layout is that of llama-imatrix (llama.cpp, tools/imatrix/imatrix.cpp, `save_imatrix`): for each tensor `<name>.in_sum2`,
the sums of squares, and `<name>.counts`, of how many tokens; a row for each expert.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qconvd.containers.gguf import GgufContainer
from qconvd.engine.durable import write_whole
from qconvd.engine.plan import ContainerSpec, OutputTensor
from qconvd.statistics.imatrix_gguf import COUNTS, KEYS, SUMS

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class MeanSquares:
    """Of what one tensor was multiplied with: float32 (experts * columns,), and tokens of each expert."""

    values: NDArray[np.float32]
    tokens: Sequence[int]


def imatrix_metadata(dataset: str, samples: int, length: int) -> tuple[tuple[str, str, Any], ...]:
    """The keys of such a file for `ContainerSpec.metadata`. `dataset`: what the text is called; samples of `length` tokens."""
    values = (("arr[str]", [dataset]), ("u32", samples), ("u32", length))
    return (("general.type", "str", "imatrix"), *((key, kind, v) for key, (kind, v) in zip(KEYS, values, strict=True)))


def imatrix_tensors(name: str, experts: int, columns: int) -> tuple[OutputTensor, OutputTensor]:
    """The sums and the counts of a tensor, both F32. ggml keeps no leading axis of one, so one expert has vectors."""
    shapes = ((experts, columns), (experts, 1)) if experts > 1 else ((columns,), (1,))
    nbytes = (4 * experts * columns, 4 * experts)
    sums, counts = (OutputTensor(name + e, "F32", s, n) for e, s, n in zip((SUMS, COUNTS), shapes, nbytes, strict=True))
    return sums, counts


def write_imatrix(path: Path, entries: Mapping[str, MeanSquares], *, dataset: str, samples: int, length: int) -> None:
    """Write the file durably. `entries` by GGUF's names; the rest as `imatrix_metadata` has it."""
    import numpy as np

    tensors: list[OutputTensor] = []
    data: list[bytes] = []
    for name, entry in sorted(entries.items()):
        counts = np.asarray(entry.tokens, np.float32).reshape(-1, 1)
        sums = entry.values.reshape(len(counts), -1) * counts
        tensors += imatrix_tensors(name, *sums.shape)
        data += (np.ascontiguousarray(array, "<f4").tobytes() for array in (sums, counts))
    spec = ContainerSpec("gguf", imatrix_metadata(dataset, samples, length))
    container = GgufContainer()
    (file,) = container.layout(spec, tensors)
    content = bytearray(file.nbytes)
    header = container.header(spec, file, tensors)
    content[: len(header)] = header
    for placed, part in zip(file.tensors, data, strict=True):
        content[placed.offset : placed.offset + placed.nbytes] = part
    write_whole(path, bytes(content))
