"""Names and sizes of the element types that tensors are stored in.

Element types carry the names that safetensors uses; block types carry the names that GGML uses. A block type stores a row
of `n` weights as `n / block` blocks of `size` bytes.
Source: safetensors' format page; ggml's `ggml_type_traits` (see docs/reference/formats).
"""

from __future__ import annotations

from typing import Any, NamedTuple

from qconvd.errors import Unsupported
from qconvd.ggml_types import TYPES


class Storage(NamedTuple):
    """How one row is stored: `size` bytes for every `block` weights."""

    block: int
    size: int


ELEMENT_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1,
}  # fmt: skip

FLOATS = frozenset({"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"})

BLOCKS = {t.name: Storage(t.block, t.size) for t in TYPES.values() if t.block > 1}


def storage(dtype: str) -> Storage:
    """The storage of a type by name; raises `Unsupported` for a name that nobody registered."""
    if dtype in BLOCKS:
        return BLOCKS[dtype]
    if dtype in ELEMENT_BYTES:
        return Storage(1, ELEMENT_BYTES[dtype])
    raise Unsupported(f"unknown tensor type {dtype!r}", fix=f"known types: {', '.join((*ELEMENT_BYTES, *BLOCKS))}")


def row_bytes(dtype: str, columns: int) -> int:
    """Bytes of one row of `columns` weights; raises `Unsupported` where the blocks do not divide the row."""
    block, size = storage(dtype)
    if columns % block:
        raise Unsupported(f"a row of {columns} weights is no multiple of {dtype}'s block of {block}")
    return columns // block * size


def as_float32(x: Any, dtype: str) -> Any:
    """The values of a numpy array that holds `dtype` as the engine hands it over (BF16: uint16 bit patterns), as a new
    float32 array; F64 and large integers are rounded.

    Imports numpy only when it is called.
    """
    from qconvd.engine.elements import to_float32

    return to_float32(x, dtype)


def bf16_as_normal_f16(x: Any, out: Any) -> Any:
    """Bits of bfloat16 (uint16, flat) as those of float16 in `out`, where they are a normal number in both; returns the places
    of the others, which are not written right.

    Imports numpy only when it is called.
    """
    from qconvd.engine import elements

    return elements.bf16_as_normal_f16(x, out)
