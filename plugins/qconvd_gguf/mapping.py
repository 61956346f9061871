"""A family applied to a model: config.json to metadata keys, and every tensor of the checkpoint to one of GGUF's.

Nothing is passed over in silence: a tensor that the family does not name, lacks or expects in another shape is an error.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from qconvd.api import FLOATS, Cast, Expr, LeftOut, ModelInfo, Read, Stack, Unsupported, reads
from qconvd_gguf.families.base import FILE_TYPE, Config, Family, Fixed, FromFiles, Key, Metadata, Number, Tensor, product

SHOWN = 5
"""Tensor names that an error lists before it counts the rest."""


@dataclass(frozen=True)
class Mapped:
    """A tensor of the GGUF file: how it is made, and which rows of it belong together."""

    name: str
    expr: Expr
    layer: int | None
    multiple: int = 1
    packed: Expr | None = None
    """The same as a GGUF or GGML source stores it, for a file in which it keeps its type."""


@dataclass(frozen=True)
class MappedModel:
    """A model seen through its family."""

    family: Family
    numbers: Mapping[str, Any]
    tensors: tuple[Mapped, ...]
    """In the order of llama.cpp's converter: what the model does not hold first, then by file and by name."""
    tied: bool
    config: Config
    dropped: tuple[LeftOut, ...]
    notes: tuple[str, ...]


def apply(family: Family, model: ModelInfo) -> MappedModel:
    """Map a model. Raises `Unsupported` with the names and numbers that do not fit."""
    tied = _tied(family, model)
    config = language_config(model.config)
    model = replace(model, config=config)
    numbers = numbers_of(family, config, str(model.path / "config.json"))
    _check_limits(family, model, numbers)
    if numbers[family.layers] > len(model.tensors):
        what = f"config.json says {numbers[family.layers]} layers, but the model has {len(model.tensors)} tensors"
        raise Unsupported(what, where=str(model.path))
    sources = _Sources(family, model, numbers)
    mapped = [m for tensor in family.tensors for m in sources.take(tensor, tied)]
    dropped = sources.rest(tied)
    made = []
    for made_tensor in family.made:
        expr = made_tensor.make(config, numbers)
        if expr is not None:
            made.append(Mapped(made_tensor.name, expr, None))
    order = {part: (t.file, t.name) for t in model.tensors.values() for part in reads(Read.of(t))}
    # What is made of several tensors stands where the last of them does.
    mapped.sort(key=lambda m: max(order[name] for name in reads(m.expr)))
    notes = [note for make in family.notes if (note := make(config, numbers))]
    return MappedModel(family, numbers, (*made, *mapped), tied, config, dropped, tuple(notes))


def language_config(config: Config) -> Config:
    """The language model's settings: multimodal models keep them in `text_config`, beside their towers'."""
    inner = config.get("text_config")
    return {**config, **inner} if isinstance(inner, Mapping) else config


def _tied(family: Family, model: ModelInfo) -> bool:
    """Whether the output layer is the embeddings. A multimodal config that says both is settled by what the model holds."""
    inner = model.config.get("text_config")
    configs = (model.config, inner) if isinstance(inner, Mapping) else (model.config,)
    said = {bool(config["tie_word_embeddings"]) for config in configs if "tie_word_embeddings" in config}
    if len(said) < 2:
        return said.pop() if said else family.ties
    heads = (name for tensor in family.tensors if tensor.untied for name in (tensor.source, *tensor.also))
    return not any(head.replace("{p}", prefix) in model.tensors for head in heads for prefix in family.prefixes)


def metadata(mapping: MappedModel, model: ModelInfo, file_type: tuple[str, str, Any]) -> Metadata:
    """The architecture's keys in the order of its converter, `file_type` where that writes it."""
    arch = mapping.family.name
    keys: Metadata = []
    for entry in mapping.family.metadata:
        if entry is FILE_TYPE:
            keys.append(file_type)
        elif isinstance(entry, Key | Fixed):
            keys += _key(f"{arch}.", entry, mapping.numbers)
        else:
            found = entry.make(model) if isinstance(entry, FromFiles) else entry(mapping.config, mapping.numbers)
            keys += [(f"{arch}.{name}", kind, value) for name, kind, value in found]
    for name, kind, value in keys:
        if kind == "u32" and not 0 <= value < 1 << 32:
            raise Unsupported(f"{name} would be {value}, which no GGUF can say", where=str(model.path / "config.json"))
    return keys


