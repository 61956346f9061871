"""An importance matrix held against a file's tensors: who uses it, who has none, and what the metadata says of it.

Source: llama.cpp, src/llama-quant.cpp and tools/quantize/quantize.cpp.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

from qconvd.api import (
    BLOCKS,
    CalibrationSpec,
    Imatrix,
    ModelInfo,
    StatisticsFile,
    StatRequest,
    Unit,
    Unsupported,
    open_statistics,
)
from qconvd_gguf.families.base import Metadata
from qconvd_gguf.file_types import WEIGHTED
from qconvd_gguf.gathered import weighed
from qconvd_gguf.mapping import listed
from qconvd_gguf.mixes.choice import needs_imatrix
from qconvd_gguf.mixes.roles import EMBEDDINGS, OUTPUT
from qconvd_gguf.options import GgufOptions

TEXT_LIMIT = 127
"""Bytes of a text that llama-quantize writes into the metadata."""
SHOWN = 3


@dataclass(frozen=True)
class Importance:
    """What planning knows of an importance matrix."""

    units: tuple[Unit, ...]
    file: StatisticsFile | None
    """None for one that is gathered while converting."""
    metadata: Metadata
    notes: tuple[str, ...]
    calibration: CalibrationSpec | None = None


def weigh(units: tuple[Unit, ...], model: ModelInfo, options: GgufOptions) -> Importance | None:
    """The units with what they ask of the imatrix that the options name; None without one.

    Raises `Unsupported` if it is of another model or lacks a tensor that is not to be made without, and what reading raises.
    """
    if options.imatrix is None:
        return None
    if options.imatrix == "auto":
        return _gathered(units, model, options)
    file = open_statistics("imatrix", Path(options.imatrix.path), options.imatrix.sha256)
    try:
        return _weighed(units, file, options.types[0])
    finally:
        file.close()


def _gathered(units: tuple[Unit, ...], model: ModelInfo, options: GgufOptions) -> Importance | None:
    using = _using(units)
    if not using:
        return None
    asking, spec, keys, without = weighed(units, using, model, options)
    _check(without, using, options.types[0], str(model.path))
    notes = []
    if lacking := _lacking(without):
        notes.append(f"{len(lacking)} of {len(using)} tensors are quantized without importance: {listed(lacking, SHOWN)}")
    return Importance(asking, None, keys, tuple(notes), spec)


def _using(units: Sequence[Unit]) -> dict[str, Unit]:
    """Units whose types look at importance. A tensor of a GGUF file that has its type already is copied."""
    return {u.id: u for u in units if u.outputs[0].dtype in WEIGHTED and u.inputs[0].dtype not in BLOCKS}


def _weighed(units: tuple[Unit, ...], file: Imatrix, wanted: str) -> Importance:
    where = str(file.path)
    using = _using(units)
    found = [name for name in using if name in file.entries and _fits(using[name], file)]
    without = tuple(name for name in using if name not in found)
    if using and not found:
        raise Unsupported(
            f"holds nothing for any of the {len(using)} tensors that would use it",
            where=where,
            fix="name an importance matrix that was made of this model; its tensors must have GGUF's names",
        )
    _check(without, using, wanted, where)
    unused = {name: count for name in found if (count := file.unused(name))}
    weighed = []
    for unit in units:
        if unit.id in found:
            # Read now what will be used: a value that is none must not turn up in the middle of a conversion.
            nbytes = file.mean_square(unit.id).nbytes
            request = StatRequest(unit.id, "mean_square")
            unit = replace(unit, statistics=(request,), memory={"cpu": unit.memory["cpu"] + nbytes})
        weighed.append(unit)
    return Importance(
        tuple(weighed),
        StatisticsFile(str(file.path), file.sha256, without=without),
        _metadata(file),
        tuple(_notes(file, without, unused, len(using))),
    )


def _check(without: Sequence[str], using: Mapping[str, Unit], wanted: str, where: str) -> None:
    """Raise `Unsupported` for a tensor that is not to be made without importance."""
    for name in without:
        if needs_imatrix(name, using[name].outputs[0].dtype, wanted):
            raise Unsupported(
                f"holds nothing for {name}, which would be useless as {using[name].outputs[0].dtype} without",
                where=where,
                fix="make it from a longer text, so that every expert is used, or give that tensor another type in "
                "tensor_types, e.g. q2_k",
            )


def _lacking(without: Sequence[str]) -> list[str]:
    """Embeddings are looked up, not multiplied; the output layer is only measured when asked for."""
    return [name for name in without if name not in (*EMBEDDINGS, OUTPUT)]


def _fits(unit: Unit, file: Imatrix) -> bool:
    """Whether there is a value for each column of each expert. Only for embeddings is it no error if not, as with llama.cpp."""
    shape, name = unit.inputs[0].shape, unit.id
    needed = shape[-1] * prod(shape[:-2])
    have = file.entries[name].values
    if have != needed and name not in EMBEDDINGS:
        raise Unsupported(
            f"has {have} values for {name}, which needs {needed}",
            where=str(file.path),
            fix="name an importance matrix that was made of this very model",
        )
    return have == needed


def _metadata(file: Imatrix) -> Metadata:
    """As llama-quantize writes it, but the file's name alone: where it lay is nobody's business."""
    keys: Metadata = [("quantize.imatrix.file", "str", _short(file.path.name))]
    if file.datasets:
        keys.append(("quantize.imatrix.dataset", "str", _short(file.datasets[0])))
    keys.append(("quantize.imatrix.entries_count", "u32", len(file.entries)))
    if file.chunks > 0:
        keys.append(("quantize.imatrix.chunks_count", "u32", file.chunks))
    return keys


def _notes(file: Imatrix, without: tuple[str, ...], unused: Mapping[str, int], using: int) -> list[str]:
    notes = []
    if lacking := _lacking(without):
        notes.append(
            f"{len(lacking)} of {using} tensors are quantized without importance, as {file.path.name} holds nothing for them: "
            f"{listed(lacking, SHOWN)}"
        )
    if unused:
        notes.append(
            f"{sum(unused.values())} experts in {len(unused)} tensors saw no token while {file.path.name} was made; "
            f"all their columns count alike: {listed(list(unused), SHOWN)}"
        )
    return notes


def _short(text: str) -> str:
    return text.encode()[:TEXT_LIMIT].decode(errors="ignore")
