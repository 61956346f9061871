"""LLaMA-type models as GGJT 3: what its header can say, and in words what it cannot.

Tensors come under GGUF's names, from a checkpoint or from a GGUF: rows of queries and keys lie alike in both formats.
Source: llama.cpp's convert.py of June 2023; its reader computes with what the header does not say: plain rotation with base
10000, no biases, no experts, and as many key heads as query heads unless the person who runs it says otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from qconvd.api import Expr, ModelInfo, TensorInfo, Unsupported
from qconvd_ggjt.contents import Contents, Held, repeated
from qconvd_ggjt.vocabulary import llama_tokens
from qconvd_gguf import mapping, requantize
from qconvd_gguf.backwards.rebuild import said_by_gguf
from qconvd_gguf.families import family_of, llama
from qconvd_gguf.families.rope import rope_kind
from qconvd_gguf.legacy.names import LLAMA, to_ggml
from qconvd_gguf.tokenizer import tokenizer_metadata

EPS = 5e-6
"""What readers take for the norms' epsilon if nobody says otherwise."""
SEVENTY = (80, 64, 8)
"""Layers, heads and key heads of Llama 2 70B, which readers know."""
FIX = "take gguf, which can say it"


def contents(model: ModelInfo, *, expand_gqa: bool) -> Contents:
    """Raises `Unsupported` with what the header cannot say."""
    config, tensors, stored, keys, notes = _gguf(model) if model.kind == "gguf" else _checkpoint(model)
    numbers = mapping.numbers_of(llama.FAMILY, config, str(model.path))
    _check_tokens(keys, model)
    _check(config, numbers, model, expand_gqa=expand_gqa)  # last, what an option mends
    tokens, scores = llama_tokens(keys, numbers["vocab"], str(model.path))
    heads, groups = numbers["heads"], numbers["heads"] // numbers["kv_heads"]
    repeat = groups if expand_gqa else 1
    mult = n_mult_of(numbers["hidden"], numbers["ffn"], model, seventy=groups > 1 and repeat == 1)
    held = []
    grown = 0
    for pattern, gguf in LLAMA.items():
        for layer in range(numbers["layers"]) if "{i}" in gguf else (None,):
            name = gguf.replace("{i}", str(layer))
            source = name if name in tensors else "token_embd.weight"  # the output layer of tied embeddings
            expr, kept, times = tensors[source], stored.get(source), 1
            if repeat > 1 and ("attn_k." in name or "attn_v." in name):
                grown += (repeat - 1) * expr.shape[0] * expr.shape[1]
                expr, times = repeated(expr, numbers["kv_heads"], repeat), repeat
            width = numbers["head_dim"] if "attn_q." in name or "attn_k." in name else 1
            multiple = width if model.kind != "gguf" else 1
            held.append(Held(pattern.replace("{i}", str(layer)), expr, layer, multiple, kept, times, numbers["kv_heads"]))
    order = [to_ggml("llama", name) or "" for name in ("token_embd.weight", "output_norm.weight", "output.weight")]
    held.sort(key=lambda h: (h.layer is not None, h.layer or 0, order.index(h.name) if h.layer is None else 0))
    return Contents(
        family="llama",
        numbers=(numbers["vocab"], numbers["hidden"], mult, heads, numbers["layers"], numbers["head_dim"]),
        tokens=tokens,
        scores=scores,
        tensors=tuple(held),
        floats=frozenset(),
        one_type=False,
        traits=_traits(numbers, repeat),
        notes=(*notes, *_notes(numbers, expanded=repeat > 1)),
        grown=grown,
    )


Seen = tuple[Mapping[str, Any], Mapping[str, Expr], Mapping[str, TensorInfo], Mapping[str, Any], list[str]]
"""config.json, tensors by GGUF's names, those that are a GGUF's own, the tokenizer's keys, notes."""


def _checkpoint(model: ModelInfo) -> Seen:
    family = family_of(model)
    _check_family(family.name, model)
    seen = mapping.apply(family, model)
    _check_tensors([m.name for m in seen.tensors], model)
    keys, notes = tokenizer_metadata(model, seen.numbers["vocab"], "default")
    # How llama.cpp's pre-tokenizer is called matters to no reader of these files.
    notes = [note for note in notes if "tokenizer.ggml.pre" not in note]
    return seen.config, {m.name: m.expr for m in seen.tensors}, {}, {k: v for k, _, v in keys}, [*seen.notes, *notes]


def _gguf(model: ModelInfo) -> Seen:
    _check_family(model.architecture, model)
    _check_tensors(list(model.tensors), model)
    config, keys = said_by_gguf(model, llama.FAMILY)
    weights = {m.name: m.expr for m in requantize.tensors(model)}
    return config, weights, model.tensors, keys, []