def vocabulary_metadata(mapping: MappedModel, model: ModelInfo) -> Metadata:
    """The family's keys that stand with the tokenizer; their names are whole."""
    keys: Metadata = []
    for entry in mapping.family.vocabulary:
        keys += entry.make(model) if isinstance(entry, FromFiles) else _key("", entry, mapping.numbers)
    return keys


def _key(prefix: str, entry: Key | Fixed, numbers: Mapping[str, Any]) -> Metadata:
    value = entry.value if isinstance(entry, Fixed) else product(entry.value, numbers)
    if value is None:
        return []
    return [(prefix + entry.name, entry.type, float(value) if entry.type == "f32" else value)]


def numbers_of(family: Family, config: Config, where: str) -> dict[str, Any]:
    """The family's numbers from a config. Raises `Unsupported` for one that is missing or none."""
    numbers: dict[str, Any] = {}
    for name, number in family.numbers.items():
        value = next((v for key in number.keys if (v := _find(config, key)) is not None), None)
        if value is None:
            value = _default(number, config, numbers)
        elif not _fits(value, number):
            raise Unsupported(f"{number.keys[0]} is {value!r}, which is no number", where=where)
        if value is None and not number.optional:
            raise Unsupported(
                f"{number.keys[0]} is missing", where=where, fix="take config.json from the model's own repository"
            )
        numbers[name] = value
    return numbers


def _default(number: Number, config: Config, numbers: Mapping[str, Any]) -> Any:
    if callable(number.default):
        return number.default(config, numbers)
    return product(number.default, numbers) if isinstance(number.default, str) else number.default


def _fits(value: Any, number: Number) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    if not (number.real or isinstance(number.default, float)):
        return isinstance(value, int) and value >= number.least
    # NaN and Infinity are numbers to Python's JSON; 10^400 is an int, but no float.
    return abs(value) <= sys.float_info.max


def _find(config: Config, dotted: str) -> Any:
    value: Any = config
    for part in dotted.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _check_limits(family: Family, model: ModelInfo, numbers: Mapping[str, Any]) -> None:
    where = str(model.path / "config.json")
    for limit in family.limits:
        value = _find(model.config, limit.key)
        value = limit.default if value is None else value
        if value is not None and value not in limit.values:
            raise Unsupported(f"{limit.key} is {value!r}: {limit.reason}", where=where)
    for check in family.checks:
        reason = check(model.config, numbers)
        if reason:
            raise Unsupported(reason, where=where)


