"""Expressions: how an input of a unit is made from the tensors of a checkpoint, as data.

An expression is a frozen dataclass. Its shape and element type are derived, so a plan can be checked, priced and stored
without reading a weight; `engine/evaluate.py` computes any range of its rows from byte ranges of the source.

Rows: a tensor of shape `(a, b, c)` has `a * b` rows of `c` columns; a vector is one row.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from pydantic import Field
from typing_extensions import TypeAliasType

from qconvd.errors import Unsupported

if TYPE_CHECKING:
    from qconvd.checkpoints.base import TensorInfo

Shape: TypeAlias = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Read:
    """A tensor of the checkpoint as it is stored (`ModelInfo.stored`)."""

    tensor: str
    dtype: str
    shape: Shape
    op: Literal["read"] = "read"

    @staticmethod
    def of(tensor: TensorInfo) -> Expr:
        """A tensor of the model, from wherever and however it is stored."""
        return tensor.made or Read(tensor.name, tensor.dtype, tensor.shape)


@dataclass(frozen=True, slots=True)
class Slice:
    """`x[start:stop]` along one axis."""

    x: Expr
    axis: int
    start: int
    stop: int
    op: Literal["slice"] = "slice"

    def __post_init__(self) -> None:
        _check_axis(self.axis, self.x.shape)
        if not 0 <= self.start < self.stop <= self.x.shape[self.axis]:
            raise Unsupported(f"slice {self.start}:{self.stop} of an axis of {self.x.shape[self.axis]}")

    @property
    def dtype(self) -> str:
        return self.x.dtype

    @property
    def shape(self) -> Shape:
        return _with_axis(self.x.shape, self.axis, self.stop - self.start)


@dataclass(frozen=True, slots=True)
class Concat:
    """Tensors joined along an existing axis."""

    xs: tuple[Expr, ...]
    axis: int
    op: Literal["concat"] = "concat"

    def __post_init__(self) -> None:
        for x in self.xs:
            _check_axis(self.axis, x.shape)
        rests = {(x.dtype, _with_axis(x.shape, self.axis, 0)) for x in self.xs}
        if len(rests) != 1:
            raise Unsupported(f"tensors that do not fit are joined along axis {self.axis}: {sorted(rests)}")

    @property
    def dtype(self) -> str:
        return self.xs[0].dtype

    @property
    def shape(self) -> Shape:
        return _with_axis(self.xs[0].shape, self.axis, sum(x.shape[self.axis] for x in self.xs))


@dataclass(frozen=True, slots=True)
class Stack:
    """Equal tensors joined along a new first axis (the experts of a mixture)."""

    xs: tuple[Expr, ...]
    op: Literal["stack"] = "stack"

    def __post_init__(self) -> None:
        if len({(x.dtype, x.shape) for x in self.xs}) != 1:
            raise Unsupported("tensors of different shapes or types are stacked")

    @property
    def dtype(self) -> str:
        return self.xs[0].dtype

    @property
    def shape(self) -> Shape:
        return (len(self.xs), *self.xs[0].shape)


@dataclass(frozen=True, slots=True)
class Reshape:
    """The same elements in the same order under another shape."""

    x: Expr
    shape: Shape
    op: Literal["reshape"] = "reshape"

    def __post_init__(self) -> None:
        if prod(self.shape) != prod(self.x.shape):
            raise Unsupported(f"{self.x.shape} does not reshape to {self.shape}")

    @property
    def dtype(self) -> str:
        return self.x.dtype


@dataclass(frozen=True, slots=True)
class Permute:
    """Axes in another order, as numpy's `transpose(axes)`."""

    x: Expr
    axes: tuple[int, ...]
    op: Literal["permute"] = "permute"

    def __post_init__(self) -> None:
        if sorted(self.axes) != list(range(len(self.x.shape))):
            raise Unsupported(f"axes {self.axes} are no permutation of {len(self.x.shape)} axes")

    @property
    def dtype(self) -> str:
        return self.x.dtype

    @property
    def shape(self) -> Shape:
        return tuple(self.x.shape[a] for a in self.axes)


@dataclass(frozen=True, slots=True)
class Transpose:
    """The last two axes exchanged (GPT-2 stores its linears as [in, out])."""

    x: Expr
    op: Literal["transpose"] = "transpose"

    def __post_init__(self) -> None:
        if len(self.x.shape) < 2:
            raise Unsupported(f"a tensor of shape {self.x.shape} has no two axes to exchange")

    @property
    def dtype(self) -> str:
        return self.x.dtype

    @property
    def shape(self) -> Shape:
        *rest, a, b = self.x.shape
        return (*rest, b, a)


