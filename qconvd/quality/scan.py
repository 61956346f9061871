"""One pass over a file's bytes: its SHA-256, NaN and infinities per tensor, and what lies between tensors.

Memory is bounded: 4 MiB are held at a time, whatever the file's size.
"""

from __future__ import annotations

import hashlib
import os
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from qconvd.checkpoints.base import TensorInfo
from qconvd.engine.elements import IN_CACHE
from qconvd.errors import BadCheckpoint

PIECE = 4 << 20
Bytes: TypeAlias = npt.NDArray[np.uint8]


class NonFinite(NamedTuple):
    """How many values of a tensor (of a packed type: scales of its blocks) are NaN and infinite."""

    nan: int = 0
    inf: int = 0


@dataclass
class FileScan:
    """What a pass over a file found."""

    sha256: str = ""
    nbytes: int = 0
    non_finite: dict[str, NonFinite] = field(default_factory=dict)
    """Only tensors that have any."""
    not_scanned: dict[str, str] = field(default_factory=dict)
    """Tensors of a type whose scales are not known here, and the type."""


class _Float(NamedTuple):
    """A number's bits: numpy type, mask of the exponent, mask of the mantissa."""

    dtype: str
    exponent: int
    mantissa: int


_FLOATS = {
    "F64": _Float("<u8", 0x7FF << 52, (1 << 52) - 1),
    "F32": _Float("<u4", 0x7F800000, 0x7FFFFF),
    "F16": _Float("<u2", 0x7C00, 0x3FF),
    "BF16": _Float("<u2", 0x7F80, 0x7F),
    "F8_E5M2": _Float("u1", 0x7C, 0x3),
}
# Bytes of a block and where its float16 scales lie in it. Source: the block structs in ggml-common.h.
_SCALES: dict[str, tuple[int, tuple[int, ...]]] = {
    "Q4_0": (18, (0,)), "Q4_1": (20, (0, 2)), "Q5_0": (22, (0,)), "Q5_1": (24, (0, 2)), "Q8_0": (34, (0,)),
    "Q2_K": (84, (80, 82)), "Q3_K": (110, (108,)), "Q4_K": (144, (0, 2)), "Q5_K": (176, (0, 2)), "Q6_K": (210, (208,)),
    "IQ4_NL": (18, (0,)), "IQ4_XS": (136, (0,)), "IQ3_S": (110, (0,)), "IQ3_XXS": (98, (0,)), "IQ2_S": (82, (0,)),
    "IQ2_XS": (74, (0,)), "IQ2_XXS": (66, (0,)), "IQ1_S": (50, (0,)), "TQ1_0": (54, (52,)), "TQ2_0": (66, (64,)),
}  # fmt: skip
_IQ1_M, _IQ1_M_SCALES = 56, 48
"""Bytes of a block, and where its four words lie whose highest 4 bits, the first word's lowest, make its float16 scale."""
# ggml reads every exponent byte of MXFP4 as a power of two, also 255, which is NaN in the OCP specification.
_WITHOUT = frozenset({"MXFP4", "I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL", "F8_E8M0"})


class Follows(Protocol):
    """What a file's bytes are handed to, from front to back."""

    def update(self, data: Any) -> None: ...


def scan(
    path: Path,
    tensors: Sequence[TensorInfo],
    instead: Follows | None = None,
    between: Sequence[tuple[int, int]] = (),
) -> FileScan:
    """Read a file from front to back. `tensors` are its tensors in the order of their offsets.

    `between` are ranges between tensors that hold the container's own data, in order.
    The SHA-256 is left empty if something is to look at the bytes `instead`, because it is known what they must be.

    Raises `BadCheckpoint` if tensors overlap or lie beyond the end, or if bytes between or behind them are not zero: those
    are padding, and what is in them was not meant to be written.
    """
    result = FileScan()
    made = hashlib.sha256()
    digest: Follows = instead or made
    buffer = np.empty(PIECE, np.uint8)
    with path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        at = min((t.offset for t in tensors), default=size)
        for piece in _pieces(file, at, buffer, PIECE, path):
            digest.update(piece)
        for tensor in tensors:
            if tensor.offset < at or tensor.offset + tensor.nbytes > size:
                what = "overlaps the one before it" if tensor.offset < at else f"ends behind the file's {size} bytes"
                raise BadCheckpoint(what, where=f"{path}, tensor {tensor.name}")
            _padding(file, at, tensor.offset, between, buffer, digest, path)
            _tensor(file, tensor, buffer, digest, path, result)
            at = tensor.offset + tensor.nbytes
        if tensors:
            _padding(file, at, size, between, buffer, digest, path)
    result.sha256, result.nbytes = "" if instead else made.hexdigest(), size
    return result


