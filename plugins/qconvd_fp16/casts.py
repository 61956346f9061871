"""Casts between float types on the CPU, in one pass with a count of what they lost.

Rounding is to nearest, ties to even (IEEE 754). Every number comes out as torch's `Tensor.to` makes it, which takes float64
through float32. A NaN stays one: quiet, with its sign and the upper bits of its payload; torch's own NaN bits depend on the
CPU and on the position in the tensor.

Small models are cast by numpy, whose way through 16 bits (the range split below) is as fast as its own cast without any
figures: nothing has to be compiled or loaded. For large ones `compiled` does it in a fraction of the time (kernels/), where
the processor has the instructions. What is odd is left to numpy: NaN, infinities, what is too large, sums that float32 cannot
hold.

BF16 is held as uint16 bit patterns. All arrays here are flat.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from qconvd.api import UnitReport, bf16_as_normal_f16

AnyArray: TypeAlias = npt.NDArray[Any]

CHUNK = 1 << 16
"""Elements handled at a time: they and their temporaries stay in the second-level cache."""
LEAST, MOST = 1e-24, 1e34
"""Sums of squares between which float32 is exact enough."""
STORED: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
}
LARGEST = {"F16": 0x7BFF, "BF16": 0x7F7F}
"""The bits of the largest finite number."""
LIMIT = {"F16": 65520.0, "BF16": float.fromhex("0x1.FFp127"), "F32": float.fromhex("0x1.FFFFFFp127"), "F64": float("inf")}
"""Half a step above the largest number: what is as large becomes infinite."""
BEYOND = {"F16": 0x477FF000, "BF16": 0x7F7F8000, "F32": 0x7F800000}
"""The same as bits of float32; those of what is infinite or NaN are as many or more."""


def cast(x: AnyArray, source: str, target: str, *, clamp: bool = False, compiled: bool = False) -> tuple[AnyArray, UnitReport]:
    """Elements of `source` as elements of `target` (F64, F32, F16, BF16; to F64 only from F64): a flat array of STORED[target].

    Finite numbers beyond the target's range become infinite, or with `clamp` its largest number; the report counts both as
    overflows. Where nothing changes, the result is `x` itself.
    """
    flat = np.ascontiguousarray(x).reshape(-1)
    out = flat if source == target else np.empty(flat.size, STORED[target])
    sums = _Sums()
    left = _compiled(flat, out, source, target, sums) if compiled and "F64" not in (source, target) else [(0, flat.size)]
    with np.errstate(all="ignore"):
        for first, last in left:
            for start in range(first, last, CHUNK):
                some = slice(start, min(start + CHUNK, last))
                _chunk(flat[some], out[some], source, target, clamp, sums)
    return out, sums.report(flat.size)


def _compiled(x: AnyArray, out: AnyArray, source: str, target: str, sums: _Sums) -> list[tuple[int, int]]:
    """Cast what a kernel can; the ranges that are left."""
    from qconvd_fp16.kernels.tiles import TILE, tiles

    whole = x.size // TILE * TILE
    ranges = []
    if whole:
        odd, figures = tiles(x[:whole], out[:whole], source, target)
        square, error, largest, lost = map(float, figures)
        sums.square += square
        sums.square_error += error
        sums.max_error = max(sums.max_error, largest)
        sums.underflows += int(lost)
        edges = np.flatnonzero(np.diff(odd, prepend=0, append=0)) * TILE
        ranges = [(int(a), int(b)) for a, b in edges.reshape(-1, 2)]
    return [*ranges, *([(whole, x.size)] if whole < x.size else [])]


class _Sums:
    """The figures of a `UnitReport`, added up over chunks."""

    def __init__(self) -> None:
        self.square_error = self.square = self.max_error = 0.0
        self.overflows = self.underflows = self.nan = self.inf = 0

    def report(self, weights: int) -> UnitReport:
        counts = (self.overflows, self.underflows, self.nan, self.inf)
        return UnitReport(weights, self.square_error, self.square, self.max_error, *counts)

    def values(self, values: AnyArray) -> None:
        """Add the squares of the source, leaving out what is not finite."""
        square = float(np.einsum("i,i->", values, values))
        if not LEAST < square < MOST:
            exact = values.astype(np.float64)
            exact = exact[np.isfinite(exact)]
            square = float(np.einsum("i,i->", exact, exact))
        self.square += square

    def errors(self, errors: AnyArray) -> None:
        """Add finite differences."""
        square = float(np.einsum("i,i->", errors, errors))
        if not LEAST < square < MOST:
            exact = errors.astype(np.float64)
            square = float(np.einsum("i,i->", exact, exact))
        self.square_error += square
        self.max_error = max(self.max_error, float(np.abs(errors).max(initial=0)))

    def odd(self, values: AnyArray, became: AnyArray, limit: float) -> None:
        """Add elements that may be NaN, infinite, out of range or lost, by looking at each in float64."""
        v, b = values.astype(np.float64), became.astype(np.float64)
        finite = np.isfinite(v)
        self.nan += int(np.isnan(v).sum())
        self.inf += int(np.isinf(v).sum())
        self.overflows += int((finite & (np.isinf(b) | (np.abs(v) >= limit))).sum())
        self.underflows += int((finite & (v != 0) & (b == 0)).sum())
        self.errors((b - v)[finite & np.isfinite(b)])


def _chunk(x: AnyArray, out: AnyArray, source: str, target: str, clamp: bool, sums: _Sums) -> None:
    if source == "F64":
        _double(x, out, target, clamp, sums)
        return
    values, became = _plain_float32(x, source), None
    if source == target:
        odd = _not_finite(x, source)
    elif target == "F32":
        odd = _not_finite(x, source)
        out[:] = values
    elif target == "F16" and source == "BF16":
        odd = bf16_as_normal_f16(x, out.view(np.uint16))
    elif target == "F16":
        odd = _outside(x, 0x38800000, BEYOND[target])
        out[:] = x
        became = out.astype(np.float32)
    else:
        odd = _outside(values, 0x8001, BEYOND[target])
        bits = _rounded_to_bf16(values)
        out[:] = bits
        bits <<= 16
        became = bits.view(np.float32)
    if became is not None:
        became -= values
        became[odd] = 0
        sums.errors(became)
    sums.values(values)
    if odd.size:
        exact = _float32(x[odd], source)
        if source != target:
            out[odd] = _one_by_one(exact, target, clamp)
        sums.odd(exact, _float32(out[odd], target), LIMIT[target])


def _double(x: AnyArray, out: AnyArray, target: str, clamp: bool, sums: _Sums) -> None:
    sums.values(x)
    if target == "F64":
        sums.odd(x, x, LIMIT[target])
        return
    values = x.astype(np.float32)
    if clamp:
        largest = np.float32(np.finfo(np.float32).max)
        values = np.where(np.isfinite(x), np.clip(values, -largest, largest), values)
    out[:] = _one_by_one(values, target, clamp)
    sums.odd(x, _float32(out, target), LIMIT[target])


def _outside(values: AnyArray, low: int, high: int) -> AnyArray:
    """Where the bits of |float32| are not in low … high - 1: small, zero, huge, infinite, NaN."""
    magnitude = values.view(np.uint32) & np.uint32(0x7FFFFFFF)
    magnitude -= np.uint32(low)
    return np.flatnonzero(magnitude >= np.uint32(high - low))


def _not_finite(x: AnyArray, dtype: str) -> AnyArray:
    """Where the exponent's bits are all ones."""
    if dtype == "F32":
        return np.flatnonzero((x.view(np.uint32) & np.uint32(0x7F800000)) == np.uint32(0x7F800000))
    mask = np.uint16(0x7C00 if dtype == "F16" else 0x7F80)
    return np.flatnonzero((x.view(np.uint16) & mask) == mask)


