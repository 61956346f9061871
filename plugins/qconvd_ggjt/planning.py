"""A model, a type: the plan of one GGML file. Headers, config and tokenizer are read, no weights."""

from __future__ import annotations

from collections.abc import Mapping

from qconvd.api import (
    BLOCKS,
    ContainerSpec,
    LeftOut,
    ModelInfo,
    NameParts,
    OutputTensor,
    Plan,
    Reader,
    RowSplit,
    Unit,
    Unsupported,
    check_ggml,
    container,
    row_bytes,
    rows_columns,
    storage,
)
from qconvd_ggjt import again, classic, llama
from qconvd_ggjt.contents import Contents, Held
from qconvd_ggjt.options import K_TYPES, LEGACY, GgmlOptions
from qconvd_gguf import requantize
from qconvd_gguf.file_types import FILE_TYPES
from qconvd_gguf.legacy.names import to_gguf
from qconvd_gguf.mixes import Choice, Tensor, Wish, choose, file_order, traits_of

SCRATCH = 1 << 20
"""Bytes that a kernel needs beside its input and output: its tiles."""
QUANTIZED = 2000
"""What ggml's own families add to the type of a quantized file: a thousand times the version of the blocks."""
LLAMA_READERS = (
    Reader("koboldcpp"), Reader("ctransformers", "`model_type=\"llama\"`"), Reader("llm-rs"),
    Reader("llama.cpp", "from May to August 2023 only"),
)  # fmt: skip


def plan(model: ModelInfo, options: GgmlOptions, name: NameParts) -> Plan:
    """The plan of `options.types[0]`. Raises `Unsupported`."""
    wanted = options.types[0]
    contents = _contents(model, options)
    check_ggml(contents.family, contents.numbers, {h.name: h.expr.shape for h in contents.tensors}, str(model.path))
    choices = _choices(contents, wanted, model)
    units = tuple(_unit(held, choices[held.name], options, model) for held in contents.tensors)
    outputs = [unit.outputs[0] for unit in units]
    number = FILE_TYPES[{**LEGACY, **K_TYPES}[wanted]].number
    number += QUANTIZED if contents.one_type and number > 1 else 0
    metadata = [
        ("numbers", "arr[u32]", [*contents.numbers, number]),
        ("tokens", "arr[bytes]", [token.decode("latin-1") for token in contents.tokens]),
    ]
    if contents.scores:
        metadata.append(("scores", "arr[f32]", list(contents.scores)))
    spec = ContainerSpec("ggml", tuple(metadata), {"family": contents.family})
    readers: tuple[Reader, ...] = LLAMA_READERS
    if contents.one_type:
        readers = (Reader("ctransformers", f'`model_type="{contents.family}"`'), Reader("ggml's examples"))
    return Plan(
        container=spec,
        files=container("ggml").layout(spec, outputs),
        units=units,
        name=name,
        left_out=(*(LeftOut(n, c.dtype, c.reason) for n, c in choices.items() if c.reason), *contents.dropped),
        loads_with=readers,
        notes=(*contents.notes, *_expanded(contents, outputs), *_fallbacks(wanted, choices)),
    )


def _contents(model: ModelInfo, options: GgmlOptions) -> Contents:
    if model.kind == "ggml":
        return again.contents(model, expand_gqa=options.expand_gqa)
    if model.architecture in classic.ARCHITECTURES:
        return classic.contents(model)
    return llama.contents(model, expand_gqa=options.expand_gqa)


def _choices(contents: Contents, wanted: str, model: ModelInfo) -> Mapping[str, Choice]:
    """A type for every tensor: vectors and what readers take for F32 in F32, matrices as the file's type says."""
    matrices = {h.name: h.expr.shape for h in contents.tensors if len(h.expr.shape) > 1 and h.name not in contents.floats}
    found = {h.name: Choice("F32") for h in contents.tensors} | _matrices(contents, matrices, wanted, model)
    reason = "readers expect it as F32"
    return found | {name: Choice("F32", reason) for name in sorted(contents.floats) if name in found and wanted != "f32"}