class _Sources:
    """The checkpoint's tensors, each taken once."""

    def __init__(self, family: Family, model: ModelInfo, numbers: Mapping[str, Any]) -> None:
        self.family, self.model, self.numbers = family, model, numbers
        self.taken: set[str] = set()
        self.copies: dict[str, str] = {}
        first = next(t.source for t in family.tensors if "{p}" in t.source and "{i}" not in t.source)
        self.prefix = next((p for p in family.prefixes if first.replace("{p}", p) in model.tensors), family.prefixes[0])

    def take(self, tensor: Tensor, tied: bool) -> Iterator[Mapped]:
        """The tensor of every layer, or the one tensor; nothing where it is optional and not there."""
        layers: Sequence[int | None] = self._layers(tensor) if "{i}" in tensor.name else (None,)
        if tied and tensor.untied:
            return
        missing = []
        for layer in layers:
            sources = self._names(tensor, layer)
            absent = [name for name in sources if name not in self.model.tensors]
            if absent:
                missing += absent
                continue
            yield Mapped(tensor.name.replace("{i}", str(layer)), self._expr(sources, tensor), layer, self._rows(tensor))
        if missing and self._required(tensor):
            fix = "it must be there because config.json says tie_word_embeddings: false" if tensor.untied else ""
            raise Unsupported(f"the model lacks {listed(missing, SHOWN)}", where=str(self.model.path), fix=fix)

    def rest(self, tied: bool) -> tuple[LeftOut, ...]:
        """What nobody took: the family says why it is not needed, or it is an error."""
        dropped = []
        unknown = []
        copies = self.copies | {
            name.replace("{p}", self.prefix): "config.json ties it to the embeddings"
            for tensor in self.family.tensors
            if tensor.untied and tied
            for name in (tensor.source, *tensor.also)
        }
        for name in (name for name in self.model.tensors if name not in self.taken):
            reason = copies.get(name) or self._unneeded(name)
            if reason:
                dropped.append(LeftOut(name, "dropped", reason))
            else:
                unknown.append(name)
        if unknown:
            what = f"{self.model.architecture} has no tensor {listed(unknown, SHOWN)}"
            raise Unsupported(
                what, where=str(self.model.path), fix="the checkpoint is of another architecture than config.json says"
            )
        return tuple(dropped)

    def _unneeded(self, name: str) -> str | None:
        count = self.numbers[self.family.layers]
        spare = ((found, why) for pattern, why in self.family.spare.items() if (found := re.search(pattern, name)))
        reasons = [why for pattern, why in self.family.ignored.items() if re.search(pattern, name)]
        return next((why for found, why in spare if int(found[1]) >= count), reasons[0] if reasons else None)

    def _layers(self, tensor: Tensor) -> list[int]:
        layers = range(self.numbers[tensor.over or self.family.layers])
        return [i for i in layers if tensor.where is None or tensor.where(i, self.numbers)]

    def _required(self, tensor: Tensor) -> bool:
        if callable(tensor.present):
            return tensor.present(self.model.config)
        return tensor.present if isinstance(tensor.present, bool) else bool(self.model.config.get(tensor.present))

    def _rows(self, tensor: Tensor) -> int:
        return max((step.rows(self.numbers) for step in tensor.steps), default=1)

    def _names(self, tensor: Tensor, layer: int | None) -> list[str]:
        """The checkpoint's names of what the tensor is made of: one, or one for each that is stacked."""
        names = [n.replace("{p}", self.prefix).replace("{i}", str(layer)) for n in (tensor.source, *tensor.also)]
        if not tensor.stack:
            found = [name for name in names if name in self.model.tensors] or names[:1]
            self.copies |= dict.fromkeys(found[1:], f"a copy of {found[0]}")
            return found[:1]
        count = self.numbers[tensor.stack]
        if count > len(self.model.tensors):
            what = f"config.json says {count} {tensor.stack}, but the model has {len(self.model.tensors)} tensors"
            raise Unsupported(what, where=str(self.model.path))
        return [names[0].replace("{e}", str(e)) for e in range(count)]

    def _expr(self, sources: list[str], tensor: Tensor) -> Expr:
        found = [self._read(source, tensor) for source in sources]
        if tensor.stack and len({x.dtype for x in found}) > 1:
            found = [x if x.dtype == "F32" else Cast(x, "F32") for x in found]
        expr = Stack(tuple(found)) if tensor.stack else found[0]
        for step in tensor.steps:
            expr = step.apply(expr, self.numbers)
        return expr

    def _read(self, source: str, tensor: Tensor) -> Expr:
        info = self.model.tensors[source]
        self.taken.add(source)
        where = f"{self.model.path}, tensor {source}"
        expected = tuple(product(size, self.numbers) for size in tensor.shape)
        if info.shape != expected:
            raise Unsupported(f"its shape is {list(info.shape)}, config.json says {list(expected)}", where=where)
        if info.dtype not in FLOATS:
            raise Unsupported(f"its type is {info.dtype}, not a float", where=where, fix="start from the unquantized model")
        expr = Read.of(info)
        return expr if info.dtype in ("F32", "F16", "BF16") else Cast(expr, "F32")


def listed(names: Sequence[str], shown: int) -> str:
    """The first `shown` names, and how many there are besides."""
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more
