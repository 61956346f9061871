"""A model, a type: the plan of one GGUF file. Headers, config and tokenizer are read, no weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
    container,
    row_bytes,
    rows_columns,
)
from qconvd_gguf import mapping, requantize
from qconvd_gguf.families import family_of
from qconvd_gguf.families.base import Metadata
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
    contents = _requantized(model, options) if model.kind == "gguf" else _converted(model, options)
    by_name = {m.name: m for m in contents.tensors}
    wish = Wish(wanted, options.output_tensor_type, options.token_embedding_type, options.pure)
    tied = "output.weight" not in by_name
    names = file_order(list(by_name)) if wanted not in PLAIN or model.kind == "gguf" else list(by_name)
    choices = {name: choose(name, by_name[name].expr.shape, wish, tied) for name in names}
    if model.kind == "gguf":
        choices = {n: requantize.choice(model.tensors[n], c, options.allow_requantize, model) for n, c in choices.items()}
        by_name = {n: requantize.copied(m, model.tensors[n], choices[n]) for n, m in by_name.items()}
    units = tuple(_unit(by_name[name], choices[name], options) for name in names)

    limits = {"max_size": options.split_max_size, "max_tensors": options.split_max_tensors}
    spec = ContainerSpec("gguf", tuple(contents.keys), {k: v for k, v in limits.items() if v is not None})
    outputs = [output for unit in units for output in unit.outputs]
    return Plan(
        container=spec,
        files=container("gguf").layout(spec, outputs),
        units=units,
        name=name_parts(options),
        left_out=(*(LeftOut(n, c.dtype, c.reason) for n, c in choices.items() if c.reason), *contents.dropped),
        loads_with=READERS,
        notes=(*contents.notes, *_fallbacks(wanted, choices), *contents.late_notes),
    )


@dataclass(frozen=True)
class Contents:
    """What goes into the file, before types are chosen."""

    tensors: tuple[Mapped, ...]
    keys: Metadata
    dropped: tuple[LeftOut, ...] = ()
    notes: Sequence[str] = ()
    late_notes: Sequence[str] = ()
    """Notes that are worth less than those about the types."""


def _converted(model: ModelInfo, options: GgufOptions) -> Contents:
    """From a Hugging Face checkpoint."""
    wanted = options.types[0]
    seen = mapping.apply(family_of(model), model)
    counts = Counts.of({m.name: m.expr.shape for m in seen.tensors})
    general, card_notes = general_metadata(model, seen.family.name, counts)
    file_type = ("general.file_type", "u32", FILE_TYPES[wanted])
    architecture = mapping.metadata(seen, model, file_type)
    tokenizer, tokenizer_notes = tokenizer_metadata(model, seen.numbers["vocab"], options.pre)
    keys = [*general, *architecture, QUANTIZATION_VERSION, *mapping.vocabulary_metadata(seen), *tokenizer]
    if wanted not in PLAIN:
        # llama-quantize sets these two anew, which puts them at the end.
        keys = [k for k in keys if k not in (file_type, QUANTIZATION_VERSION)] + [QUANTIZATION_VERSION, file_type]
    return Contents(seen.tensors, keys, seen.dropped, seen.notes, (*card_notes, *tokenizer_notes))


def _requantized(model: ModelInfo, options: GgufOptions) -> Contents:
    """From another GGUF file."""
    file_type = ("general.file_type", "u32", FILE_TYPES[options.types[0]])
    return Contents(requantize.tensors(model), [*requantize.metadata(model), QUANTIZATION_VERSION, file_type])


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
