"""Element types as numpy arrays, and exact conversions between them.

numpy has no bfloat16 and no 8-bit floats: BF16 travels as uint16 bit patterns, F8 as uint8, packed block types as the bytes
of a row. Rounding is to nearest, ties to even (IEEE 754), in one step: no conversion rounds twice.
"""

from __future__ import annotations

from functools import cache
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from qconvd.dtypes import BLOCKS, row_bytes
from qconvd.engine.expr import Shape, rows_columns
from qconvd.errors import Unsupported

AnyArray: TypeAlias = npt.NDArray[Any]

NUMPY: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"), "F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2"),
    "F8_E4M3": np.dtype("u1"), "F8_E5M2": np.dtype("u1"), "F8_E8M0": np.dtype("u1"),
    "I64": np.dtype("<i8"), "I32": np.dtype("<i4"), "I16": np.dtype("<i2"), "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"), "U32": np.dtype("<u4"), "U16": np.dtype("<u2"), "U8": np.dtype("u1"), "BOOL": np.dtype("u1"),
}  # fmt: skip
SIXTEEN = ("F16", "BF16")
IN_CACHE = 1 << 17
"""Elements handled at a time where there are temporaries: these stay in the second-level cache."""
INTEGERS = frozenset({"I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL"})


def numpy_dtype(dtype: str) -> np.dtype[Any]:
    """What one stored column of a type is in numpy; a byte for packed block types."""
    if dtype in BLOCKS:
        return np.dtype("u1")
    try:
        return NUMPY[dtype]
    except KeyError:
        raise Unsupported(f"the engine cannot compute with {dtype}") from None


def matrix(dtype: str, shape: Shape) -> tuple[int, int]:
    """(rows, stored columns) of a tensor; the columns of a packed block type are the bytes of a row."""
    rows, columns = rows_columns(shape)
    return rows, (row_bytes(dtype, columns) if dtype in BLOCKS else columns)


def to_float32(x: AnyArray, dtype: str) -> AnyArray:
    """The values of an array as a new float32 array; F64 and large integers are rounded."""
    if dtype == "BF16":
        return _float32_of_bf16(x)
    if dtype == "F32":
        return x.astype(np.float32, copy=True)
    return cast(x, dtype, "F32")


def cast(x: AnyArray, source: str, target: str) -> AnyArray:
    """`x`, which holds `source` elements, as `target` elements.

    Floats that are too large become infinite, NaN stays NaN. To integers: rounded, clamped to the range, NaN to 0; between
    integers: wrapped, as in C. Raises `Unsupported` for packed types and for 8-bit floats as a target.
    """
    if source == target:
        return x
    for dtype in (source, target):
        if dtype in BLOCKS or dtype not in NUMPY:
            raise Unsupported(f"{dtype} is packed and cannot be cast", fix="use Dequantize with the scheme that knows it")
    if (source, target) == ("BF16", "F16"):
        return _f16_of_bf16(x)
    if source in SIXTEEN and target in SIXTEEN:
        # There are 65,536 of them: looking them up takes a third of the time, and a tenth where some overflow.
        return np.take(_sixteen(source, target), x.view(np.uint16), mode="wrap")
    return _cast(x, source, target)


def not_finite(x: AnyArray, dtype: str) -> tuple[int, int]:
    """How many elements of a float type are NaN, and how many infinite."""
    if dtype not in SIXTEEN:
        values = to_float32(x, dtype)
        return int(np.isnan(values).sum()), int(np.isinf(values).sum())
    infinite = np.uint16(0x7F80 if dtype == "BF16" else 0x7C00)
    bits = np.ascontiguousarray(x).reshape(-1).view(np.uint16)
    nan = inf = 0
    for start in range(0, bits.size, IN_CACHE):
        magnitude = bits[start : start + IN_CACHE] & np.uint16(0x7FFF)
        if magnitude.max() >= infinite:
            nan += int((magnitude > infinite).sum())
            inf += int((magnitude == infinite).sum())
    return nan, inf


def bf16_as_normal_f16(x: AnyArray, out: AnyArray) -> AnyArray:
    """Move the exponent of what is a normal number in both; returns where the rest is, which is not written right.

    `x` holds bfloat16 bits, `out` takes those of float16; both are flat. bfloat16 has 8 exponent bits with bias 127 over 7 of
    mantissa, float16 has 5 with bias 15 over 10: the same number has its exponent less by 112 and its mantissa three places
    higher. No bit is lost.
    """
    magnitude = x & np.uint16(0x7FFF)
    magnitude -= np.uint16(113 << 7)
    others = np.flatnonzero(magnitude >= np.uint16(30 << 7))
    np.left_shift(x, 3, out=out)  # which loses the sign
    out -= np.uint16((112 << 10) & 0xFFFF)
    out |= np.bitwise_and(x, np.uint16(0x8000), out=magnitude)
    return others