def _rounded_to_bf16(values: AnyArray) -> AnyArray:
    """The upper half of float32 bits, rounded, in the lower half of uint32; wrong for NaN."""
    bits = values.view(np.uint32)
    rounded = bits >> 16
    rounded &= 1
    rounded += 0x7FFF
    rounded += bits
    rounded >>= 16
    return rounded


def _one_by_one(values: AnyArray, target: str, clamp: bool) -> AnyArray:
    """Any float32 values, right also for NaN and beyond the range."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    nan = (bits & 0x7FFFFFFF) > 0x7F800000
    if target == "F32":
        return np.where(nan, bits | 0x400000, bits).astype(np.uint32).view(np.float32)
    sign = ((bits >> 16) & 0x8000).astype(np.uint16)
    if target == "F16":
        result = values.astype(np.float16).view(np.uint16)
        quiet = ((bits >> 13) & 0x3FF | 0x7E00).astype(np.uint16)
    else:
        result = _rounded_to_bf16(values).astype(np.uint16)
        quiet = ((bits >> 16) & 0x7FFF | 0x40).astype(np.uint16)
    if clamp:
        result = np.where(np.isfinite(values) & ((result & 0x7FFF) > LARGEST[target]), sign | LARGEST[target], result)
    return np.where(nan, sign | quiet, result).astype(np.uint16).view(STORED[target])


def _plain_float32(x: AnyArray, dtype: str) -> AnyArray:
    """Values as float32; the bits of a NaN are the CPU's."""
    if dtype == "F32":
        return x
    if dtype == "F16":
        return x.astype(np.float32)
    bits = x.astype(np.uint32)
    bits <<= 16
    return bits.view(np.float32)


def _float32(x: AnyArray, dtype: str) -> AnyArray:
    """Values as float32; a NaN of F16 keeps its payload on any CPU."""
    values = _plain_float32(x, dtype)
    if dtype == "F16":
        halves = x.view(np.uint16)
        nan = np.flatnonzero((halves & np.uint16(0x7FFF)) > np.uint16(0x7C00))
        bits = halves[nan].astype(np.uint32)
        values.view(np.uint32)[nan] = (bits & 0x8000) << 16 | 0x7FC00000 | (bits & 0x3FF) << 13
    return values
