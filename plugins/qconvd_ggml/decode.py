"""What a reader sees in GGML's block types, and how far that may be from the weights. Plain numpy, independent of the kernels.

decode_legacy.py, decode_k.py, decode_values.py, decode_lattice.py and decode_cast.py hold the types, bounds.py and bounds_k.py
what searches allow. All arithmetic of `error_bound` is in float64.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qconvd.api import row_bytes
from qconvd_ggml import bounds_k, decode_cast, decode_k, decode_lattice, decode_legacy, decode_values
from qconvd_ggml.decode_base import Bound, Decoder, WeightedBound

_FAMILIES = (decode_legacy, decode_k, decode_values, decode_lattice, decode_cast)
_DECODERS: dict[str, Decoder] = {k: v for family in _FAMILIES for k, v in family.DECODERS.items()}
_BOUNDING = (decode_legacy, bounds_k, decode_values, decode_lattice, decode_cast)
_BOUNDS: dict[str, Bound] = {k: v for family in _BOUNDING for k, v in family.BOUNDS.items()}
_WEIGHTED_BOUNDS: dict[str, WeightedBound] = (
    decode_legacy.WEIGHTED_BOUNDS | bounds_k.WEIGHTED_BOUNDS | decode_values.WEIGHTED_BOUNDS
)
TYPES = frozenset(_DECODERS)
"""What `decode` knows."""
AT_ONCE = 1 << 16
"""Weights whose bounds are computed at a time, if a row has no more: some take hundreds of bytes for a weight meanwhile."""


def decode(dtype: str, data: Any, columns: int) -> NDArray[np.float32]:
    """Bytes (anything with a buffer) of whole rows of a type, as float32 of shape (rows, columns).

    Raises ValueError if the bytes are no whole rows or the type is none of those that this package encodes.
    """
    raw = np.frombuffer(data, np.uint8)
    width = row_bytes(dtype, columns)
    if dtype not in _DECODERS:
        raise ValueError(f"no decoder for {dtype}")
    if width == 0 or raw.size % width:
        raise ValueError(f"{raw.size} bytes are no whole rows of {columns} weights as {dtype}")
    with np.errstate(over="ignore", invalid="ignore"):
        return np.ascontiguousarray(_DECODERS[dtype](raw), np.float32).reshape(raw.size // width, columns)


def error_bound(dtype: str, x: NDArray[np.float32], importance: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
    """The largest |decoded - x| that is right, element by element, for weights `x` of shape (rows, columns).

    Infinite where a block holds NaN or infinite weights, or scales too large for a half: anything may come of those.
    `importance`, of shape (columns,), is what the weights were encoded with, if anything: such an encoding gives up accuracy in
    one column for another. Of a column that does not count at all, little can be said.
    """
    if dtype not in _BOUNDS:
        raise ValueError(f"no error bound for {dtype}")
    row_bytes(dtype, x.shape[1])
    bound = np.empty(x.shape, np.float32)
    step = max(1, AT_ONCE // max(1, x.shape[1]))
    for first in range(0, len(x), step):
        bound[first : first + step] = _error_bound(dtype, x[first : first + step], importance)
    return bound


def _error_bound(dtype: str, x: NDArray[np.float32], importance: NDArray[np.float32] | None) -> NDArray[np.float32]:
    with np.errstate(all="ignore"):
        if importance is not None and dtype in _WEIGHTED_BOUNDS:
            bound = _WEIGHTED_BOUNDS[dtype](x.astype(np.float64), np.broadcast_to(importance.astype(np.float64), x.shape))
        else:
            bound = _BOUNDS[dtype](x.astype(np.float64))
    bound = np.where(np.isnan(bound), np.inf, bound).reshape(x.shape)
    with np.errstate(over="ignore"):
        return np.nextafter(bound.astype(np.float32), np.float32(np.inf))