def _tensor(file: Any, tensor: TensorInfo, buffer: Bytes, digest: Follows, path: Path, result: FileScan) -> None:
    unit, count = _counter(tensor.dtype)
    nan = inf = 0
    for piece in _pieces(file, tensor.nbytes, buffer, PIECE // unit * unit, path):
        digest.update(piece)
        if count and not len(piece) % unit:
            more = count(piece)
            nan, inf = nan + more.nan, inf + more.inf
    if nan or inf:
        result.non_finite[tensor.name] = NonFinite(nan, inf)
    if count is None and tensor.dtype not in _WITHOUT:
        result.not_scanned[tensor.name] = tensor.dtype


def _padding(
    file: Any, at: int, stop: int, between: Sequence[tuple[int, int]], buffer: Bytes, digest: Follows, path: Path
) -> None:
    """The bytes from `at` to `stop`: zeros, except for ranges that are `between`."""
    first = bisect_left(between, (at, at))
    for start, end in between[first : bisect_left(between, (stop, stop))]:
        _zeros(file, start - at, buffer, digest, path)
        for piece in _pieces(file, end - start, buffer, PIECE, path):
            digest.update(piece)
        at = end
    _zeros(file, stop - at, buffer, digest, path)


def _zeros(file: Any, nbytes: int, buffer: Bytes, digest: Follows, path: Path) -> None:
    for piece in _pieces(file, nbytes, buffer, PIECE, path):
        digest.update(piece)
        if piece.any():
            end = file.tell()
            raise BadCheckpoint(f"bytes {end - len(piece)} to {end - 1} are between tensors and not all zero", where=str(path))


def _pieces(file: Any, nbytes: int, buffer: Bytes, step: int, path: Path) -> Any:
    """The next `nbytes` of a file in pieces of `step`; each is overwritten by the next."""
    while nbytes:
        piece = buffer[: min(step, nbytes)]
        filled = 0
        while filled < len(piece):
            got = file.readinto(piece[filled:].data)
            if not got:
                raise BadCheckpoint("became shorter while it was read", where=str(path))
            filled += got
        nbytes -= filled
        yield piece


def _counter(dtype: str) -> tuple[int, Callable[[Bytes], NonFinite] | None]:
    """Bytes of what may not be split, and who counts NaN and infinities in such pieces."""
    if dtype in _FLOATS:
        kind = _FLOATS[dtype]
        return np.dtype(kind.dtype).itemsize, lambda piece: _count(piece.view(kind.dtype), kind)
    if dtype == "F8_E4M3":
        return 1, _count_e4m3
    if dtype == "IQ1_M":
        return _IQ1_M, lambda piece: _count(_gather(piece.reshape(-1, _IQ1_M)), _FLOATS["F16"])
    if dtype in _SCALES:
        size, places = _SCALES[dtype]
        return size, lambda piece: _count_scales(piece.reshape(-1, size), places)
    return 1, None


def _count(bits: npt.NDArray[Any], kind: _Float) -> NonFinite:
    odd = bits[(bits & bits.dtype.type(kind.exponent)) == kind.exponent]
    infinite = int(((odd & bits.dtype.type(kind.mantissa)) == 0).sum())
    return NonFinite(odd.size - infinite, infinite)


def _count_e4m3(codes: Bytes) -> NonFinite:
    """0x7f, with either sign, is the only NaN; there is no infinity (OCP 8-bit floating point specification)."""
    nan = 0
    for start in range(0, codes.size, IN_CACHE):
        size = codes[start : start + IN_CACHE] & np.uint8(0x7F)
        if size.max() == 0x7F:
            nan += int((size == 0x7F).sum())
    return NonFinite(nan, 0)


def _gather(blocks: Bytes) -> npt.NDArray[np.uint16]:
    words = np.ascontiguousarray(blocks[:, _IQ1_M_SCALES:]).view("<u2") >> 12
    return (words[:, 0] | words[:, 1] << 4 | words[:, 2] << 8 | words[:, 3] << 12).astype(np.uint16)


def _count_scales(blocks: Bytes, places: Sequence[int]) -> NonFinite:
    counts = [_count(np.ascontiguousarray(blocks[:, p : p + 2]).view("<u2"), _FLOATS["F16"]) for p in places]
    return NonFinite(sum(c.nan for c in counts), sum(c.inf for c in counts))
