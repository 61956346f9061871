"""The plan of a GPTQ checkpoint: which tensors become what, to the byte, from headers alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qconvd.api import (
    ELEMENT_BYTES,
    Cast,
    ContainerSpec,
    Expr,
    LeftOut,
    ModelInfo,
    OutputTensor,
    Plan,
    Read,
    Reader,
    SideFile,
    StatRequest,
    TensorInfo,
    Transpose,
    Unit,
    Unsupported,
    Whole,
    calibration_spec,
    container,
    safetensors_index,
    version,
)
from qconvd_gptq import config_json
from qconvd_gptq.linears import Kept, Linear, layer_of, sorted_out
from qconvd_gptq.options import GptqOptions
from qconvd_gptq.readers import NOTES, READERS, hindrance, obstacle

CONTEXT = 1 << 30
"""Bytes of GPU memory for the driver's context and code, which no plan can know."""
ROWS = 1024
"""Rows that the solver takes at a time."""


def plan(model: ModelInfo, options: GptqOptions) -> Plan:
    """One unit per tensor, in the order of the layers. Raises `Unsupported`."""
    if model.kind == "gguf":
        raise Unsupported(
            "a GGUF's tensors are named and ordered for llama.cpp; GPTQ is made from the checkpoint it came from",
            where=str(model.path),
            fix="convert that one",
        )
    if not model.config:
        raise Unsupported(
            "has no config.json, without which nobody can load a GPTQ checkpoint", where=str(model.path), fix="add it"
        )
    found = {x.tensor.name: x for x in sorted_out(model, options)}
    linears = [x for x in found.values() if isinstance(x, Linear)]
    kept = [x for x in found.values() if isinstance(x, Kept)]
    if not linears:
        why = f"; of {len(kept)} linears none can be: {kept[0].module}: {kept[0].reason}" if kept else ""
        fix = "" if kept else "GPTQ is for decoders such as LlamaForCausalLM; choose another format"
        raise Unsupported(f"has no linears that can be quantized{why}", where=str(model.path), fix=fix)
    tensors = sorted(model.tensors.values(), key=_order)
    cast = all(x.tensor.dtype == "F32" for x in linears)
    units = tuple(_unit(t, found.get(t.name), options, cast) for t in tensors)
    outputs = [o for u in units for o in u.outputs]
    spec = ContainerSpec("safetensors", (("format", "str", "pt"),), {"max_shard_size": options.max_shard_size})
    files = container("safetensors").layout(spec, outputs)
    index = safetensors_index(files, outputs)
    quantization = config_json.quantization_config(options, linears, kept, version)
    readers, notes = _readers(options, linears, kept)
    return Plan(
        container=spec,
        files=files,
        units=units,
        name=options.name_parts,
        side_files=(
            *config_json.files(model.config, quantization, "float16" if cast else None),
            *_copied(model),
            *([index] if index else []),
        ),
        left_out=tuple(LeftOut(k.tensor.name, _kept_as(k.tensor, cast), k.reason) for k in kept),
        loads_with=readers,
        notes=(*notes, *_unmatched(options, model)),
        calibration=calibration_spec(options.calibration, model) if options.method == "gptq" else None,
    )


def _readers(
    options: GptqOptions, linears: Sequence[Linear], kept: Sequence[Kept]
) -> tuple[tuple[Reader, ...], tuple[str, ...]]:
    """Who loads it; and in a sentence who does not, and why. Raises `Unsupported` if one of `for` does not."""
    uniform = not kept or bool(config_json.in_every_layer(linears, kept))
    good: list[Reader] = []
    bad: dict[str, list[str]] = {}
    for reader in READERS:
        why = obstacle(reader, options) or hindrance(reader, linears, [k.module for k in kept], uniform)
        if not why:
            good.append(Reader(READERS[reader], NOTES[reader]))
            continue
        bad.setdefault(why, []).append(READERS[reader])
        if reader in options.for_:
            raise Unsupported(f"{READERS[reader]} would not load it: {why}", fix=f"change that, or leave {reader} out of `for`")
    names = ", ".join(r.name for r in good) or "nothing known"
    sentences = [f"loads with {names}"]
    return tuple(good), (*sentences, *(f"does not load with {', '.join(them)}: {why}" for why, them in bad.items()))


