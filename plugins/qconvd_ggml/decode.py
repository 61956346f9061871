"""What a reader sees in GGML's block types, and how far that may be from the weights. Plain numpy, independent of the kernels.

decode_legacy.py, decode_k.py, decode_values.py, decode_lattice.py and decode_cast.py hold the types. All arithmetic of
`error_bound` is in float64.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qconvd.api import row_bytes
from qconvd_ggml import decode_cast, decode_k, decode_lattice, decode_legacy, decode_values
from qconvd_ggml.decode_base import Bound, Decoder

_FAMILIES = (decode_legacy, decode_k, decode_values, decode_lattice, decode_cast)
_DECODERS: dict[str, Decoder] = {k: v for family in _FAMILIES for k, v in family.DECODERS.items()}
_BOUNDS: dict[str, Bound] = {k: v for family in _FAMILIES for k, v in family.BOUNDS.items()}
_WEIGHTED_BOUNDS: dict[str, Bound] = _BOUNDS | {k: v for family in _FAMILIES for k, v in family.WEIGHTED_BOUNDS.items()}
TYPES = frozenset(_DECODERS)
"""What `decode` knows."""


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


def error_bound(dtype: str, x: NDArray[np.float32], weighted: bool = False) -> NDArray[np.float32]:
    """The largest |decoded - x| that is right, element by element, for weights `x` of shape (rows, columns).

    Infinite where a block holds NaN or infinite weights, or scales too large for a half: anything may come of those. With
    `weighted`, for any encoding with an importance matrix, whichever it was: the search may give up accuracy in one column
    for another, so that bound is wider for most types.
    """
    bounds = _WEIGHTED_BOUNDS if weighted else _BOUNDS
    if dtype not in bounds:
        raise ValueError(f"no error bound for {dtype}")
    row_bytes(dtype, x.shape[1])
    with np.errstate(all="ignore"):
        bound = bounds[dtype](x.astype(np.float64))
    bound = np.where(np.isnan(bound), np.inf, bound).reshape(x.shape)
    with np.errstate(over="ignore"):
        return np.nextafter(bound.astype(np.float32), np.float32(np.inf))
