"""A family applied to a model: config.json to metadata keys, and every tensor of the checkpoint to one of GGUF's.

Nothing is passed over in silence: a tensor that the family does not name, lacks or expects in another shape is an error.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from qconvd.api import FLOATS, Cast, Expr, LeftOut, ModelInfo, Read, Unsupported, reads
from qconvd_gguf.families.base import FILE_TYPE, Config, Family, Key, Metadata, Number, Tensor, product

SHOWN = 5
"""Tensor names that an error lists before it counts the rest."""


@dataclass(frozen=True)
class Mapped:
    """A tensor of the GGUF file: how it is made, and which rows of it belong together."""

    name: str
    expr: Expr
    layer: int | None
    multiple: int = 1


@dataclass(frozen=True)
class MappedModel:
    """A model seen through its family."""

    family: Family
    numbers: Mapping[str, Any]
    tensors: tuple[Mapped, ...]
    """In the order of llama.cpp's converter: what the model does not hold first, then by file and by name."""
    tied: bool
    dropped: tuple[LeftOut, ...]
    notes: tuple[str, ...]


def apply(family: Family, model: ModelInfo) -> MappedModel:
    """Map a model. Raises `Unsupported` with the names and numbers that do not fit."""
    numbers = _numbers(family, model.config, str(model.path / "config.json"))
    _check_limits(family, model)
    if numbers[family.layers] > len(model.tensors):
        what = f"config.json says {numbers[family.layers]} layers, but the model has {len(model.tensors)} tensors"
        raise Unsupported(what, where=str(model.path))
    tied = bool(model.config.get("tie_word_embeddings", family.ties))
    sources = _Sources(family, model, numbers)
    mapped = [m for tensor in family.tensors for m in sources.take(tensor, tied)]
    dropped = sources.rest(tied)
    made = []
    for made_tensor in family.made:
        expr = made_tensor.make(model.config, numbers)
        if expr is not None:
            made.append(Mapped(made_tensor.name, expr, None))
    order = {name: (model.tensors[name].file, name) for name in model.tensors}
    mapped.sort(key=lambda m: min(order[name] for name in reads(m.expr)))
    notes = [note for make in family.notes if (note := make(model.config, numbers))]
    return MappedModel(family, numbers, (*made, *mapped), tied, dropped, tuple(notes))


def metadata(mapping: MappedModel, config: Config, file_type: tuple[str, str, Any]) -> Metadata:
    """The architecture's keys in the order of its converter, `file_type` where that writes it."""
    arch = mapping.family.name
    keys: Metadata = []
    for entry in mapping.family.metadata:
        if entry is FILE_TYPE:
            keys.append(file_type)
        elif isinstance(entry, Key):
            value = product(entry.value, mapping.numbers)
            if value is not None:
                keys.append((f"{arch}.{entry.name}", entry.type, float(value) if entry.type == "f32" else value))
        else:
            keys += [(f"{arch}.{name}", kind, value) for name, kind, value in entry(config, mapping.numbers)]
    return keys


def _numbers(family: Family, config: Config, where: str) -> dict[str, Any]:
    numbers: dict[str, Any] = {}
    for name, number in family.numbers.items():
        value = next((v for key in number.keys if (v := _find(config, key)) is not None), None)
        if value is None:
            value = product(number.default, numbers) if isinstance(number.default, str) else number.default
        elif not _fits(value, number):
            raise Unsupported(f"{number.keys[0]} is {value!r}, which is no number", where=where)
        if value is None and not number.optional:
            raise Unsupported(
                f"{number.keys[0]} is missing", where=where, fix="take config.json from the model's own repository"
            )
        numbers[name] = value
    return numbers


def _fits(value: Any, number: Number) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    if not isinstance(number.default, float):
        return isinstance(value, int) and value > 0
    # NaN and Infinity are numbers to Python's JSON; 10^400 is an int, but no float.
    return abs(value) <= sys.float_info.max


def _find(config: Config, dotted: str) -> Any:
    value: Any = config
    for part in dotted.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _check_limits(family: Family, model: ModelInfo) -> None:
    for limit in family.limits:
        value = model.config.get(limit.key)
        if value is not None and value not in limit.values:
            raise Unsupported(f"{limit.key} is {value!r}: {limit.reason}", where=str(model.path / "config.json"))


class _Sources:
    """The checkpoint's tensors, each taken once."""

    def __init__(self, family: Family, model: ModelInfo, numbers: Mapping[str, Any]) -> None:
        self.family, self.model, self.numbers = family, model, numbers
        self.left = dict(model.tensors)
        first = next(t.source for t in family.tensors if "{p}" in t.source and "{i}" not in t.source)
        self.prefix = next((p for p in family.prefixes if first.replace("{p}", p) in self.left), family.prefixes[0])

    def take(self, tensor: Tensor, tied: bool) -> Iterator[Mapped]:
        """The tensor of every layer, or the one tensor; nothing where it is optional and not there."""
        layers = range(self.numbers[self.family.layers]) if "{i}" in tensor.name else (None,)
        if tied and tensor.untied:
            return
        missing = []
        for layer in layers:
            source = tensor.source.replace("{p}", self.prefix).replace("{i}", str(layer))
            if source not in self.left:
                missing.append(source)
                continue
            yield Mapped(tensor.name.replace("{i}", str(layer)), self._expr(source, tensor), layer, self._rows(tensor))
        if missing and self._required(tensor):
            fix = "it must be there because config.json says tie_word_embeddings: false" if tensor.untied else ""
            raise Unsupported(f"the model lacks {_list(missing)}", where=str(self.model.path), fix=fix)

    def rest(self, tied: bool) -> tuple[LeftOut, ...]:
        """What nobody took: the family says why it is not needed, or it is an error."""
        dropped = []
        unknown = []
        copies = {t.source: "config.json ties it to the embeddings" for t in self.family.tensors if t.untied and tied}
        for name in self.left:
            reason = copies.get(name) or next((why for p, why in self.family.ignored.items() if re.search(p, name)), None)
            if reason:
                dropped.append(LeftOut(name, "dropped", reason))
            else:
                unknown.append(name)
        if unknown:
            what = f"{self.model.architecture} has no tensor {_list(unknown)}"
            raise Unsupported(
                what, where=str(self.model.path), fix="the checkpoint is of another architecture than config.json says"
            )
        return tuple(dropped)

    def _required(self, tensor: Tensor) -> bool:
        return tensor.present if isinstance(tensor.present, bool) else bool(self.model.config.get(tensor.present))

    def _rows(self, tensor: Tensor) -> int:
        return max((step.rows(self.numbers) for step in tensor.steps), default=1)

    def _expr(self, source: str, tensor: Tensor) -> Expr:
        info = self.left.pop(source)
        where = f"{self.model.path}, tensor {source}"
        expected = tuple(product(size, self.numbers) for size in tensor.shape)
        if info.shape != expected:
            raise Unsupported(f"its shape is {list(info.shape)}, config.json says {list(expected)}", where=where)
        if info.dtype not in FLOATS:
            raise Unsupported(f"its type is {info.dtype}, not a float", where=where, fix="start from the unquantized model")
        expr: Expr = Read.of(info)
        if info.dtype not in ("F32", "F16", "BF16"):
            expr = Cast(expr, "F32")
        for step in tensor.steps:
            expr = step.apply(expr, self.numbers)
        return expr


def _list(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
