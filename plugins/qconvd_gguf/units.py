"""The tensors of a file as units: their types chosen, their importance found, in the order of the file."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from qconvd.api import ModelInfo, OutputTensor, RowSplit, Unit, reads, row_bytes, rows_columns
from qconvd_gguf import gpu, requantize
from qconvd_gguf.file_types import FILE_TYPES, PLAIN
from qconvd_gguf.importance import Importance, weigh
from qconvd_gguf.mapping import Mapped, listed
from qconvd_gguf.mixes import Choice, Tensor, Traits, Wish, check_imatrix, choose, convert, file_order
from qconvd_gguf.mixes.roles import OUTPUT, always_f32
from qconvd_gguf.options import GgufOptions

SCRATCH = 1 << 20
"""Bytes that a kernel needs beside its input and output: its tiles."""


@dataclass(frozen=True)
class Typed:
    """The tensors of a file with their types, as units."""

    units: tuple[Unit, ...]
    choices: Mapping[str, Choice]
    importance: Importance | None
    notes: tuple[str, ...]


def typed(
    model: ModelInfo, tensors: Sequence[Mapped], traits: Traits, options: GgufOptions, *, as_stored: bool = False
) -> Typed:
    """Choose a type for every tensor and put them in the order of the file. Raises `Unsupported`.

    `as_stored`: every tensor keeps the type that the source has it in.
    """
    wanted, from_gguf = options.types[0], model.kind in ("gguf", "ggml")
    by_name = {m.name: m for m in tensors}
    as_converted = wanted in PLAIN and not from_gguf
    names = list(by_name) if as_converted else file_order(list(by_name))
    shapes = {name: by_name[name].expr.shape for name in names}
    found = [Tensor(n, s, _before(by_name[n])) for n, s in shapes.items()]
    wish = wish_of(options)
    choices = convert(found, wanted) if as_converted else choose(found, wish, traits)
    same = () if as_converted or as_stored else _same_file(found, choices, wish, traits)
    if as_stored:
        choices = {t.name: Choice(t.dtype) for t in found}
    check_imatrix(choices, wish)
    if from_gguf:
        stored = {n: model.tensors[next(iter(reads(m.expr)))] for n, m in by_name.items()}
        choices = {n: requantize.choice(stored[n], c, options.allow_requantize, model) for n, c in choices.items()}
        by_name = {n: requantize.copied(m, choices[n]) for n, m in by_name.items()}
    units = tuple(_unit(by_name[name], choices[name], options) for name in names)
    importance = weigh(units, model, options)
    notes = (*_fallbacks(wanted, choices), *same, *_without_effect(options, by_name), *(importance.notes if importance else ()))
    return Typed(importance.units if importance else units, choices, importance, notes)


def _same_file(tensors: Sequence[Tensor], choices: Mapping[str, Choice], wish: Wish, traits: Traits) -> tuple[str, ...]:
    """Of an `_L` variant, whether the preset that it varies makes the same of this model: then nobody needs both."""
    base = FILE_TYPES[wish.file].mix
    if not base:
        return ()
    others = choose(tensors, replace(wish, file=base), traits)
    if any(choice.dtype != others[name].dtype for name, choice in choices.items()):
        return ()
    return (f"{wish.file} is {base} by another name: for this model both have every tensor in the same type",)


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


def _before(tensor: Mapped) -> str:
    """The type that llama-quantize would find a tensor in, had the converter written the checkpoint's own."""
    if tensor.packed is not None:
        return tensor.packed.dtype
    return "F32" if always_f32(tensor.name, tensor.expr.shape) else tensor.expr.dtype


def _unit(tensor: Mapped, choice: Choice, options: GgufOptions) -> Unit:
    rows, columns = rows_columns(tensor.expr.shape)
    output = OutputTensor(tensor.name, choice.dtype, tensor.expr.shape, rows * row_bytes(choice.dtype, columns))
    return Unit(
        id=tensor.name,
        layer=tensor.layer,
        inputs=(tensor.expr,),
        outputs=(output,),
        rows=RowSplit(tensor.multiple, single=True),
        memory={"cpu": SCRATCH, **gpu.memory_of(choice.dtype)},
        options={} if options.non_finite == "report" else {"non_finite": options.non_finite},
    )


def _without_effect(options: GgufOptions, names: Collection[str]) -> Sequence[str]:
    if options.leave_output_tensor and OUTPUT not in names:
        return ["leave_output_tensor changes nothing: the output layer is the embeddings, which are quantized"]
    return []


def _fallbacks(wanted: str, choices: dict[str, Choice]) -> Sequence[str]:
    """One warning for each type that tensors fell back to, and each reason."""
    notes = []
    for dtype, reason in sorted({(c.dtype, c.reason) for c in choices.values() if c.fallback}):
        names = [n for n, c in choices.items() if c.fallback and (c.dtype, c.reason) == (dtype, reason)]
        why = f"{dtype} because {reason}"
        notes.append(f"{len(names)} of {len(choices)} tensors of the {wanted} file are {why}: {listed(names, 3)}")
    return notes
