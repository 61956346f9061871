"""Importance matrices in GGUF: per tensor the sums of squares `<name>.in_sum2`, and `<name>.counts`, of how many tokens."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from qconvd.checkpoints.base import TensorInfo
from qconvd.checkpoints.files import quoted, read_at
from qconvd.checkpoints.gguf import read_header
from qconvd.errors import BadCheckpoint
from qconvd.statistics.imatrix import AGAIN, Entry

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SUMS, COUNTS = ".in_sum2", ".counts"
KEYS = ("imatrix.datasets", "imatrix.chunk_count", "imatrix.chunk_size")


class GgufImatrix:
    """As llama-imatrix writes it since July 2025."""

    def __init__(self, path: Path) -> None:
        header = read_header(path.parent, path.name)
        where = str(path)
        self._sums = _ending(header.tensors, SUMS)
        self._counts = _ending(header.tensors, COUNTS)
        if not self._sums:
            raise BadCheckpoint(
                "is a GGUF file, but no importance matrix: no tensor is called *.in_sum2",
                where=where,
                fix="name a file that llama-imatrix made of this model",
            )
        if missing := [key for key in KEYS if key not in header.metadata]:
            raise BadCheckpoint(f"lacks the metadata {', '.join(missing)} of an importance matrix", where=where, fix=AGAIN)
        if self._sums.keys() != self._counts.keys():
            odd = min(self._sums.keys() ^ self._counts.keys())
            raise BadCheckpoint(f"has sums or counts of {quoted(odd)}, but not both", where=where, fix=AGAIN)
        self.entries: Mapping[str, Entry] = {name: self._entry(name, where) for name in self._sums}
        datasets, chunks, _ = (header.metadata[key] for key in KEYS)
        self.datasets = tuple(str(d) for d in datasets) if isinstance(datasets, list) else ()
        self.chunks = chunks if isinstance(chunks, int) else 0

    def mean_square(self, descriptor: int, name: str) -> NDArray[np.float32]:
        """Sums over counts in float32; ones where nothing was counted, as llama-quantize takes it."""
        import numpy as np

        counts = self._count(descriptor, name).astype(np.float32)[:, None]
        sums = _floats(descriptor, self._sums[name]).reshape(counts.size, -1)
        with np.errstate(all="ignore"):
            found = np.where(counts > 0, sums / counts, np.float32(1))
        return np.ascontiguousarray(found, np.float32).reshape(-1)

    def square_sums(self, descriptor: int, name: str) -> NDArray[np.float32]:
        import numpy as np

        counts = _floats(descriptor, self._counts[name])[:, None]
        return np.hstack([_floats(descriptor, self._sums[name]).reshape(counts.size, -1), counts])

    def unused(self, descriptor: int, name: str) -> int:
        return int((self._count(descriptor, name) <= 0).sum())

    def _count(self, descriptor: int, name: str) -> NDArray[np.float64]:
        """Counts to the nearest whole number, halves away from zero (C's lround)."""
        import numpy as np

        counts = _floats(descriptor, self._counts[name]).astype(np.float64)
        # What is not finite counts as nothing.
        return np.where(np.isfinite(counts), np.trunc(counts + np.copysign(0.5, counts)), 0)

    def _entry(self, name: str, where: str) -> Entry:
        sums, counts = self._sums[name], self._counts[name]
        if (sums.dtype, counts.dtype) != ("F32", "F32"):
            raise BadCheckpoint(
                f"sums and counts of {quoted(name)} are {sums.dtype} and {counts.dtype}, not F32", where=where, fix=AGAIN
            )
        values, counted = prod(sums.shape), prod(counts.shape)
        if not values or not counted or values % counted:
            raise BadCheckpoint(f"has {values} sums for {counted} counts of {quoted(name)}", where=where, fix=AGAIN)
        return Entry(values, counted)


def _ending(tensors: Mapping[str, TensorInfo], ending: str) -> dict[str, TensorInfo]:
    return {name.removesuffix(ending): t for name, t in tensors.items() if name.endswith(ending) and name != ending}


def _floats(descriptor: int, tensor: TensorInfo) -> NDArray[np.float32]:
    import numpy as np

    return np.frombuffer(read_at(descriptor, tensor.offset, tensor.nbytes), "<f4")