def _f16_of_bf16(x: AnyArray) -> AnyArray:
    flat = np.ascontiguousarray(x).reshape(-1)
    out = np.empty(flat.size, np.uint16)
    for start in range(0, flat.size, IN_CACHE):
        some, became = flat[start : start + IN_CACHE], out[start : start + IN_CACHE]
        others = bf16_as_normal_f16(some, became)
        became[others] = _sixteen("BF16", "F16").view(np.uint16)[some[others]]
    return out.view(np.float16).reshape(x.shape)


@cache
def _sixteen(source: str, target: str) -> AnyArray:
    """What each pattern of 16 bits becomes."""
    return _cast(np.arange(1 << 16, dtype=np.uint16).view(NUMPY[source]), source, target)


def _cast(x: AnyArray, source: str, target: str) -> AnyArray:
    with np.errstate(over="ignore", invalid="ignore"):
        if target in INTEGERS:
            return x.astype(NUMPY[target]) if source in INTEGERS else _to_integer(_values(x, source), NUMPY[target])
        if source in INTEGERS and target in ("F32", "F64"):
            return x.astype(NUMPY[target])
        values = _values(x, source)
        if target == "BF16":
            return _bf16(values)
        if target in ("F64", "F32", "F16"):
            return values.astype(NUMPY[target])
    raise Unsupported(f"the engine does not round to {target}")


def _values(x: AnyArray, dtype: str) -> AnyArray:
    """The values as float32 or float64, whichever holds them exactly; 64-bit integers as float64 rounded to odd."""
    if dtype == "BF16":
        return _float32_of_bf16(x)
    if dtype == "F16":
        return x.astype(np.float32)
    if dtype in ("I64", "U64"):
        return _float64_rounded_to_odd(x)
    if dtype in INTEGERS:
        return x.astype(np.float64)
    if dtype in ("F8_E4M3", "F8_E5M2", "F8_E8M0"):
        return _eight_bit_values(dtype)[x]
    return x


def _float32_of_bf16(x: AnyArray) -> AnyArray:
    bits = x.astype(np.uint32)
    bits <<= 16
    return bits.view(np.float32)


def _bf16(values: AnyArray) -> AnyArray:
    """Round float32 or float64 values to bfloat16 bit patterns."""
    bits = _float32_rounded_to_odd(values) if values.dtype == np.float64 else np.ascontiguousarray(values).view(np.uint32)
    rounded = bits >> 16
    rounded &= 1
    rounded += 0x7FFF
    rounded += bits
    rounded >>= 16
    result = rounded.astype(np.uint16)
    nan = (bits & 0x7FFFFFFF) > 0x7F800000
    if nan.any():
        result[nan] = (bits[nan] >> 16).astype(np.uint16) | 0x40
    return result


def _float32_rounded_to_odd(values: AnyArray) -> AnyArray:
    """float64 as float32 bits rounded to odd, so that rounding once more is as good as rounding once.

    Boldo and Melquiond, "Emulation of FMA and correctly rounded sums: proved algorithms using rounding to odd", 2008.
    """
    near = values.astype(np.float32)
    back = near.astype(np.float64)
    bits = near.view(np.uint32).copy()
    bits[np.abs(back) > np.abs(values)] -= 1
    bits[(back != values) & ~np.isnan(values)] |= 1
    return bits


def _float64_rounded_to_odd(x: AnyArray) -> AnyArray:
    """64-bit integers as float64; those beyond 53 bits keep a sticky last bit instead of being rounded."""
    sticky = (x >> 11) | ((x & 0x7FF) != 0)
    small = (x >> 52 == 0) | (x >> 52 == -1 if x.dtype.kind == "i" else False)
    return np.where(small, x.astype(np.float64), sticky.astype(np.float64) * 2048.0)


def _to_integer(values: AnyArray, target: np.dtype[Any]) -> AnyArray:
    limits = np.iinfo(target)
    rounded = np.nan_to_num(np.rint(values.astype(np.float64)), nan=0.0, posinf=np.inf, neginf=-np.inf)
    result = rounded.astype(target)
    result[rounded >= float(limits.max)] = limits.max
    result[rounded <= float(limits.min)] = limits.min
    return result


@cache
def _eight_bit_values(dtype: str) -> AnyArray:
    """The 256 values of an 8-bit float as float32 (OCP 8-bit floating point and microscaling specifications)."""
    codes = np.arange(256, dtype=np.int64)
    if dtype == "F8_E5M2":
        return (codes.astype(np.uint16) << 8).view(np.float16).astype(np.float32)
    if dtype == "F8_E8M0":
        values = np.ldexp(np.float64(1), codes - 127)
        values[255] = np.nan
        return values.astype(np.float32)
    exponent, mantissa = (codes >> 3) & 15, codes & 7
    values = np.where(exponent == 0, np.ldexp(mantissa / 8, -6), np.ldexp(1 + mantissa / 8, exponent - 7))
    values[(codes & 127) == 127] = np.nan
    return np.where(codes & 128, -values, values).astype(np.float32)
