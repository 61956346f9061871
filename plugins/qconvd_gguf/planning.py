"""A model, a type: the plan of one GGUF file. Headers, config and tokenizer are read, no weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qconvd.api import ContainerSpec, LeftOut, ModelInfo, Plan, Reader, container, packed_metadata
from qconvd_gguf import gpu, mapping, requantize
from qconvd_gguf.backwards.rebuild import as_checkpoint
from qconvd_gguf.families import family_of
from qconvd_gguf.families.base import Metadata
from qconvd_gguf.file_types import FILE_TYPES, PLAIN
from qconvd_gguf.general import general_metadata
from qconvd_gguf.legacy import source as legacy
from qconvd_gguf.legacy.vocabulary import typed_keys
from qconvd_gguf.mapping import Mapped
from qconvd_gguf.mixes import Traits, traits_of
from qconvd_gguf.model_name import Counts
from qconvd_gguf.options import GgufOptions
from qconvd_gguf.tokenizer import tokenizer_metadata
from qconvd_gguf.units import typed

READERS = (Reader("llama.cpp"), Reader("Ollama"), Reader("LM Studio"))
QUANTIZATION_VERSION = ("general.quantization_version", "u32", 2)


def plan(model: ModelInfo, options: GgufOptions) -> Plan:
    """The plan of `options.types[0]`. Raises `Unsupported`."""
    makers = {"gguf": _requantized, "ggml": _from_ggml}
    contents = makers.get(model.kind, _converted)(model, options)
    made = typed(model, contents.tensors, contents.traits, options, as_stored=contents.as_stored)
    if options.device == "cuda":
        gpu.check(made.units)
    keys = contents.keys
    if made.importance:
        named = {key for key, _, _ in made.importance.metadata}
        keys = [k for k in keys if k[0] not in named] + made.importance.metadata

    limits = {"max_size": options.split_max_size, "max_tensors": options.split_max_tensors}
    spec = ContainerSpec("gguf", tuple(keys), {k: v for k, v in limits.items() if v is not None})
    outputs = [output for unit in made.units for output in unit.outputs]
    return Plan(
        container=spec,
        files=container("gguf").layout(spec, outputs),
        units=made.units,
        name=options.name_parts,
        left_out=(*(LeftOut(n, c.dtype, c.reason) for n, c in made.choices.items() if c.reason), *contents.dropped),
        loads_with=READERS,
        notes=(*contents.notes, *made.notes, *contents.late_notes),
        statistics=(made.importance.file,) if made.importance and made.importance.file else (),
        calibration=made.importance.calibration if made.importance else None,
        measured_on=gpu.measured_on(made.units),
    )


@dataclass(frozen=True)
class Contents:
    """What goes into the file, before types are chosen."""

    tensors: tuple[Mapped, ...]
    keys: Metadata
    traits: Traits
    dropped: tuple[LeftOut, ...] = ()
    notes: Sequence[str] = ()
    late_notes: Sequence[str] = ()
    """Notes that are worth less than those about the types."""
    as_stored: bool = False
    """Whether the source is a file of the type that is asked for: then only the container changes."""


def _converted(model: ModelInfo, options: GgufOptions) -> Contents:
    """From a Hugging Face checkpoint."""
    wanted = options.types[0]
    seen = mapping.apply(family_of(model), model)
    counts = Counts.of({m.name: m.expr.shape for m in seen.tensors})
    general, card_notes = general_metadata(model, seen.family.name, counts)
    file_type = ("general.file_type", "u32", FILE_TYPES[wanted].number)
    architecture = mapping.metadata(seen, model, file_type)
    tokenizer, tokenizer_notes = _tokenizer(model, seen.numbers["vocab"], options.pre)
    keys = [*general, *architecture, QUANTIZATION_VERSION, *mapping.vocabulary_metadata(seen, model), *tokenizer]
    if wanted not in PLAIN:
        # llama-quantize sets these two anew, which puts them at the end.
        keys = [k for k in keys if k not in (file_type, QUANTIZATION_VERSION)] + [QUANTIZATION_VERSION, file_type]
    traits = traits_of({key: value for key, _, value in (*general, *architecture)})
    return Contents(seen.tensors, keys, traits, seen.dropped, seen.notes, (*card_notes, *tokenizer_notes))


def _tokenizer(model: ModelInfo, vocab_size: int, pre: str | None) -> tuple[Metadata, list[str]]:
    """The tokenizer's keys, packed once for all files of a model, and warnings."""

    def make() -> tuple[Metadata, list[str]]:
        keys, notes = tokenizer_metadata(model, vocab_size, pre)
        return packed_metadata(keys), notes

    return model.once(("packed tokenizer.*", vocab_size, pre), make)


def _requantized(model: ModelInfo, options: GgufOptions) -> Contents:
    """From another GGUF file."""
    file_type = ("general.file_type", "u32", FILE_TYPES[options.types[0]].number)
    keys = [*requantize.metadata(model), QUANTIZATION_VERSION, file_type]
    return Contents(requantize.tensors(model), keys, traits_of(model.metadata))


def _from_ggml(model: ModelInfo, options: GgufOptions) -> Contents:
    """From a GGML file: its tensors under GGUF's names, its vocabulary, and what else llama.cpp needs to know."""
    wanted = options.types[0]
    seen = legacy.seen(model, options.said)
    virtual = as_checkpoint(seen.family, seen.config, seen.tensors, model)
    again = mapping.apply(seen.family, virtual)
    general, card_notes = general_metadata(virtual, seen.family.name, Counts.of({n: x.shape for n, x in seen.tensors.items()}))
    file_type = ("general.file_type", "u32", FILE_TYPES[wanted].number)
    architecture = mapping.metadata(again, virtual, file_type)
    architecture = [key for key in architecture if key != file_type]
    keys = [*general, *architecture, *typed_keys(seen.keys), QUANTIZATION_VERSION, file_type]
    tensors = tuple(
        Mapped(name, expr, requantize.layer_of(name), packed=seen.packed[name]) for name, expr in seen.tensors.items()
    )
    traits = traits_of({key: value for key, _, value in (*general, *architecture)})
    same = int(model.metadata["ftype"]) % 1000 == FILE_TYPES[wanted].number
    return Contents(tensors, keys, traits, (), seen.notes, card_notes, as_stored=same)
