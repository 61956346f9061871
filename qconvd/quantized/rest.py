"""Everything of a model that is not quantized: it keeps its 16-bit type, as other writers leave it.

Of a model in float32 all becomes float16. `decode_rest` shares nothing with `encode_rest`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

from qconvd.checkpoints.base import TensorInfo
from qconvd.dtypes import ELEMENT_BYTES, FLOATS
from qconvd.engine.expr import Cast, Expr, Read
from qconvd.engine.plan import Array, Buffer, Encoded, OutputTensor, Unit, UnitReport
from qconvd.errors import Unsupported
from qconvd.formats import check_report
from qconvd.quantized.linears import layer_of

WIDE = ("F32", "F64")


def in_float32(tensors: Iterable[TensorInfo]) -> bool:
    """Whether a model is in float32: all of its linears are."""
    return all(t.dtype == "F32" for t in tensors)


def note_on_types(cast: bool) -> tuple[str, ...]:
    """For a plan's notes: what becomes of a model in float32 besides being quantized."""
    return ("the model is in float32; what of that is not quantized becomes float16",) if cast else ()


def kept_as(tensor: TensorInfo, cast: bool) -> str:
    """The type of what is not quantized. `cast`: the model is in float32."""
    return "F16" if cast and tensor.dtype in WIDE else tensor.dtype


def rest_unit(tensor: TensorInfo, format: str, cast: bool, options: Mapping[str, Any]) -> Unit:
    """A tensor that goes along as it is or is cast. Raises `Unsupported` for packed and 8-bit types."""
    if tensor.dtype not in ELEMENT_BYTES or tensor.dtype.startswith("F8"):
        raise Unsupported(
            f"is stored as {tensor.dtype}; {format} is made from unquantized weights",
            where=tensor.name,
            fix="convert from the model's 16-bit release",
        )
    expr: Expr = Read.of(tensor)
    if (dtype := kept_as(tensor, cast)) != tensor.dtype:
        expr = Cast(expr, dtype)
    nbytes = tensor.nbytes // ELEMENT_BYTES[tensor.dtype] * ELEMENT_BYTES[dtype]
    output = OutputTensor(tensor.name, dtype, tensor.shape, nbytes)
    return Unit(tensor.name, layer_of(tensor.name), (expr,), (output,), options=options)


def encode_rest(unit: Unit, x: Array) -> Encoded:
    """Rows in the type that the plan's expression gave them already. Raises `QconvdError` for a NaN that is refused."""
    from qconvd.engine.elements import not_finite

    report = UnitReport(weights=x.size)
    if (dtype := unit.inputs[0].dtype) in FLOATS:
        nan, inf = not_finite(x, dtype)
        report = report._replace(nan=nan, inf=inf)
        check_report(unit, report, unit.options)
    return Encoded((x.reshape(-1),), report)


def decode_rest(unit: Unit, rows: tuple[int, int], data: Buffer) -> Array:
    """What was copied, as (rows, columns): floats as float32, everything else as it is."""
    import numpy as np

    dtype = unit.outputs[0].dtype
    if dtype == "BF16":
        # The upper half of a float32: two zero bytes go in front, as numbers are little-endian.
        halves = np.zeros((len(data) // 2, 2), "<u2")
        halves[:, 1] = np.frombuffer(data, "<u2")
        values: Array = halves.view("<f4")
    elif dtype in ("F16", "F32", "F64"):
        values = np.frombuffer(data, {"F16": "<f2", "F32": "<f4", "F64": "<f8"}[dtype]).astype(np.float32)
    else:
        names = {"I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U64": "<u8", "U32": "<u4", "U16": "<u2"}
        values = np.frombuffer(data, names.get(dtype, "u1"))
    return values.reshape(rows[1] - rows[0], -1)


def bound_rest(unit: Unit, x: Array) -> Array:
    """The bound of what was copied: it must be the same."""
    import numpy as np

    return np.zeros(x.shape, np.float32 if unit.inputs[0].dtype in FLOATS else x.dtype)


class LinearsAndRest(ABC):
    """How formats are verified that quantize linears and keep the rest: linears by code of their own, the rest as stored."""

    LINEAR: ClassVar[str]
    """A key that the options of a linear's unit have, and those of the rest have not."""

    @abstractmethod
    def decode_linear(self, unit: Unit, rows: tuple[int, int], data: Sequence[Buffer]) -> Array:
        """Some rows of a linear as float32, by code that shares nothing with what encoded them."""

    @abstractmethod
    def bound_linear(self, unit: Unit, x: Array) -> Array:
        """How far decoded weights may be from `x`, (rows, columns)."""

    def decode(self, unit: Unit, rows: tuple[int, int], data: Sequence[Buffer]) -> Sequence[Array]:
        """See `Format.decode`."""
        return (self.decode_linear(unit, rows, data) if self.LINEAR in unit.options else decode_rest(unit, rows, data[0]),)

    def bound(
        self,
        unit: Unit,
        rows: tuple[int, int],  # noqa: ARG002
        x: Sequence[Array],
        stats: Mapping[str, Array],  # noqa: ARG002
    ) -> Sequence[Array]:
        """See `Format.bound`."""
        return (self.bound_linear(unit, x[0]) if self.LINEAR in unit.options else bound_rest(unit, x[0]),)
