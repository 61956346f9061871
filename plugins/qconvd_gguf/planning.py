"""A model, a type: the plan of one GGUF file. Headers, config and tokenizer are read, no weights."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from math import prod

from qconvd.api import (
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
    container,
    row_bytes,
    rows_columns,
)
from qconvd_gguf import mapping
from qconvd_gguf.families import family_of
from qconvd_gguf.file_types import FILE_TYPES, PLAIN
from qconvd_gguf.general import general_metadata
from qconvd_gguf.importance import weigh
from qconvd_gguf.mapping import Mapped
from qconvd_gguf.mixes import Choice, Tensor, Wish, check_imatrix, choose, file_order, traits_of
from qconvd_gguf.mixes.roles import OUTPUT
from qconvd_gguf.options import GgufOptions
from qconvd_gguf.tokenizer import tokenizer_metadata

READERS = (Reader("llama.cpp"), Reader("Ollama"), Reader("LM Studio"))
QUANTIZATION_VERSION = ("general.quantization_version", "u32", 2)
SCRATCH = 1 << 20
"""Bytes that a kernel needs beside its input and output: its tiles."""


def plan(model: ModelInfo, options: GgufOptions) -> Plan:
    """The plan of `options.types[0]`. Raises `Unsupported`."""
    wanted = options.types[0]
    if model.kind == "gguf":
        what = "the model is a GGUF file, and gguf starts from safetensors checkpoints"
        raise Unsupported(what, where=str(model.path), fix="take the original Hugging Face folder")
    seen = mapping.apply(family_of(model), model)
    parameters = sum(prod(m.expr.shape) for m in seen.tensors)
    general, card_notes = general_metadata(model, seen.family.name, parameters)
    file_type = ("general.file_type", "u32", FILE_TYPES[wanted].number)
    architecture = mapping.metadata(seen, model.config, file_type)
    tokenizer, tokenizer_notes = tokenizer_metadata(model, seen.numbers["vocab"], options.pre)
    keys = [*general, *architecture, QUANTIZATION_VERSION, *tokenizer]
    if wanted not in PLAIN:
        # llama-quantize sets these two anew, which puts them at the end.
        keys = [k for k in keys if k not in (file_type, QUANTIZATION_VERSION)] + [QUANTIZATION_VERSION, file_type]

    by_name = {m.name: m for m in seen.tensors}
    names = list(by_name) if wanted in PLAIN else file_order(list(by_name))
    tensors = [Tensor(name, by_name[name].expr.shape, by_name[name].expr.dtype) for name in names]
    wish = wish_of(options)
    choices = choose(tensors, wish, traits_of(keys))
    check_imatrix(choices, wish)
    units = tuple(_unit(by_name[name], choices[name], options) for name in names)
    importance = weigh(units, options)
    if importance:
        units = importance.units
        keys += importance.metadata

    spec = ContainerSpec("gguf", tuple(keys))
    outputs = [output for unit in units for output in unit.outputs]
    return Plan(
        container=spec,
        files=container("gguf").layout(spec, outputs),
        units=units,
        name=name_parts(options),
        left_out=(*(LeftOut(n, c.dtype, c.reason) for n, c in choices.items() if c.reason), *seen.dropped),
        loads_with=READERS,
        notes=(
            *seen.notes,
            *_fallbacks(wanted, choices),
            *_without_effect(options, by_name),
            *(importance.notes if importance else ()),
            *card_notes,
            *tokenizer_notes,
        ),
        statistics=(importance.file,) if importance else (),
    )


def wish_of(options: GgufOptions) -> Wish:
    """What the options of one file ask of its tensors' types."""
    return Wish(
        options.types[0],
        options.output_tensor_type,
        options.token_embedding_type,
        options.tensor_types,
        options.pure,
        options.leave_output_tensor,
        options.imatrix is not None,
    )


def name_parts(options: GgufOptions) -> NameParts:
    return NameParts("gguf", options.types[0], shared=True)


def _unit(tensor: Mapped, choice: Choice, options: GgufOptions) -> Unit:
    rows, columns = rows_columns(tensor.expr.shape)
    output = OutputTensor(tensor.name, choice.dtype, tensor.expr.shape, rows * row_bytes(choice.dtype, columns))
    return Unit(
        id=tensor.name,
        layer=tensor.layer,
        inputs=(tensor.expr,),
        outputs=(output,),
        rows=RowSplit(tensor.multiple),
        memory={"cpu": SCRATCH},
        options={} if options.non_finite == "report" else {"non_finite": options.non_finite},
    )


def _without_effect(options: GgufOptions, names: Collection[str]) -> Sequence[str]:
    if options.leave_output_tensor and OUTPUT not in names:
        return ["leave_output_tensor changes nothing: the output layer is the embeddings, which are quantized"]
    return []


def _fallbacks(wanted: str, choices: dict[str, Choice]) -> Sequence[str]:
    """One warning for each type that tensors fell back to."""
    notes = []
    for dtype in sorted({c.dtype for c in choices.values() if c.fallback}):
        names = [n for n, c in choices.items() if c.fallback and c.dtype == dtype]
        shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        why = f"{dtype} because {choices[names[0]].reason}"
        notes.append(f"{len(names)} of {len(choices)} tensors of the {wanted} file are {why}: {shown}")
    return notes
