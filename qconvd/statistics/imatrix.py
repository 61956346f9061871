"""llama.cpp's importance matrices: for each column of a linear, the mean square of what it was multiplied with.

Two formats: GGUF (`imatrix_gguf.py`) and the older one that is mostly called `.dat` (`imatrix_dat.py`). The values are those
that llama-quantize works with. Source: llama.cpp, common/imatrix-loader.cpp and `load_imatrix` (tools/quantize/quantize.cpp).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from qconvd.checkpoints.files import opened, quoted, read_at
from qconvd.errors import BadCheckpoint
from qconvd.input_files import sha256_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

AGAIN = "make it again with llama-imatrix, or copy it again"


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor's part: `values` numbers, which are `counted` rows (one for each expert, or one for the whole)."""

    values: int
    counted: int


class Reading(Protocol):
    """One of the two formats."""

    entries: Mapping[str, Entry]
    datasets: tuple[str, ...]
    chunks: int

    def mean_square(self, descriptor: int, name: str) -> NDArray[np.float32]: ...

    def square_sums(self, descriptor: int, name: str) -> NDArray[np.float32]: ...

    def unused(self, descriptor: int, name: str) -> int: ...


class Imatrix:
    """An open importance matrix. Arrays are read when asked for; all methods are thread-safe."""

    def __init__(self, path: Path, descriptor: int, sha256: str, reading: Reading) -> None:
        self.path = path
        self.sha256 = sha256
        self._descriptor = descriptor
        self._reading = reading
        self._seen = _identity(os.fstat(descriptor))

    @property
    def entries(self) -> Mapping[str, Entry]:
        """By the name of the tensor."""
        return self._reading.entries

    @property
    def datasets(self) -> tuple[str, ...]:
        """What it was made from, as its maker called it."""
        return self._reading.datasets

    @property
    def chunks(self) -> int:
        """How many chunks of text it was made from; 0 if the file does not say."""
        return self._reading.chunks

    def mean_square(self, name: str) -> NDArray[np.float32]:
        """The values of a tensor, (values,), expert after expert. Experts that were never used count alike: ones.

        Raises KeyError for a tensor that is not in the file, `BadCheckpoint` for values that are no weights.
        """
        return self._checked(self._reading.mean_square(self._descriptor, name), name, "no mean square")

    def square_sums(self, name: str) -> NDArray[np.float32]:
        """What the file holds of a tensor, as it stands there: (counted, columns + 1), in the last column the count.

        Raises as `mean_square` does.
        """
        return self._checked(self._reading.square_sums(self._descriptor, name), name, "no sum of squares")

    def unused(self, name: str) -> int:
        """How many experts of a tensor saw no token while the file was made."""
        return self._reading.unused(self._descriptor, name)

    def is_unchanged(self) -> bool:
        """Whether nobody has written to the file since it was opened."""
        return _identity(os.fstat(self._descriptor)) == self._seen

    def _checked(self, found: NDArray[np.float32], name: str, none: str) -> NDArray[np.float32]:
        import numpy as np

        wrong = ~(np.isfinite(found) & (found >= 0))
        if wrong.any():
            raise BadCheckpoint(
                f"says {found[wrong][0]} of column {int(np.argmax(wrong))} of {quoted(name)}, which is {none}",
                where=str(self.path),
                fix=AGAIN,
            )
        return found

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def open_imatrix(path: Path) -> Imatrix:
    """Read the names and sizes of an importance matrix; bounded memory whatever the file claims.

    Raises `BadCheckpoint` (or `Incomplete`) for a file that is none, that contradicts itself or ends too early.
    """
    from qconvd.statistics.imatrix_dat import DatImatrix
    from qconvd.statistics.imatrix_gguf import GgufImatrix

    with opened(path) as (descriptor, _):
        reading = (GgufImatrix if read_at(descriptor, 0, 4) == b"GGUF" else DatImatrix)(path)
        digest = sha256_of(descriptor)
        if _identity(path.stat()) != _identity(os.fstat(descriptor)):
            raise BadCheckpoint("changes while it is read", where=str(path), fix="wait until it is complete")
        return Imatrix(path, os.dup(descriptor), digest, reading)


def _identity(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_ino, status.st_size, status.st_mtime_ns
