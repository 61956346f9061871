"""The tensors that a linear becomes, and units that make them."""

from __future__ import annotations

import json
from math import gcd, prod
from typing import Any, TypeAlias

from qconvd.api import (
    ELEMENT_BYTES,
    Cast,
    Constant,
    Expr,
    Linear,
    OutputTensor,
    Read,
    RowSplit,
    Transpose,
    Unit,
    Whole,
)  # fmt: skip
from qconvd_compressed.schemes import BLOCK, CODEBOOK_BLOCK, NESTED_BLOCK, Codebook, Floats, Integers, LlmInt8, Scheme

STATE_BYTES = 256
"""Of bitsandbytes' JSON, where it holds a number that is not known before: the rest is filled with blanks."""
SCRATCH = 1 << 16
Stored: TypeAlias = tuple[str, str, tuple[int, ...]]
"""Name after the module's, type, shape."""
TORCH = {"F16": "float16", "BF16": "bfloat16"}


def hindrance(x: Linear, scheme: Scheme) -> str:
    """Why a linear cannot be stored so; empty if it can."""
    if not x.rows or not x.columns:
        return "there is nothing in it"
    if isinstance(scheme, Integers | Floats) and x.transposed:
        return "GPT-2's Conv1D, which compressed-tensors does not know"
    if isinstance(scheme, Integers):
        values = 32 // scheme.bits
        if not scheme.activations and x.columns % values:
            return f"{x.columns} inputs do not fill words of {values} values"
        if not scheme.symmetric and x.rows % values:
            return f"the zero points of {x.rows} outputs do not fill words of {values}"
        if x.columns % scheme.width(x.columns):
            return f"the group size {scheme.group_size} does not divide {x.columns} inputs"
    if isinstance(scheme, Floats) and scheme.blocks and x.columns % BLOCK:
        return f"blocks of {BLOCK} do not divide {x.columns} inputs"
    return ""


def units(x: Linear, scheme: Scheme, options: dict[str, Any]) -> list[Unit]:
    """The unit that quantizes a linear, and those of tensors beside it that are known already."""
    expr: Expr = Transpose(Read.of(x.tensor)) if x.transposed else Read.of(x.tensor)
    # bitsandbytes computes LLM.int8() in float16, whatever the model is in.
    if isinstance(scheme, LlmInt8) or expr.dtype == "F32":
        expr = expr if expr.dtype == "F16" else Cast(expr, "F16")
    make = {Integers: _integers, Floats: _floats, LlmInt8: _llm_int8, Codebook: _codebook}[type(scheme)]
    return make(x, expr, scheme, options)  # type: ignore[operator, no-any-return]


