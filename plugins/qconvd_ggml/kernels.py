"""The way in: rows of weights to the bytes of a GGML type.

Importing this module imports numba but compiles nothing; a kernel is compiled, or loaded from the disk cache, when its type
is first asked for. Calls are thread-safe and release the GIL, so plain threads over row chunks use all cores.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from qconvd.api import UnitReport, Unsupported, row_bytes, storage
from qconvd_ggml import (
    affine_k,
    cast,
    iq1,
    iq2,
    iq3,
    iq4,
    lattice,
    legacy,
    legacy_weighted,
    measure,
    mxfp4,
    q3_k,
    q6_k,
    ternary,
    tile,
    weighting,
)
from qconvd_ggml.cache import CACHE

SOURCES = {"BF16": (tile.BF16, np.uint16), "F16": (tile.F16, np.uint16), "F32": (tile.F32, np.float32)}


class Entry(NamedTuple):
    """How a type is encoded."""

    plain: Any
    """The kernel without an importance matrix (tile.SIGNATURE); None for a type that cannot do without one."""
    width: int
    """Weights of one lane."""
    weighted: Any = None
    """The kernel with an importance matrix (tile.WEIGHTED_SIGNATURE); None where a matrix changes nothing."""
    squares: bool = False
    """Whether the weighted kernel reads the sum of squares of whole rows."""
    lattice: str = ""
    """Whose lattice its kernel reads, if any; such a kernel (tile.LATTICE_SIGNATURE) does with and without a matrix."""


_ENTRIES: dict[str, Entry] = {
    "Q4_0": Entry(legacy.q4_0, legacy.BLOCK, legacy_weighted.q4_0, squares=True),
    "Q4_1": Entry(legacy.q4_1, legacy.BLOCK, legacy_weighted.q4_1, squares=True),
    "Q5_0": Entry(legacy.q5_0, legacy.BLOCK, legacy_weighted.q5_0, squares=True),
    "Q5_1": Entry(legacy.q5_1, legacy.BLOCK, legacy_weighted.q5_1, squares=True),
    "Q8_0": Entry(legacy.q8_0, legacy.BLOCK),
    "Q2_K": Entry(affine_k.q2_k, affine_k.SUB_2, affine_k.q2_k_weighted),
    "Q3_K": Entry(q3_k.q3_k, q3_k.SUB, q3_k.q3_k_weighted),
    "Q4_K": Entry(affine_k.q4_k, affine_k.SUB_45, affine_k.q4_k_weighted),
    "Q5_K": Entry(affine_k.q5_k, affine_k.SUB_45, affine_k.q5_k_weighted),
    "Q6_K": Entry(q6_k.q6_k, q6_k.SUB, q6_k.q6_k_weighted),
    "IQ4_NL": Entry(iq4.iq4_nl, iq4.BLOCK, iq4.iq4_nl_weighted),
    "IQ4_XS": Entry(iq4.iq4_xs, iq4.BLOCK, iq4.iq4_xs_weighted),
    "MXFP4": Entry(mxfp4.mxfp4, mxfp4.BLOCK),
    "TQ1_0": Entry(ternary.tq1_0, ternary.SUB),
    "TQ2_0": Entry(ternary.tq2_0, ternary.SUB),
    "IQ1_S": Entry(None, iq1.S_WIDTH, iq1.iq1_s, lattice="IQ1_S"),
    "IQ1_M": Entry(iq1.iq1_m, iq1.M_WIDTH, iq1.iq1_m, lattice="IQ1_S"),
    "IQ2_XXS": Entry(None, iq2.XXS_WIDTH, iq2.iq2_xxs, lattice="IQ2_XXS"),
    "IQ2_XS": Entry(None, iq2.XS_WIDTH, iq2.iq2_xs, lattice="IQ2_XS"),
    "IQ2_S": Entry(iq2.iq2_s, iq2.S_WIDTH, iq2.iq2_s, lattice="IQ2_S"),
    "IQ3_XXS": Entry(iq3.iq3_xxs, iq3.WIDTH, iq3.iq3_xxs, lattice="IQ3_XXS"),
    "IQ3_S": Entry(iq3.iq3_s, iq3.WIDTH, iq3.iq3_s, lattice="IQ3_S"),
    "F32": Entry(cast.f32, measure.STEP),
    "F16": Entry(cast.f16, measure.STEP),
    "BF16": Entry(cast.bf16, measure.STEP),
}
_KERNELS: dict[str, Any] = {
    **{dtype: entry.plain for dtype, entry in _ENTRIES.items() if entry.plain is not None},
    **{f"{dtype}.imatrix": entry.weighted for dtype, entry in _ENTRIES.items() if entry.weighted not in (None, entry.plain)},
    "squares": weighting.squares,
}
"""All kernels, by the name that the cache knows them by."""
_NO_HALVES, _NO_SINGLES = np.empty(0, np.uint16), np.empty(0, np.float32)
_NO_SINGLES.flags.writeable = False


def encode(
    dtype: str,
    x: NDArray[Any],
    source_dtype: str,
    out: NDArray[np.uint8] | None = None,
    importance: NDArray[np.float32] | None = None,
) -> tuple[NDArray[np.uint8], UnitReport]:
    """Encode `x` of shape (rows, columns), holding `source_dtype`, as `dtype`.

    `x` is uint16 bit patterns for BF16, uint16 or float16 for F16, float32 for F32; read-only arrays are fine. `importance`,
    float32 of shape (columns,), says how much an error in each column counts (a row of llama.cpp's importance matrix); types
    that make no use of one ignore it. Returns uint8 of shape (rows, row_bytes), which is `out` if given (C-contiguous,
    writable, of that shape, no memory of `x`), and what it did to the numbers: finite weights that a reader will see as
    infinite or NaN are `overflows`; `underflows` are counted by F32, F16, BF16 only. The bytes do not depend on how rows are
    divided into calls. NaN and infinite weights are counted and encoded as the kernel's module says.

    Raises `Unsupported` if the columns are no multiple of the type's block, if the importance does not fit the columns, is
    negative or not finite, or if the type needs one and there is none; ValueError or TypeError for arrays of another kind.
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
    entry, sums = _ENTRIES[dtype], np.zeros(measure.SUMS * tile.LANES)
    if importance is not None:
        importance = _checked(importance, x.shape[1])
    if entry.plain is None and importance is None:
        raise Unsupported(
            f"{dtype} cannot be made without an importance matrix", fix="give one (an imatrix file), or choose a larger type"
        )
    name = dtype if importance is None or entry.weighted in (None, entry.plain) else f"{dtype}.imatrix"
    rows = _Rows(kind, flat, entry, importance if entry.weighted is not None else None)
    _run(dtype, ready(name), rows, out.reshape(-1), sums)
    return out, measure.report(flat.size, sums)


def ready(name: str) -> Any:
    """A kernel (`Q4_0`, `Q4_0.imatrix`), compiled or loaded from the disk cache if it was not used before in this process."""
    return CACHE.ready(name, _KERNELS[name])


def _checked(importance: NDArray[Any], columns: int) -> NDArray[np.float32]:
    if importance.dtype != np.float32:
        raise TypeError(f"importance comes as float32, not as {importance.dtype}")
    if importance.shape != (columns,):
        raise Unsupported(
            f"an importance matrix of shape {importance.shape} does not fit rows of {columns} weights",
            fix="use one that was made with this very model",
        )
    if not (np.isfinite(importance).all() and (importance >= 0).all()):
        wrong = int(np.argmin(np.isfinite(importance) & (importance >= 0)))
        raise Unsupported(
            f"the importance matrix says {importance[wrong]} of column {wrong}, which is no weight",
            fix="make it again: every value must be finite, and not negative",
        )
    kept = np.require(importance, requirements=["C", "A"]).view()
    kept.flags.writeable = False
    return kept


class _Rows:
    """The weights of a call, flat, and how to hand a part of them to a kernel."""

    def __init__(self, kind: int, flat: NDArray[Any], entry: Entry, importance: NDArray[np.float32] | None) -> None:
        self.kind, self.flat, self.importance = kind, flat, importance
        self.lattice = (lattice.lattice(entry.lattice),) if entry.lattice else ()
        self.squares = _NO_SINGLES
        if importance is not None and entry.squares:
            rows = flat.size // importance.size if importance.size else 0
            # Zeros for the rows that the filling of the last tile would belong to.
            self.squares = np.zeros(rows + tile.LANES, np.float32)
            ready("squares")(kind, *self._source(flat), importance.size, self.squares[:rows])
            self.squares.flags.writeable = False

    def encode(
        self, kernel: Any, part: NDArray[Any], out: NDArray[np.uint8], first: int, groups: int, sums: NDArray[np.float64]
    ) -> None:
        """`part` is some of the weights, perhaps filled up with zeros, from group `first` on."""
        source = (self.kind, *self._source(part))
        if self.importance is None and not self.lattice:
            kernel(*source, out, groups, sums)
            return
        values = _NO_SINGLES if self.importance is None else self.importance
        kernel(*source, tile.Importance(values, self.squares, max(1, values.size), first), out, groups, sums, *self.lattice)

    def _source(self, part: NDArray[Any]) -> tuple[NDArray[np.uint16], NDArray[np.float32]]:
        return (_NO_HALVES, part) if part.dtype == np.float32 else (part, _NO_SINGLES)


def _run(dtype: str, kernel: Any, rows: _Rows, out: NDArray[np.uint8], sums: NDArray[np.float64]) -> None:
    """Whole tiles go to the kernel as they are, the rest in a tile of its own that is filled up with zeros."""
    flat, width = rows.flat, _ENTRIES[dtype].width
    block, size = storage(dtype)
    per_tile = width * tile.LANES
    whole = flat.size // per_tile * per_tile
    written = whole // block * size
    if whole:
        rows.encode(kernel, flat[:whole], out[:written], 0, whole // width, sums)
    if whole < flat.size:
        padded = np.zeros(per_tile, flat.dtype)
        padded[: flat.size - whole] = flat[whole:]
        room = np.empty(per_tile // block * size, np.uint8)
        rows.encode(kernel, padded, room, whole // width, tile.LANES, sums)
        out[written:] = room[: out.size - written]