def _check_family(name: str, model: ModelInfo) -> None:
    if name != "llama":
        what = f"{model.architecture or name} has no form in GGML that readers know"
        fix = "llama, gpt2, gptj and gpt_neox have; take gguf for this model"
        raise Unsupported(what, where=str(model.path), fix=fix)


def _check_tensors(names: list[str], model: ModelInfo) -> None:
    reasons = {
        "_exps.": "experts", "ffn_gate_inp": "experts", ".bias": "biases", "rope_freqs": "llama 3's scaled rotation",
        "attn_q_norm": "norms of queries and keys",
    }  # fmt: skip
    for name in names:
        reason = next((why for part, why in reasons.items() if part in name), None)
        if reason:
            raise _cannot(f"the model has {reason} ({name}), which a GGML header cannot say", model)


def _check(config: Mapping[str, Any], numbers: Mapping[str, Any], model: ModelInfo, *, expand_gqa: bool) -> None:
    theta, kind = float(numbers["rope_theta"]), rope_kind(config)
    if theta != 10000.0:
        raise _cannot(f"the rotation's base is {theta:g}, and readers of GGML take it for 10000", model)
    if kind not in ("default", "none", "dynamic"):
        raise _cannot(f"the rotation is scaled ({kind}), which a GGML header cannot say", model)
    heads, kept, width = numbers["heads"], numbers["kv_heads"], numbers["head_dim"]
    if heads * width != numbers["hidden"]:
        what = f"{heads} heads of {width} are not the model's width of {numbers['hidden']}, which a GGML header cannot say"
        raise _cannot(what, model)
    if heads % kept:
        raise _cannot(f"{heads} query heads do not divide among {kept} key heads", model)
    if kept != heads and not expand_gqa and (numbers["layers"], heads, kept) != SEVENTY:
        what = (
            f"the model has {kept} key heads for {heads} query heads (grouped-query attention), which a GGML header cannot say"
        )
        fix = "say `expand_gqa: true` under ggml, which repeats them (`qconvd plan` shows what that costs), or take gguf"
        raise Unsupported(what, where=str(model.path), fix=fix)


def _check_tokens(keys: Mapping[str, Any], model: ModelInfo) -> None:
    kind = keys.get("tokenizer.ggml.model")
    if kind == "gpt2":
        raise _cannot("the vocabulary is byte-level BPE; LLaMA's GGML readers know SentencePiece only", model)
    if kind != "llama":
        raise _cannot(f"the vocabulary is of the kind {kind}; LLaMA's GGML readers know SentencePiece only", model)
    ids = [keys.get(f"tokenizer.ggml.{name}_token_id", usual) for name, usual in (("bos", 1), ("eos", 2))]
    if ids != [1, 2]:
        raise _cannot(f"BOS and EOS are the tokens {ids[0]} and {ids[1]}, and readers of GGML take them for 1 and 2", model)


def mlp_width(hidden: int, n_mult: int, *, seventy: bool) -> int:
    """What readers make of `n_mult`. Of what they take for Llama 2 70B they multiply the width by 1.3 first."""
    rest = 8 * hidden // 3
    rest = int(1.3 * rest) if seventy else rest
    return -(-rest // n_mult) * n_mult


def n_mult_of(hidden: int, ffn: int, model: ModelInfo, *, seventy: bool) -> int:
    """A number from which readers compute this width of the MLP. Raises `Unsupported` where there is none."""
    tried: Iterable[int] = (256, *range(min(ffn, 1 << 17), 0, -1))
    for number in tried:
        if mlp_width(hidden, number, seventy=seventy) == ffn:
            return number
    raise _cannot(f"the MLP is {ffn} wide at a model's width of {hidden}, which the header's n_mult cannot say", model)


def _notes(numbers: Mapping[str, Any], *, expanded: bool) -> list[str]:
    notes = []
    if abs(numbers["eps"] - EPS) > 1e-12:
        notes.append(
            f"the header cannot say that the norms' epsilon is {numbers['eps']:g}: "
            f"readers compute with {EPS:g} unless they are told"
        )
    if numbers["kv_heads"] != numbers["heads"] and not expanded:
        notes.append(f"readers must be told of grouped-query attention: n_gqa {numbers['heads'] // numbers['kv_heads']}")
    if numbers["context"] != 2048:
        notes.append(f"the header cannot say that the context is {numbers['context']} tokens: readers must be told")
    return notes


def _traits(numbers: Mapping[str, Any], repeat: int) -> dict[str, object]:
    return {
        "general.architecture": "llama", "llama.block_count": numbers["layers"],
        "llama.attention.head_count": numbers["heads"], "llama.attention.head_count_kv": numbers["kv_heads"] * repeat,
    }  # fmt: skip


def _cannot(what: str, model: ModelInfo) -> Unsupported:
    return Unsupported(what, where=str(model.path), fix=FIX)
