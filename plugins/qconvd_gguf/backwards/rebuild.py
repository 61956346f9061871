"""A GGUF or GGML model as the checkpoint of Hugging Face's libraries that it was made from, or could have been.

What comes out is proved before anything is written: converted forwards again, without weights, it must give this very file's
tensors and numbers.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from qconvd.api import Expr, LeftOut, ModelInfo, Rebuilt, TensorInfo, Unsupported
from qconvd_gguf import mapping, requantize
from qconvd_gguf.backwards import rope_factors
from qconvd_gguf.backwards.config import config_of
from qconvd_gguf.backwards.tensors import undone
from qconvd_gguf.backwards.tokenizer import tokenizer_files
from qconvd_gguf.backwards.values import all_metadata
from qconvd_gguf.families import known
from qconvd_gguf.families.base import Family
from qconvd_gguf.file_types import FILE_TYPES
from qconvd_gguf.legacy import source

HARMLESS = frozenset({"vocab_size", "tensor_data_layout", "rope.dimension_count", "attention.key_length",
                      "attention.value_length", "expert_count", "expert_used_count", "attention.causal"})  # fmt: skip
"""Keys that some converters write and ours does not, and that say nothing which the tensors' shapes do not say."""
ORIGINAL = "convert the checkpoint that it was made from"


@dataclass(frozen=True)
class Seen:
    """A model in GGUF's terms: its family's candidates, metadata with whole arrays, tensors by GGUF's names, and its config."""

    families: Sequence[Family]
    metadata: Mapping[str, Any]
    tensors: Mapping[str, Expr]
    config: Mapping[str, Any] | None = None
    """Where it is known without metadata."""
    notes: tuple[str, ...] = ()


class GgufRebuilder:
    """GGUF files and the GGML files from before it."""

    kinds: Sequence[str] = ("gguf", "ggml")

    def rebuild(self, model: ModelInfo, said: Mapping[str, Any]) -> Rebuilt:
        """`said` is what the recipe says of a GGML file. Raises `Unsupported` for what cannot be proved to be the original."""
        if model.kind == "ggml" and model.metadata["family"] == "gptj":
            return source.gptj(model)
        seen = self._ggml(model, said) if model.kind == "ggml" else self._gguf(model)
        problems = []
        for family in seen.families:
            try:
                return _rebuilt(family, seen, model)
            except Unsupported as error:
                problems.append(error)
        if problems:
            raise Unsupported(
                f"the original checkpoint cannot be rebuilt: {problems[0].what}", where=str(model.path), fix=ORIGINAL
            )
        what = f"the architecture {model.architecture or 'that it names not'} is not known, so its tensors cannot be named"
        raise Unsupported(what, where=str(model.path), fix=ORIGINAL)

    def _gguf(self, model: ModelInfo) -> Seen:
        families = [family for family in known() if family.name == model.architecture]
        return Seen(families, all_metadata(model), {m.name: m.expr for m in requantize.tensors(model)})

    def _ggml(self, model: ModelInfo, said: Mapping[str, Any]) -> Seen:
        found = source.seen(model, said)
        return Seen((found.family,), found.keys, found.tensors, found.config, tuple(found.notes))


def as_checkpoint(family: Family, config: Mapping[str, Any], tensors: Mapping[str, Expr], model: ModelInfo) -> ModelInfo:
    """The checkpoint as headers would describe it, with the side files of `model`. Raises `Unsupported` as `rebuild` does."""
    return _virtual(undone(family, mapping.numbers_of(family, config, str(model.path)), tensors), config, model)


def _virtual(made: Mapping[str, Expr], config: Mapping[str, Any], model: ModelInfo) -> ModelInfo:
    infos = {n: TensorInfo(n, "F32", x.shape, "model.safetensors", 0, 4 * prod(x.shape)) for n, x in made.items()}
    return replace(model, kind="safetensors", config=config, tensors=infos)


def said_by_gguf(model: ModelInfo, family: Family) -> tuple[dict[str, Any], dict[str, Any]]:
    """config.json and the metadata of a GGUF model of this family."""
    metadata = all_metadata(model)
    return config_of(family, metadata, model.tensors, _vocabulary(metadata, model.tensors)), metadata


def _rebuilt(family: Family, seen: Seen, model: ModelInfo) -> Rebuilt:
    shapes = {name: x.shape for name, x in seen.tensors.items()}
    vocabulary = shapes["token_embd.weight"][0] if "token_embd.weight" in shapes else 0
    config = dict(seen.config) if seen.config else config_of(family, seen.metadata, seen.tensors, vocabulary)
    numbers = mapping.numbers_of(family, config, str(model.path))
    if rope_factors.TENSOR in seen.tensors and model.kind == "gguf":
        config |= rope_factors.scaling(model, family, config, numbers)
    made = undone(family, numbers, seen.tensors)
    _proved(family, config, made, seen, model)
    files, missing = tokenizer_files(seen.metadata, int(numbers.get("context") or 0))
    left = tuple(LeftOut(t.name, "dropped", "config.json says it") for t in family.made if t.name in seen.tensors)
    return Rebuilt(made, config, tuple(files), left, (*seen.notes, *missing))


def _proved(family: Family, config: Mapping[str, Any], made: Mapping[str, Expr], seen: Seen, model: ModelInfo) -> None:
    """Raise `Unsupported` where the rebuilt checkpoint would become another GGUF."""
    stub = replace(_virtual(made, config, model), files=())
    again = mapping.apply(family, stub)
    shapes = {m.name: m.expr.shape for m in again.tensors}
    wanted = {name: x.shape for name, x in seen.tensors.items()}
    if shapes != wanted:
        odd = sorted(name for name in {*shapes, *wanted} if shapes.get(name) != wanted.get(name))
        raise Unsupported(f"{odd[0]} would be {shapes.get(odd[0])}, and is {wanted.get(odd[0])}")
    if seen.config is not None:
        return
    keys = {
        key: value for key, _, value in mapping.metadata(again, stub, ("general.file_type", "u32", FILE_TYPES["F16"].number))
    }
    for key, value in seen.metadata.items():
        name = key.removeprefix(f"{family.name}.")
        if name == key or (key not in keys and name in HARMLESS):
            continue
        if key not in keys:
            raise Unsupported(f"{key} is {_shown(value)}, which config.json would not say")
        if not _same(keys[key], value):
            raise Unsupported(f"{key} would be {_shown(keys[key])}, and is {_shown(value)}")


def _same(a: Any, b: Any) -> bool:
    if isinstance(b, list) and not isinstance(a, list):
        return all(_same(a, one) for one in b)
    if isinstance(a, float) or isinstance(b, float):
        try:
            return struct.pack("<f", a) == struct.pack("<f", b)
        except (struct.error, OverflowError):
            return False
    return bool(a == b)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 80 else f"{text[:77]}…"


def _vocabulary(metadata: Mapping[str, Any], tensors: Mapping[str, TensorInfo]) -> int:
    if "token_embd.weight" in tensors:
        return tensors["token_embd.weight"].shape[0]
    return len(metadata.get("tokenizer.ggml.tokens") or ())