def _integers(x: Linear, expr: Expr, scheme: Integers, options: dict[str, Any]) -> list[Unit]:
    width = scheme.width(x.columns)
    groups = x.columns // width
    said = {"scheme": "integers", "bits": scheme.bits, "group_size": width, **options}
    said |= {"packed": not scheme.activations, "symmetric": scheme.symmetric, "search": scheme.search}
    packed = ("weight_packed", "I32", (x.rows, x.columns * scheme.bits // 32))
    stored: list[Stored] = [
        ("weight", "I8", (x.rows, x.columns)) if scheme.activations else packed,
        ("weight_scale", expr.dtype, (x.rows, groups)),
    ]
    if not scheme.symmetric:
        stored.append(("weight_zero_point", "I32", (x.rows * scheme.bits // 32, groups)))
    split = RowSplit(single=True) if scheme.symmetric else RowSplit(32 // scheme.bits)
    made = [_unit(x, expr, stored, split, said)]
    if not scheme.activations:
        shape = b"".join(n.to_bytes(8, "little") for n in (x.rows, x.columns))
        made.append(_known(x, f"{x.module}.weight_shape", "I64", (2,), shape))
    return made


def _floats(x: Linear, expr: Expr, scheme: Floats, options: dict[str, Any]) -> list[Unit]:
    height, width = (BLOCK, BLOCK) if scheme.blocks else (1, x.columns)
    scales = (-(-x.rows // height), -(-x.columns // width))
    stored: list[Stored] = [("weight", "F8_E4M3", (x.rows, x.columns)), ("weight_scale", expr.dtype, scales)]
    said = {"scheme": "floats", "height": height, "width": width, **options}
    split = Whole() if x.rows % height else RowSplit(height, single=height == 1)
    return [_unit(x, expr, stored, split, said)]


def _llm_int8(x: Linear, expr: Expr, scheme: LlmInt8, options: dict[str, Any]) -> list[Unit]:  # noqa: ARG001
    stored: list[Stored] = [("weight", "I8", (x.rows, x.columns)), ("SCB", "F32", (x.rows,))]
    said = {"scheme": "llm_int8", **options}
    # 0: rows one after the other.
    return [_unit(x, expr, stored, RowSplit(single=True), said), _known(x, f"{x.module}.weight_format", "U8", (), b"\0")]


def _codebook(x: Linear, expr: Expr, scheme: Codebook, options: dict[str, Any]) -> list[Unit]:
    from qconvd_compressed.tables import dynamic, numbers

    weights = x.rows * x.columns
    blocks = -(-weights // CODEBOOK_BLOCK)
    name = f"{x.module}.weight"
    state = f"weight.quant_state.bitsandbytes__{scheme.type}"
    stored: list[Stored] = [("weight", "U8", ((weights + 1) // 2, 1))]
    said = {"scheme": "codebook", "type": scheme.type, **options}
    known = [_known(x, f"{name}.quant_map", "F32", (16,), numbers(scheme.type).astype("<f4").tobytes())]
    about = {
        "quant_type": scheme.type, "blocksize": CODEBOOK_BLOCK, "dtype": TORCH[expr.dtype], "shape": [x.rows, x.columns],
    }  # fmt: skip
    if scheme.double:
        about |= {"nested_blocksize": NESTED_BLOCK, "nested_dtype": "float32"}
        stored += [
            ("weight.absmax", "U8", (blocks,)),
            ("weight.nested_absmax", "F32", (-(-blocks // NESTED_BLOCK),)),
            (state, "U8", (STATE_BYTES,)),
        ]
        known.append(_known(x, f"{name}.nested_quant_map", "F32", (256,), dynamic().astype("<f4").tobytes()))
        # The mean over all blocks is part of what is stored.
        return [_unit(x, expr, stored, Whole(), {**said, "state": json.dumps(about)}), *known]
    text = json.dumps(about).encode()
    known.append(_known(x, f"{x.module}.{state}", "U8", (len(text),), text))
    stored.append(("weight.absmax", "F32", (blocks,)))
    # Blocks run on from row to row: a chunk must begin with one.
    multiple = CODEBOOK_BLOCK // gcd(x.columns, CODEBOOK_BLOCK)
    split = Whole() if x.rows % multiple else RowSplit(multiple, single=multiple == 1)
    return [_unit(x, expr, stored, split, said), *known]


def _unit(x: Linear, expr: Expr, stored: list[Stored], rows: RowSplit | Whole, options: dict[str, Any]) -> Unit:
    outputs = tuple(
        OutputTensor(f"{x.module}.{name}", dtype, shape, prod(shape) * ELEMENT_BYTES[dtype]) for name, dtype, shape in stored
    )
    # A row as float32, as it is read, its codes; of whole tensors the blocks' largest in a few steps.
    scratch = SCRATCH + 16 * x.columns + (x.rows * x.columns // 2 if isinstance(rows, Whole) else 0)
    return Unit(x.tensor.name, x.layer, (expr,), outputs, rows, memory={"cpu": scratch}, options=options)


def _known(x: Linear, name: str, dtype: str, shape: tuple[int, ...], data: bytes) -> Unit:
    """A tensor whose content the plan knows."""
    return Unit(name, x.layer, (Constant.of(dtype, shape, data),), (OutputTensor(name, dtype, shape, len(data)),))
