"""How far a GPU's bytes may be from the CPU's, and how far they are.

The kernels take the CPU's steps in the CPU's order, with every operation rounded by itself. Whether a device keeps to that
shows only on the device, so what is promised is the error: the weighted mean square error of each row is at most LIMIT times
that of the CPU's bytes. Weighted as the type's search weighs it: Q4_K and Q5_K by the root mean square of 32 weights plus |x|;
Q3_K and Q6_K by x squared; Q2_K by |x|; the others not at all.

The limit is strict on purpose. Another rounding in the search, be it a better one, decides close calls otherwise: searches
done in float64 gave other bytes in 1 to 21 of 100 blocks and rows of 4096 weights whose error was up to 1.05 times the CPU's,
although all rows together differed by less than 0.1 %. A device on which that happens does not keep the contract.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from qconvd.api import storage
from qconvd_ggml.decode import decode

LIMIT = 1.0005
"""What a row's error may be of the error of the CPU's bytes."""
_ROOTED, _SUB_BLOCK = ("Q4_K", "Q5_K"), 32
_SQUARED = ("Q3_K", "Q6_K")


class Comparison(NamedTuple):
    """Bytes of a device against those of the CPU."""

    differing: float
    """The share of blocks that are not the same bytes."""
    worst_row: float
    """The largest quotient of a row's errors, the device's over the CPU's."""
    whole: float
    """The quotient of the errors of all rows together."""

    @property
    def kept(self) -> bool:
        """Whether the contract was kept."""
        return self.worst_row <= LIMIT


def compare(dtype: str, x: NDArray[np.float32], device: NDArray[np.uint8], cpu: NDArray[np.uint8]) -> Comparison:
    """Two encodings of `x`, of shape (rows, columns), as `dtype`. A row that the CPU meets exactly must be met exactly."""
    _, size = storage(dtype)
    blocks = (device != cpu).reshape(-1, size).any(axis=1)
    ours, theirs = (_errors(dtype, x, data) for data in (device, cpu))
    rows = np.where(ours == theirs, 1.0, ours / np.where(theirs > 0, theirs, np.finfo(np.float64).tiny))
    whole = ours.sum() / theirs.sum() if theirs.sum() else float(rows.max(initial=1.0))
    return Comparison(float(blocks.mean()), float(rows.max(initial=1.0)), float(whole))


def _errors(dtype: str, x: NDArray[np.float32], data: NDArray[np.uint8]) -> Any:
    """The weighted mean square error of each row."""
    error = decode(dtype, data, x.shape[1]).astype(np.float64) - x
    return np.mean(_weights(dtype, x.astype(np.float64)) * error * error, axis=1)


def _weights(dtype: str, x: NDArray[np.float64]) -> NDArray[np.float64]:
    if dtype in _ROOTED:
        squares = (x * x).reshape(x.shape[0], -1, _SUB_BLOCK).mean(axis=2)
        return np.asarray(np.abs(x) + np.sqrt(squares).repeat(_SUB_BLOCK, axis=1))
    if dtype == "Q2_K":
        return np.abs(x)
    return x * x if dtype in _SQUARED else np.ones_like(x)
