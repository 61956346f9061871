"""The format `fp16`: its options and its plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from math import prod
from typing import Any, ClassVar, Literal

from pydantic import Field

from qconvd.api import (
    ELEMENT_BYTES,
    FLOATS,
    Array,
    Buffer,
    ContainerSpec,
    Device,
    Encoder,
    Expr,
    FileSize,
    FormatOptions,
    GgmlSource,
    LeftOut,
    ModelInfo,
    NameParts,
    OutputTensor,
    Plan,
    Reader,
    Unit,
    Unsupported,
    container,
    safetensors_index,
)
from qconvd_fp16.config_json import with_dtype
from qconvd_fp16.seen import LAYER, seen

STORED = {"fp16": "F16", "bf16": "BF16", "f32": "F32"}
IN_CONFIG = {"fp16": "float16", "bf16": "bfloat16", "f32": "float32"}
CASTABLE = FLOATS - {"F8_E4M3", "F8_E5M2"}
SCRATCH = 2 << 20
"""Bytes that one call of the encoder uses beyond its input and output (chunks of 32,768 elements)."""


class CastOptions(GgmlSource):
    """What a recipe may say under `fp16`."""

    dtype: Literal["fp16", "bf16", "f32"] = Field("fp16", description="The type that every float tensor is cast to.")
    on_overflow: Literal["report", "refuse", "clamp"] = Field(
        "report",
        description="Weights beyond the type's range (65504 for fp16): let them become infinite and count them in the "
        "manifest, fail and name the tensor, or replace them by the largest number.",
    )
    keep: tuple[str, ...] = Field(
        (), description="Name patterns of tensors that keep the model's own type, e.g. `['*.norm.weight']`."
    )
    max_shard_size: FileSize = Field(
        5_000_000_000, gt=0, description="Weights above this size are split into several files with an index, e.g. `5GB`."
    )


ADVICE = {
    "fp16": "for GPUs without bfloat16, and to quantize from",
    "bf16": "for GPUs, and to quantize from",
    "f32": "for measuring, and for CPUs without half precision",
}


class PlainCast:
    """Every float tensor in one type; integers, tokenizer and all other files as they are."""

    name: ClassVar[str] = "fp16"
    version: ClassVar[str] = "1"
    summary: ClassVar[str] = "safetensors in float16, bfloat16 or float32"
    Options: ClassVar[type[FormatOptions]] = CastOptions
    aliases: ClassVar[Mapping[str, Mapping[str, Any]]] = {"bf16": {"dtype": "bf16"}, "f32": {"dtype": "f32"}}
    devices: ClassVar[Sequence[str]] = ("cpu",)
    rows_alike = True

    def from_text(self, text: str) -> Mapping[str, Any]:
        """`fp16: bf16`. Raises ValueError for any other text than the three types."""
        if text not in STORED:
            raise ValueError(f"fp16 knows no type {text!r}, only {', '.join(STORED)}")
        return {"dtype": text}

    def expand(self, options: CastOptions) -> Sequence[CastOptions]:
        return (options,)

    def name_parts(self, options: CastOptions) -> NameParts:
        return NameParts("fp16", options.dtype)

    def advice(self, variant: str) -> str:
        return ADVICE.get(variant, "")

    def plan(self, model: ModelInfo, options: CastOptions) -> Plan:
        """One unit per tensor, in the order of the layers. Raises `Unsupported` for packed or 8-bit weights."""
        target = STORED[options.dtype]
        found = seen(model, options.said)
        if not found.tensors:
            raise Unsupported("the model has no tensors", where=str(model.path))
        names = [name for name, _ in found.tensors]
        kept = {name for name in names if any(fnmatchcase(name, pattern) for pattern in options.keep)}
        units = tuple(_unit(name, x, x.dtype if name in kept else target, options) for name, x in found.tensors)
        outputs = [u.outputs[0] for u in units]
        spec = ContainerSpec("safetensors", (("format", "str", "pt"),), {"max_shard_size": options.max_shard_size})
        files = container("safetensors").layout(spec, outputs)
        index = safetensors_index(files, outputs)
        config = [with_dtype(found.config, IN_CONFIG[options.dtype])] if found.config else []
        notes = (*found.notes, *_unmatched(options.keep, names))
        if not found.config:
            notes = (
                *notes,
                "the model has no config.json: the tensors are converted, but transformers and vLLM will not load them",
            )
        return Plan(
            container=spec,
            files=files,
            units=units,
            name=self.name_parts(options),
            side_files=(*config, *found.side_files, *([index] if index else [])),
            left_out=(
                *(
                    LeftOut(name, x.dtype, "kept by name" if x.dtype in FLOATS else "not a float")
                    for name, x in found.tensors
                    if x.dtype not in FLOATS or (name in kept and x.dtype != target)
                ),
                *found.left_out,
            ),
            loads_with=_readers(bool(found.config)),
            notes=notes,
        )

    def encoder(self, plan: Plan, device: Device) -> Encoder:  # noqa: ARG002
        """The casts in numpy. Raises `Unsupported` for a GPU: the disk is slower than a CPU core here."""
        if device.kind != "cpu":
            raise Unsupported("fp16 has no kernels for a GPU", fix="say `device: auto` or `device: cpu`")
        from qconvd_fp16.encoder import CastEncoder

        return CastEncoder()

    def decode(self, unit: Unit, rows: tuple[int, int], data: Sequence[Buffer]) -> Sequence[Array]:
        """Float types as float32, integers as they are: (rows, columns)."""
        from qconvd_fp16.decoder import decode

        return (decode(unit.outputs[0].dtype, data[0], rows[1] - rows[0]),)

    def bound(
        self,
        unit: Unit,
        rows: tuple[int, int],  # noqa: ARG002
        x: Sequence[Array],
        stats: Mapping[str, Array],  # noqa: ARG002
    ) -> Sequence[Array]:
        """Half a unit in the last place of the target type."""
        from qconvd_fp16.decoder import bound

        return (bound(unit.inputs[0].dtype, unit.outputs[0].dtype, x[0]),)


def _unit(name: str, expr: Expr, target: str, options: CastOptions) -> Unit:
    if expr.dtype not in ELEMENT_BYTES:
        raise Unsupported(f"is packed as {expr.dtype}; fp16 is made from unquantized weights", where=name)
    if expr.dtype in FLOATS and expr.dtype not in CASTABLE:
        raise Unsupported(
            f"has 8-bit floats ({expr.dtype}), whose scales fp16 does not read",
            where=name,
            fix="convert from the model's 16-bit release",
        )
    dtype = target if expr.dtype in FLOATS else expr.dtype
    layer = LAYER.search(name)
    said = {"on_overflow": options.on_overflow, "non_finite": options.non_finite}
    return Unit(
        id=name,
        layer=int(layer[1]) if layer else None,
        inputs=(expr,),
        outputs=(OutputTensor(name, dtype, expr.shape, prod(expr.shape) * ELEMENT_BYTES[dtype]),),
        memory={"cpu": SCRATCH},
        # Only what is not the default: a plan holds one unit per tensor.
        options={key: value for key, value in said.items() if value != "report"},
    )


def _readers(whole: bool) -> tuple[Reader, ...]:
    if not whole:
        return (Reader("safetensors", "tensors only: there is no config.json"),)
    return (Reader("transformers"), Reader("vLLM"), Reader("llama.cpp", "through its converter, convert_hf_to_gguf.py"))


def _unmatched(patterns: Sequence[str], names: Sequence[str]) -> tuple[str, ...]:
    return tuple(f"keep: no tensor is called {p}" for p in patterns if not any(fnmatchcase(name, p) for name in names))