def _unit(tensor: TensorInfo, linear: Linear | Kept | None, options: GptqOptions, cast: bool) -> Unit:
    if isinstance(linear, Linear):
        return _linear(linear, options)
    expr: Expr = Read.of(tensor)
    if tensor.dtype not in ELEMENT_BYTES or tensor.dtype.startswith("F8"):
        raise Unsupported(
            f"is stored as {tensor.dtype}; GPTQ is made from unquantized weights",
            where=tensor.name,
            fix="convert from the model's 16-bit release",
        )
    if _kept_as(tensor, cast) != tensor.dtype:
        expr = Cast(expr, _kept_as(tensor, cast))
    nbytes = tensor.nbytes // ELEMENT_BYTES[tensor.dtype] * ELEMENT_BYTES[expr.dtype]
    return Unit(
        id=tensor.name,
        layer=layer_of(tensor.name),
        inputs=(expr,),
        outputs=(OutputTensor(tensor.name, expr.dtype, tensor.shape, nbytes),),
        options={"non_finite": options.non_finite} if options.non_finite != "report" else {},
    )


def _linear(x: Linear, options: GptqOptions) -> Unit:
    bits, rows, columns = x.bits, x.rows, x.columns
    shapes = {
        "qweight": ("I32", (columns * bits // 32, rows)),
        "qzeros": ("I32", (x.groups, rows * bits // 32)),
        "scales": ("F16", (x.groups, rows)),
        "g_idx": ("I32", (columns,)),
    }
    outputs = []
    for name, (dtype, shape) in shapes.items():
        count = shape[0] * (shape[1] if len(shape) > 1 else 1)
        outputs.append(OutputTensor(f"{x.module}.{name}", dtype, shape, count * ELEMENT_BYTES[dtype]))
    read = Read.of(x.tensor)
    calibrated = options.method == "gptq"
    said: dict[str, Any] = {
        "bits": bits, "group_size": x.width, "sym": x.sym, "checkpoint_format": options.stored_as, "mse": options.mse,
        "method": options.method, "order": options.order,
    }  # fmt: skip
    if calibrated:
        said["damp_percent"] = options.damp_percent
    if options.non_finite != "report":
        said["non_finite"] = options.non_finite
    return Unit(
        id=x.tensor.name,
        layer=x.layer,
        inputs=(Transpose(read) if x.transposed else read,),
        outputs=tuple(outputs),
        rows=Whole(),
        statistics=(StatRequest(x.tensor.name, "hessian"),) if calibrated else (),
        # Codes; a block of rows as weights, errors and what is between; the factor, with what computing it takes beside.
        memory={
            "cpu": rows * columns + 20 * min(rows, ROWS) * columns + (6 * columns * columns if calibrated else 0),
            "cuda": 25 * rows * columns + (12 * columns * columns if calibrated else 0) + CONTEXT,
        },
        options=said,
    )


def _kept_as(tensor: TensorInfo, cast: bool) -> str:
    """What is not quantized keeps its type, as other writers leave it; of a model in float32 all becomes float16."""
    return "F16" if cast and tensor.dtype in ("F32", "F64") else tensor.dtype


def _order(tensor: TensorInfo) -> tuple[int, int, str, int]:
    """Embedding, layers by number, head; as stored within each, so that a pass reads and writes from front to back."""
    layer = layer_of(tensor.name)
    if layer is not None:
        return 1, layer, tensor.file, tensor.offset
    return (0 if "embed" in tensor.name or ".wte" in tensor.name or ".wpe" in tensor.name else 2), 0, tensor.file, tensor.offset


def _copied(model: ModelInfo) -> list[SideFile]:
    ours = ("config.json", "quantize_config.json")
    return [
        SideFile(f.path, f.size, source=f.path)
        for f in model.files
        if f.role == "side" and f.path not in ours and not f.path.endswith(".safetensors.index.json")
    ]


def _unmatched(options: GptqOptions, model: ModelInfo) -> tuple[str, ...]:
    import re

    modules = [name.removesuffix(".weight") for name in model.tensors]
    return tuple(
        f"`modules`: {pattern!r} is found in no linear's name, so it changes nothing"
        for pattern, _ in options.modules
        if not any(re.search(pattern, m) for m in modules)
    )
