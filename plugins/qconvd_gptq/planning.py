"""The plan of a GPTQ checkpoint: which tensors become what, to the byte, from headers alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qconvd.api import (
    ELEMENT_BYTES,
    ContainerSpec,
    Kept,
    LeftOut,
    ModelInfo,
    OutputTensor,
    Plan,
    Read,
    Reader,
    StatRequest,
    TensorInfo,
    Transpose,
    Unit,
    Unsupported,
    Whole,
    calibration_spec,
    carried_files,
    config_with,
    container,
    in_float32,
    in_order,
    json_file,
    kept_as,
    note_on_types,
    rest_unit,
    safetensors_index,
    unmatched_patterns,
    version,
)
from qconvd_gptq import config_json
from qconvd_gptq.linears import Chosen, sorted_out
from qconvd_gptq.options import GptqOptions
from qconvd_gptq.readers import READERS, hindrance, note, obstacle

CONTEXT = 1 << 30
"""Bytes of GPU memory for the driver's context and code, which no plan can know."""
CONFIG = "quantize_config.json"
ROWS = 1024
"""Rows that the solver takes at a time."""


def plan(model: ModelInfo, options: GptqOptions) -> Plan:
    """One unit per tensor, in the order of the layers. Raises `Unsupported`."""
    found = {x.tensor.name: x for x in sorted_out(model, options)}
    chosen = [x for x in found.values() if isinstance(x, Chosen)]
    kept = [x for x in found.values() if isinstance(x, Kept)]
    if not chosen:
        why = f"; of {len(kept)} linears none can be: {kept[0].module}: {kept[0].reason}" if kept else ""
        fix = "" if kept else "GPTQ is for decoders such as LlamaForCausalLM; choose another format"
        raise Unsupported(f"has no linears that can be quantized{why}", where=str(model.path), fix=fix)
    cast = in_float32(x.tensor for x in chosen)
    units = tuple(_unit(t, found.get(t.name), options, cast) for t in in_order(model.tensors.values()))
    outputs = [o for u in units for o in u.outputs]
    spec = ContainerSpec("safetensors", (("format", "str", "pt"),), {"max_shard_size": options.max_shard_size})
    files = container("safetensors").layout(spec, outputs)
    index = safetensors_index(files, outputs)
    quantization = config_json.quantization_config(options, chosen, kept, version)
    readers, notes = _readers(options, chosen, kept)
    return Plan(
        container=spec,
        files=files,
        units=units,
        name=options.name_parts,
        side_files=(
            config_with(model.config, quantization, "float16" if cast else None),
            json_file(CONFIG, quantization),
            *carried_files(model, ("config.json", CONFIG)),
            *([index] if index else []),
        ),
        left_out=tuple(LeftOut(k.tensor.name, kept_as(k.tensor, cast), k.reason) for k in kept),
        loads_with=readers,
        notes=(*_few(chosen, kept), *notes, *note_on_types(cast), *unmatched_patterns(options.modules, model)),
        calibration=calibration_spec(options.calibration, model) if options.method == "gptq" else None,
    )


def _few(chosen: Sequence[Chosen], kept: Sequence[Kept]) -> tuple[str, ...]:
    """A sentence where most linears are left out, which its name does not tell."""
    if len(kept) <= len(chosen):
        return ()
    also = ", and so would `partial_groups: true`, for GPTQModel alone" if "group_size" in kept[0].reason else ""
    return (f"quantizes only {len(chosen)} of {len(chosen) + len(kept)} linears: {kept[0].reason}{also}",)


def _readers(
    options: GptqOptions, chosen: Sequence[Chosen], kept: Sequence[Kept]
) -> tuple[tuple[Reader, ...], tuple[str, ...]]:
    """Who loads it; and in a sentence who does not, and why. Raises `Unsupported` if one of `for` does not."""
    uniform = not kept or bool(config_json.in_every_layer(chosen, kept))
    good: list[Reader] = []
    bad: dict[str, list[str]] = {}
    for reader in READERS:
        why = obstacle(reader, options) or hindrance(reader, chosen, [k.module for k in kept], uniform)
        if not why:
            good.append(Reader(READERS[reader], note(reader, chosen)))
            continue
        bad.setdefault(why, []).append(READERS[reader])
        if reader in options.for_:
            raise Unsupported(f"{READERS[reader]} would not load it: {why}", fix=f"change that, or leave {reader} out of `for`")
    names = ", ".join(r.name for r in good) or "nothing known"
    sentences = [f"loads with {names}"]
    return tuple(good), (*sentences, *(f"does not load with {', '.join(them)}: {why}" for why, them in bad.items()))


def _unit(tensor: TensorInfo, x: Chosen | Kept | None, options: GptqOptions, cast: bool) -> Unit:
    if isinstance(x, Chosen):
        return _linear(x, options)
    return rest_unit(tensor, "GPTQ", cast, {"non_finite": options.non_finite} if options.non_finite != "report" else {})


def _linear(x: Chosen, options: GptqOptions) -> Unit:
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
        if options.calibration.dtype == "float32":
            said["feedback"] = "float32"
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
