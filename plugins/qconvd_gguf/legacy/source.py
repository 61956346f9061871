"""A GGML file in GGUF's terms: family, config, metadata of its tokenizer, and every tensor under GGUF's name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qconvd.api import Expr, ModelInfo, Read, Rebuilt, Unsupported
from qconvd_gguf import mapping, requantize
from qconvd_gguf.backwards.tokenizer import tokenizer_files
from qconvd_gguf.families import gpt2, gptneox, llama
from qconvd_gguf.families.base import Family
from qconvd_gguf.families.steps import Ungrouped
from qconvd_gguf.legacy.config import complete
from qconvd_gguf.legacy.names import to_gguf
from qconvd_gguf.legacy.vocabulary import tokenizer_keys

FAMILIES = {"llama": llama.FAMILY, "gpt2": gpt2.FAMILY, "gpt_neox": gptneox.FAMILY}
GROUPED = Ungrouped("heads")
"""gpt_neox's fused projection lies head by head in GGML, as in the checkpoint, and part by part in GGUF."""


@dataclass(frozen=True)
class SeenGgml:
    """`tensors` are float weights, `packed` the same as they are stored."""

    family: Family
    config: Mapping[str, Any]
    keys: Mapping[str, Any]
    tensors: Mapping[str, Expr]
    packed: Mapping[str, Expr]
    notes: list[str]


def seen(model: ModelInfo, said: Mapping[str, Any]) -> SeenGgml:
    """Raises `Unsupported` for gptj, which llama.cpp does not run, and for tensors that have no name in GGUF."""
    name = str(model.metadata["family"])
    if name not in FAMILIES:
        what = f"is a {name} model, which llama.cpp does not run"
        raise Unsupported(what, where=str(model.path), fix="make safetensors of it: fp16")
    family = FAMILIES[name]
    config, notes = complete(model, said)
    keys, more = tokenizer_keys(model)
    numbers = mapping.numbers_of(family, config, str(model.path))
    tensors: dict[str, Expr] = {}
    packed: dict[str, Expr] = {}
    for tensor in model.tensors.values():
        new = to_gguf(name, tensor.name)
        if new is None:
            raise Unsupported(f"{name} has no tensor {tensor.name}", where=str(model.path), fix="take the original model")
        tensors[new] = _turned(new, requantize.weights(tensor, model), name, numbers)
        packed[new] = _turned(new, Read.of(tensor), name, numbers)
    return SeenGgml(family, config, keys, tensors, packed, [*notes, *more])


def gptj(model: ModelInfo) -> Rebuilt:
    """A gptj file as a checkpoint: its tensors have the checkpoint's names and order already."""
    config, notes = complete(model, {})
    tensors = {t.name: requantize.weights(t, model) for t in model.tensors.values()}
    keys, more = _gptj_keys(model)
    files, missing = tokenizer_files(keys, int(config.get("n_positions") or 0))
    return Rebuilt(tensors, config, tuple(files), (), (*notes, *more, *missing))


def _gptj_keys(model: ModelInfo) -> tuple[dict[str, Any], list[str]]:
    """GPT-J has GPT-2's tokenizer."""
    try:
        return tokenizer_keys(model)
    except Unsupported as error:
        return {}, [error.what]


def _turned(new: str, expr: Expr, family: str, numbers: Mapping[str, Any]) -> Expr:
    return GROUPED.apply(expr, numbers) if family == "gpt_neox" and ".attn_qkv." in new else expr
