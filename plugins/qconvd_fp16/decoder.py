"""What the bytes of an artifact stand for, and how far they may be from the source. Shares nothing with the casts."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from qconvd.api import Array, Buffer


class _Kind(NamedTuple):
    """Bits of significand (with the hidden one), exponent of the smallest normal number, largest finite number."""

    precision: int
    smallest: int
    largest: float


_KINDS = {
    "F64": _Kind(53, -1022, 1.7976931348623157e308),
    "F32": _Kind(24, -126, 3.4028234663852886e38),
    "F16": _Kind(11, -14, 65504.0),
    "BF16": _Kind(8, -126, 3.3895313892515355e38),
}
_INTEGERS = {
    "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1", "BOOL": "u1",
}  # fmt: skip


def decode(dtype: str, data: Buffer, rows: int) -> Array:
    """(rows, columns): float32 for float types (float64 for F64), integers as they are."""
    raw = bytes(memoryview(data).cast("B")) if not isinstance(data, bytes) else data
    if dtype == "BF16":
        # The upper half of a float32: two zero bytes go in front, as numbers are little-endian.
        halves = np.zeros((len(raw) // 2, 2), "<u2")
        halves[:, 1] = np.frombuffer(raw, "<u2")
        values: Array = halves.view("<f4")
    elif dtype in _KINDS:
        values = np.frombuffer(raw, f"<f{ {'F64': 8, 'F32': 4, 'F16': 2}[dtype] }")
        values = values.astype(np.float32) if dtype == "F16" else values
    else:
        values = np.frombuffer(raw, _INTEGERS[dtype])
    return values.reshape(rows, -1)


def bound(source: str, target: str, x: Array) -> Array:
    """Half a unit in the last place of the target, infinite beyond its range, zero where it holds every source value."""
    if source not in _KINDS:
        return np.zeros(x.shape, np.float32)
    old, new = _KINDS[source], _KINDS[target]
    with np.errstate(invalid="ignore", over="ignore"):
        size = np.abs(x.astype(np.float64))
        _, exponent = np.frexp(size)
        # frexp's mantissa is in [0.5, 1): the number is 1.… times two to the exponent less one.
        last = np.maximum(exponent - 1, new.smallest) - (new.precision - 1)
        half = np.ldexp(0.5, last)
        normal = size >= 2.0**new.smallest
        exact = (old.precision <= new.precision) & (normal | (old.smallest >= new.smallest))
        return np.where(np.isfinite(size) & (size > new.largest), np.inf, np.where(exact, 0.0, half)).astype(np.float32)
