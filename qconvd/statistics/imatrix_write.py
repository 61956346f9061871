"""Importance matrices in llama.cpp's GGUF format, from statistics that calibration gathered.

The layout is that of llama-imatrix (llama.cpp, tools/imatrix/imatrix.cpp, `save_imatrix`): for each tensor `<name>.in_sum2`,
the sums of squares (experts, columns), and `<name>.counts`, of how many tokens (experts, 1).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

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


def write_imatrix(path: Path, entries: Mapping[str, MeanSquares], *, dataset: str, samples: int, length: int) -> None:
    """Write the file durably. `entries` by GGUF's names; `dataset`: what the text is called; samples of `length` tokens."""
    import numpy as np

    tensors: list[OutputTensor] = []
    data: list[bytes] = []
    for name, entry in sorted(entries.items()):
        counts = np.asarray(entry.tokens, np.float32).reshape(-1, 1)
        sums = entry.values.reshape(len(counts), -1) * counts
        for ending, array in ((SUMS, sums), (COUNTS, counts)):
            tensors.append(OutputTensor(name + ending, "F32", array.shape, array.nbytes))
            data.append(np.ascontiguousarray(array, "<f4").tobytes())
    values = (("arr[str]", [dataset]), ("u32", samples), ("u32", length))
    metadata: list[tuple[str, str, object]] = [("general.architecture", "str", "imatrix"), ("general.type", "str", "imatrix")]
    metadata += [(key, kind, value) for key, (kind, value) in zip(KEYS, values, strict=True)]
    spec = ContainerSpec("gguf", tuple(metadata))
    container = GgufContainer()
    (file,) = container.layout(spec, tensors)
    content = bytearray(file.nbytes)
    header = container.header(spec, file, tensors)
    content[: len(header)] = header
    for placed, part in zip(file.tensors, data, strict=True):
        content[placed.offset : placed.offset + placed.nbytes] = part
    write_whole(path, bytes(content))
