"""A GGML file as the source of another: the same header, vocabulary and names, other types."""

from __future__ import annotations

import re

from qconvd.api import ModelInfo, ggml_vocabulary
from qconvd_ggjt.contents import Contents, Held
from qconvd_gguf import requantize

FLOATS = frozenset({"model/wpe"})


def contents(model: ModelInfo) -> Contents:
    """Raises as the reader of the file does."""
    family = str(model.metadata["family"])
    names = [key for key in model.metadata if key not in ("container", "family", "ftype")]
    read = ggml_vocabulary(model)
    weights = {m.name: m.expr for m in requantize.tensors(model)}
    tensors = tuple(Held(t.name, weights[t.name], _layer(t.name), stored=t) for t in model.tensors.values())
    scored = family == "llama"
    return Contents(
        family=family,
        numbers=tuple(int(model.metadata[key]) for key in names),
        tokens=[token for token, _ in read],
        scores=[score for _, score in read] if scored else [],
        tensors=tensors,
        floats=FLOATS,
        one_type=not scored,
        traits=_traits(model),
        notes=_notes(model),
    )


def _traits(model: ModelInfo) -> dict[str, object]:
    config = model.config
    return {
        "general.architecture": "llama",
        "llama.block_count": config.get("num_hidden_layers", 0),
        "llama.attention.head_count": config.get("num_attention_heads", 0),
        "llama.attention.head_count_kv": config.get("num_key_value_heads", 0),
    }


def _notes(model: ModelInfo) -> tuple[str, ...]:
    if model.metadata["family"] == "llama" and model.metadata["container"] in ("GGML", "GGMF 1", "GGJT 1", "GGJT 2"):
        return (f"the source is {model.metadata['container']}; what is made of it is GGJT 3",)
    return ()


def _layer(name: str) -> int | None:
    found = re.match(r"(?:layers\.|model/h|transformer\.h\.|gpt_neox\.layers\.)(\d+)", name)
    return int(found[1]) if found else None