@dataclass(frozen=True, slots=True)
class Repeat:
    """Every element of an axis `times` times in a row, as numpy's `repeat` (grouped heads to plain heads)."""

    x: Expr
    axis: int
    times: int
    op: Literal["repeat"] = "repeat"

    def __post_init__(self) -> None:
        _check_axis(self.axis, self.x.shape)
        if self.times < 1:
            raise Unsupported(f"an axis is repeated {self.times} times")

    @property
    def dtype(self) -> str:
        return self.x.dtype

    @property
    def shape(self) -> Shape:
        return _with_axis(self.x.shape, self.axis, self.x.shape[self.axis] * self.times)


@dataclass(frozen=True, slots=True)
class Affine:
    """`x * scale + offset` in float32, in that order (gemma stores its norms minus one)."""

    x: Expr
    scale: float = 1.0
    offset: float = 0.0
    op: Literal["affine"] = "affine"

    @property
    def dtype(self) -> str:
        return "F32"

    @property
    def shape(self) -> Shape:
        return self.x.shape


@dataclass(frozen=True, slots=True)
class Cast:
    """Another element type, rounded to nearest even."""

    x: Expr
    dtype: str
    op: Literal["cast"] = "cast"

    @property
    def shape(self) -> Shape:
        return self.x.shape


@dataclass(frozen=True, slots=True)
class Constant:
    """Values that no tensor of the checkpoint holds (llama 3's rope factors). `data` is base64 of little-endian bytes."""

    dtype: str
    shape: Shape
    data: str
    op: Literal["constant"] = "constant"

    @staticmethod
    def of(dtype: str, shape: Shape, data: bytes) -> Constant:
        return Constant(dtype, shape, base64.b64encode(data).decode())

    def payload(self) -> bytes:
        """The values as little-endian bytes."""
        return base64.b64decode(self.data)


@dataclass(frozen=True, slots=True)
class Dequantize:
    """Packed tensors of a quantized source as plain numbers; `scheme` names who knows how (`gptq`, `ggml`, …)."""

    xs: tuple[Expr, ...]
    scheme: str
    shape: Shape
    dtype: str = "F32"
    options: dict[str, Any] | None = None
    op: Literal["dequantize"] = "dequantize"


@dataclass(frozen=True, slots=True)
class Named:
    """Arithmetic that a plugin registered under a name (AWQ's fold of a norm into a linear)."""

    name: str
    xs: tuple[Expr, ...]
    shape: Shape
    dtype: str
    options: dict[str, Any] | None = None
    op: Literal["named"] = "named"


Expr = TypeAliasType(
    "Expr",
    Annotated[
        Read | Slice | Concat | Stack | Reshape | Permute | Transpose | Repeat | Affine | Cast | Constant | Dequantize | Named,
        Field(discriminator="op"),
    ],
)


def children(expr: Expr) -> tuple[Expr, ...]:
    """The expressions that this one is made from."""
    if isinstance(expr, Concat | Stack | Dequantize | Named):
        return expr.xs
    if isinstance(expr, Read | Constant):
        return ()
    return (expr.x,)


def reads(expr: Expr) -> frozenset[str]:
    """The names of the source tensors that an expression needs."""
    if isinstance(expr, Read):
        return frozenset({expr.tensor})
    return frozenset().union(*(reads(x) for x in children(expr)))


def dequantized(expr: Expr) -> bool:
    """Whether the numbers were quantized once already, wholly or in part."""
    return isinstance(expr, Dequantize) or any(dequantized(x) for x in children(expr))


def rows_columns(shape: Shape) -> tuple[int, int]:
    """A shape as (rows, columns): every axis but the last flattened; a vector is one row, a scalar one of one."""
    return prod(shape[:-1]), (shape[-1] if shape else 1)


def _check_axis(axis: int, shape: Shape) -> None:
    if not 0 <= axis < len(shape):
        raise Unsupported(f"a tensor of shape {shape} has no axis {axis} (axes count from the front)")


def _with_axis(shape: Shape, axis: int, size: int) -> Shape:
    return (*shape[:axis], size, *shape[axis + 1 :])
