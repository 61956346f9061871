"""A model, a type: the plan of one GGUF file. Headers, config and tokenizer are read, no weights."""

from __future__ import annotations

from collections.abc import Sequence

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
from qconvd_gguf.general import general_metadata
from qconvd_gguf.mapping import Mapped
from qconvd_gguf.model_name import Counts
from qconvd_gguf.options import GgufOptions
from qconvd_gguf.tensor_types import FILE_TYPES, PLAIN, Choice, Wish, choose, file_order
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
    wish = Wish(wanted, options.output_tensor_type, options.token_embedding_type, options.pure)
    by_name = {m.name: m for m in seen.tensors}
    tied = "output.weight" not in by_name
    names = list(by_name) if wanted in PLAIN else file_order(list(by_name))
    choices = {name: choose(name, by_name[name].expr.shape, wish, tied) for name in names}
    units = tuple(_unit(by_name[name], choices[name], options) for name in names)

    counts = Counts.of({m.name: m.expr.shape for m in seen.tensors})
    general, card_notes = general_metadata(model, seen.family.name, counts)
    file_type = ("general.file_type", "u32", FILE_TYPES[wanted])
    architecture = mapping.metadata(seen, model, file_type)
    tokenizer, tokenizer_notes = tokenizer_metadata(model, seen.numbers["vocab"], options.pre)
    keys = [*general, *architecture, QUANTIZATION_VERSION, *mapping.vocabulary_metadata(seen, model), *tokenizer]
    if wanted not in PLAIN:
        # llama-quantize sets these two anew, which puts them at the end.
        keys = [k for k in keys if k not in (file_type, QUANTIZATION_VERSION)] + [QUANTIZATION_VERSION, file_type]

    spec = ContainerSpec("gguf", tuple(keys))
    outputs = [output for unit in units for output in unit.outputs]
    return Plan(
        container=spec,
        files=container("gguf").layout(spec, outputs),
        units=units,
        name=name_parts(options),
        left_out=(*(LeftOut(n, c.dtype, c.reason) for n, c in choices.items() if c.reason), *seen.dropped),
        loads_with=READERS,
        notes=(*seen.notes, *_fallbacks(wanted, choices), *card_notes, *tokenizer_notes),
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


def _fallbacks(wanted: str, choices: dict[str, Choice]) -> Sequence[str]:
    """One warning for each type that tensors fell back to."""
    notes = []
    for dtype in sorted({c.dtype for c in choices.values() if c.fallback}):
        names = [n for n, c in choices.items() if c.fallback and c.dtype == dtype]
        shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        why = f"{dtype} because {choices[names[0]].reason}"
        notes.append(f"{len(names)} of {len(choices)} tensors of the {wanted} file are {why}: {shown}")
    return notes
