"""`imatrix: auto`: an importance matrix that is gathered while converting. Which tensors of the checkpoint are behind it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import TypeAlias

from qconvd.api import (
    Affine,
    CalibrationSpec,
    Cast,
    Concat,
    Dequantize,
    Expr,
    ModelInfo,
    Permute,
    Read,
    Reshape,
    Slice,
    Stack,
    StatRequest,
    Transpose,
    Unit,
    calibration_spec,
    reads,
)
from qconvd_gguf.families.base import Metadata
from qconvd_gguf.mixes.roles import EMBEDDINGS, OUTPUT
from qconvd_gguf.options import GgufOptions

Made: TypeAlias = Mapping[frozenset[str], str]
"""The weights of a quantized model by the names of the tensors that each is computed from."""


def weighed(units: Sequence[Unit], using: Mapping[str, Unit], model: ModelInfo, options: GgufOptions) -> tuple[
    tuple[Unit, ...], CalibrationSpec, Metadata, tuple[str, ...]
]:  # fmt: skip
    """The units with their requests, what is run through the model, the metadata, and the tensors that do without.

    `using`: the units whose types look at importance.
    """
    linears = fed({name: unit.inputs[0] for name, unit in using.items()}, model)
    spec = calibration_spec(options.calibration, model, linears)
    asking = tuple(_asking(unit) if unit.id in linears else unit for unit in units)
    keys: Metadata = [
        ("quantize.imatrix.file", "str", f"{model.name}-imatrix.gguf"),
        ("quantize.imatrix.dataset", "str", spec.dataset),
        ("quantize.imatrix.entries_count", "u32", len(linears)),
        ("quantize.imatrix.chunks_count", "u32", spec.samples),
    ]
    return asking, spec, keys, tuple(name for name in using if name not in linears)


def fed(tensors: Mapping[str, Expr], model: ModelInfo) -> dict[str, tuple[str, ...]]:
    """Those of GGUF's tensors that text goes through, with the checkpoint's weights behind each.

    Embeddings and output are left out, as llama-imatrix leaves them out.
    """
    made = {reads(t.made): t.name for t in model.tensors.values() if t.made is not None}
    found = {name: linears_of(expr, made) for name, expr in tensors.items() if name not in (*EMBEDDINGS, OUTPUT)}
    return {name: linears for name, linears in found.items() if linears}


def linears_of(expr: Expr, made: Made | None = None) -> tuple[str, ...]:
    """The checkpoint's weights whose inputs are this tensor's columns, expert after expert.

    Empty where columns are moved (MLA's split of a transposed matrix): what they are multiplied with, no linear is fed.
    `made`: names of weights that are computed from packed ones, without which these have none.
    """
    if isinstance(expr, Read):
        return (expr.tensor,) if len(expr.shape) > 1 else ()
    if isinstance(expr, Dequantize):
        weight = (made or {}).get(reads(expr))
        return (weight,) if weight else ()
    if isinstance(expr, Affine | Cast):
        return linears_of(expr.x, made)
    if isinstance(expr, Transpose):
        # GPT-2 stores its linears as (in, out).
        return linears_of(expr.x, made) if isinstance(expr.x, Read) and len(expr.shape) == 2 else ()
    last = len(expr.shape) - 1
    if isinstance(expr, Slice):
        return linears_of(expr.x, made) if expr.axis != last else ()
    if isinstance(expr, Permute):
        return linears_of(expr.x, made) if expr.axes[-1] == last else ()
    if isinstance(expr, Reshape):
        return linears_of(expr.x, made) if expr.shape[-1] == expr.x.shape[-1] else ()
    if isinstance(expr, Concat):
        # Joined along their rows they have one input.
        return linears_of(expr.xs[0], made) if expr.axis != last else ()
    if isinstance(expr, Stack):
        each = [linears_of(x, made) for x in expr.xs]
        return tuple(one[0] for one in each) if all(len(one) == 1 for one in each) else ()
    return ()


def _asking(unit: Unit) -> Unit:
    shape = unit.inputs[0].shape
    nbytes = 4 * shape[-1] * prod(shape[:-2])
    memory = {**unit.memory, "cpu": unit.memory["cpu"] + nbytes}
    return replace(unit, statistics=(StatRequest(unit.id, "mean_square"),), memory=memory)
