"""A GGML file as the source of another: the same header, vocabulary and names, other types."""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import prod

from qconvd.api import Expr, ModelInfo, TensorInfo, ggml_vocabulary
from qconvd_ggjt.contents import Contents, Held, repeated
from qconvd_ggjt.llama import SEVENTY, mlp_width, n_mult_of
from qconvd_gguf import requantize

FLOATS = frozenset({"model/wpe"})


def contents(model: ModelInfo, *, expand_gqa: bool) -> Contents:
    """Raises as the reader of the file does, and `Unsupported` for a width of the MLP that no `n_mult` gives."""
    family = str(model.metadata["family"])
    names = [key for key in model.metadata if key not in ("container", "family", "ftype")]
    numbers = {key: int(model.metadata[key]) for key in names}
    read = ggml_vocabulary(model)
    weights = {m.name: m.expr for m in requantize.tensors(model)}
    scored = family == "llama"
    heads = numbers["n_head"]
    kept = int(model.config["num_key_value_heads"]) if scored else heads
    times = heads // kept if expand_gqa else 1
    if scored:
        numbers["n_mult"] = _n_mult(model, numbers, grouped=kept * times != heads)
    tensors = tuple(_held(t, weights[t.name], kept, times) for t in model.tensors.values())
    return Contents(
        family=family,
        numbers=tuple(numbers.values()),
        tokens=[token for token, _ in read],
        scores=[score for _, score in read] if scored else [],
        tensors=tensors,
        floats=FLOATS,
        one_type=not scored,
        traits=_traits(model, kept * times),
        notes=_notes(model, heads // (kept * times)),
        grown=sum(prod(h.expr.shape) - prod(h.expr.shape) // h.times for h in tensors),
    )


def _held(tensor: TensorInfo, weights: Expr, heads: int, times: int) -> Held:
    repeat = times if tensor.name.endswith(("attention.wk.weight", "attention.wv.weight")) else 1
    return Held(tensor.name, repeated(weights, heads, repeat), _layer(tensor.name), stored=tensor, times=repeat, heads=heads)


def _n_mult(model: ModelInfo, numbers: Mapping[str, int], *, grouped: bool) -> int:
    """The source's own, as long as it says how wide the MLP is."""
    said, hidden, ffn = numbers["n_mult"], numbers["n_embd"], int(model.config["intermediate_size"])
    seventy = grouped and numbers["n_layer"] == SEVENTY[0]
    if said and mlp_width(hidden, said, seventy=seventy) == ffn:
        return said
    return n_mult_of(hidden, ffn, model, seventy=seventy)


def _traits(model: ModelInfo, kept: int) -> dict[str, object]:
    config = model.config
    return {
        "general.architecture": "llama",
        "llama.block_count": config.get("num_hidden_layers", 0),
        "llama.attention.head_count": config.get("num_attention_heads", 0),
        "llama.attention.head_count_kv": kept,
    }


def _notes(model: ModelInfo, grouped: int) -> tuple[str, ...]:
    notes = []
    if model.metadata["family"] == "llama" and model.metadata["container"] in ("GGML", "GGMF 1", "GGJT 1", "GGJT 2"):
        notes.append(f"the source is {model.metadata['container']}; what is made of it is GGJT 3")
    if grouped > 1:
        notes.append(f"readers must be told of grouped-query attention: n_gqa {grouped}")
    return tuple(notes)


def _layer(name: str) -> int | None:
    found = re.match(r"(?:layers\.|model/h|transformer\.h\.|gpt_neox\.layers\.)(\d+)", name)
    return int(found[1]) if found else None
