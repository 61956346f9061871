"""The way in: rows of weights to the bytes of a GGML type.

Importing this module imports numba but compiles nothing; a kernel is compiled, or loaded from the disk cache, when its type
is first asked for. Calls are thread-safe and release the GIL, so plain threads over row chunks use all cores.
"""

from __future__ import annotations

import logging
import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qconvd.api import UnitReport, row_bytes, storage
from qconvd_ggml import cache, cast, legacy, measure, q6_k, tile

log = logging.getLogger(__name__)
SOURCES = {"BF16": (tile.BF16, np.uint16), "F16": (tile.F16, np.uint16), "F32": (tile.F32, np.float32)}
_ENTRIES: dict[str, tuple[Any, int]] = {
    "Q4_0": (legacy.q4_0, legacy.BLOCK),
    "Q4_1": (legacy.q4_1, legacy.BLOCK),
    "Q5_0": (legacy.q5_0, legacy.BLOCK),
    "Q5_1": (legacy.q5_1, legacy.BLOCK),
    "Q8_0": (legacy.q8_0, legacy.BLOCK),
    "Q6_K": (q6_k.q6_k, q6_k.SUB),
    "F32": (cast.f32, measure.STEP),
    "F16": (cast.f16, measure.STEP),
    "BF16": (cast.bf16, measure.STEP),
}
"""Per type: its kernel, and the weights of one lane."""
_lock = threading.Lock()
_ready: set[str] = set()
_NO_HALVES, _NO_SINGLES = np.empty(0, np.uint16), np.empty(0, np.float32)


def encode(
    dtype: str, x: NDArray[Any], source_dtype: str, out: NDArray[np.uint8] | None = None
) -> tuple[NDArray[np.uint8], UnitReport]:
    """Encode `x` of shape (rows, columns), holding `source_dtype`, as `dtype`.

    `x` is uint16 bit patterns for BF16, uint16 or float16 for F16, float32 for F32; read-only arrays are fine. Returns uint8 of
    shape (rows, row_bytes), which is `out` if given (C-contiguous, writable, of that shape), and what it did to the numbers:
    finite weights that a reader will see as infinite or NaN are `overflows`; `underflows` are counted by F32, F16, BF16 only.
    The bytes do not depend on how rows are divided into calls. NaN and infinite weights are counted and encoded as the
    kernel's module says.

    Raises `Unsupported` if the columns are no multiple of the type's block, ValueError or TypeError for arrays of another kind.
    """
    if dtype not in _ENTRIES or source_dtype not in SOURCES:
        raise ValueError(f"no kernel from {source_dtype} to {dtype}")
    if x.ndim != 2:
        raise ValueError(f"weights of shape {x.shape} are not (rows, columns)")
    kind, held = SOURCES[source_dtype]
    flat = np.require(x, requirements=["C", "A"]).reshape(-1)
    if source_dtype == "F16" and flat.dtype == np.float16:
        flat = flat.view(np.uint16)
    if flat.dtype != held:
        raise TypeError(f"{source_dtype} weights come as {np.dtype(held)}, not as {x.dtype}")
    shape = (x.shape[0], row_bytes(dtype, x.shape[1]))
    if out is None:
        out = np.empty(shape, np.uint8)
    elif out.shape != shape or out.dtype != np.uint8 or not out.flags.c_contiguous or not out.flags.writeable:
        raise ValueError(f"out must be a writable, contiguous uint8 array of shape {shape}")
    sums = np.zeros(measure.SUMS * tile.LANES)
    _run(dtype, kind, flat, out.reshape(-1), sums)
    return out, measure.report(flat.size, sums)


def ready(dtype: str) -> Any:
    """The kernel of a type, compiled or loaded from the disk cache if it was not used before in this process."""
    entry = _ENTRIES[dtype][0]
    if dtype in _ready:
        return entry
    with _lock:
        if dtype not in _ready:
            with cache.compiling():
                _compile(dtype, entry)
            _ready.add(dtype)
    return entry


def _compile(dtype: str, entry: Any) -> None:
    try:
        entry.compile(tile.SIGNATURE)
        cache.mark(dtype)
    except OSError as error:
        # The machine code is there, only keeping it failed (disk full): that must not stop a conversion.
        if not entry.signatures:
            raise
        log.warning("the %s kernel could not be kept in %s and will be compiled again: %s", dtype, cache.folder(), error)
    entry.disable_compile()


def _run(dtype: str, kind: int, flat: NDArray[Any], out: NDArray[np.uint8], sums: NDArray[np.float64]) -> None:
    """Whole tiles go to the kernel as they are, the rest in a tile of its own that is filled up with zeros."""
    kernel, width = ready(dtype), _ENTRIES[dtype][1]
    block, size = storage(dtype)
    per_tile = width * tile.LANES
    whole = flat.size // per_tile * per_tile
    written = whole // block * size
    if whole:
        _call(kernel, kind, flat[:whole], out[:written], whole // width, sums)
    if whole < flat.size:
        padded = np.zeros(per_tile, flat.dtype)
        padded[: flat.size - whole] = flat[whole:]
        room = np.empty(per_tile // block * size, np.uint8)
        _call(kernel, kind, padded, room, tile.LANES, sums)
        out[written:] = room[: out.size - written]


def _call(kernel: Any, kind: int, flat: NDArray[Any], out: NDArray[np.uint8], groups: int, sums: NDArray[np.float64]) -> None:
    if flat.dtype == np.float32:
        kernel(kind, _NO_HALVES, flat, out, groups, sums)
    else:
        kernel(kind, flat, _NO_SINGLES, out, groups, sums)