def _matrices(contents: Contents, shapes: Mapping[str, tuple[int, ...]], wanted: str, model: ModelInfo) -> dict[str, Choice]:
    if wanted in K_TYPES:
        return _mixed(contents, shapes, K_TYPES[wanted], model)
    dtype = LEGACY[wanted]
    block = storage(dtype).block
    odd = [name for name, shape in shapes.items() if shape[-1] % block]
    if odd and contents.one_type:
        what = f"rows of {shapes[odd[0]][-1]} weights are no multiple of {dtype}'s block of {block}"
        fix = f"{contents.family} readers take all matrices for one type: choose f16 or f32"
        raise Unsupported(what, where=f"{model.path}, tensor {odd[0]}", fix=fix)
    why = f"rows of {{}} weights are no multiple of {dtype}'s block of {block}"
    return {
        name: Choice("F16", why.format(shape[-1]), fallback=True) if name in odd else Choice(dtype)
        for name, shape in shapes.items()
    }


def _mixed(contents: Contents, shapes: Mapping[str, tuple[int, ...]], mix: str, model: ModelInfo) -> dict[str, Choice]:
    """The mix of a K type, as llama-quantize chooses it today, by GGUF's names."""
    if contents.one_type:
        fix = f"choose one of {', '.join(LEGACY)}"
        raise Unsupported(f"readers of {contents.family} files know no K types", where=str(model.path), fix=fix)
    odd = next((name for name, shape in shapes.items() if shape[-1] % 256), None)
    if odd:
        what = f"K types need rows of a multiple of 256 weights, and these have {shapes[odd][-1]}"
        raise Unsupported(what, where=f"{model.path}, tensor {odd}", fix=f"choose one of {', '.join(LEGACY)}")
    names = {str(to_gguf(contents.family, name)): name for name in shapes}
    tensors = [Tensor(gguf, shapes[names[gguf]], "F16") for gguf in file_order(list(names))]
    return {names[gguf]: c for gguf, c in choose(tensors, Wish(mix), traits_of(contents.traits)).items()}


def _unit(held: Held, choice: Choice, options: GgmlOptions, model: ModelInfo) -> Unit:
    expr = held.expr
    if held.stored is not None:
        requantize.choice(held.stored, choice, options.allow_requantize, model, "ggml")
        if held.packed is not None and held.stored.dtype == choice.dtype and choice.dtype in BLOCKS:
            expr = held.packed
    rows, columns = rows_columns(expr.shape)
    return Unit(
        id=held.name,
        layer=held.layer,
        inputs=(expr,),
        outputs=(OutputTensor(held.name, choice.dtype, expr.shape, rows * row_bytes(choice.dtype, columns)),),
        rows=RowSplit(held.multiple, single=True),
        memory={"cpu": SCRATCH},
        options={} if options.non_finite == "report" else {"non_finite": options.non_finite},
    )


def _expanded(contents: Contents, outputs: list[OutputTensor]) -> tuple[str, ...]:
    """What expanding grouped-query attention costs."""
    if not contents.grown:
        return ()
    kept = [t for t in outputs if t.name.endswith(("attention.wk.weight", "attention.wv.weight"))]
    share = contents.grown / sum(t.shape[0] * t.shape[1] for t in kept)
    more, all_ = sum(int(t.nbytes * share) for t in kept), sum(t.nbytes for t in outputs)
    return (f"expand_gqa repeats key and value heads: {more:,} bytes of this file, {100 * more / all_:.1f} %, are repetitions",)


def _fallbacks(wanted: str, choices: Mapping[str, Choice]) -> tuple[str, ...]:
    names = [name for name, choice in choices.items() if choice.fallback]
    if not names:
        return ()
    first = choices[names[0]]
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return (
        f"{len(names)} of {len(choices)} tensors of the {wanted} file are {first.dtype} because {first.reason}: "
        f"{names[0]}{more}",
    )
