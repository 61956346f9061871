"""Gemma 2: a norm before and after each part, capped logits, a window in every other layer.

Source: transformers' modeling_gemma2; the tensor and key names of llama.cpp's architecture `gemma2`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from qconvd_gguf.families.base import Config, Family, Key, Number, Numbers
from qconvd_gguf.families.decoder import (
    BLOCK,
    EMBEDDINGS,
    FREQUENCIES,
    HEAD,
    LAYER,
    attention,
    gated_mlp,
    norm,
    window_every,
)
from qconvd_gguf.families.gemma import GEMMA, KEYS, LIMITS, NORMS, ONE
from qconvd_gguf.families.rope import dynamic_note, no_scaling

AROUND = (
    *NORMS,
    *norm(BLOCK + "post_attention_norm", LAYER + "post_attention_layernorm", steps=ONE),
    *norm(BLOCK + "ffn_norm", LAYER + "pre_feedforward_layernorm", steps=ONE),
    *norm(BLOCK + "post_ffw_norm", LAYER + "post_feedforward_layernorm", steps=ONE),
)


def query_scale(config: Config, numbers: Numbers, wide: int) -> str | None:
    """llama.cpp scales queries by a head's width, in the model of `wide` layers by the hidden width's share of a head."""
    expected = numbers["hidden"] // numbers["heads"] if numbers["layers"] == wide else numbers["head_dim"]
    said = config.get("query_pre_attn_scalar", 256)
    return None if said == expected else f"query_pre_attn_scalar is {said}: llama.cpp takes it to be {expected} in this model"


def recovered_scale(wide: int) -> Callable[[Mapping[str, Any], Collection[str]], Config]:
    """For `Family.recover`: what `query_scale` asks for."""

    def recover(found: Mapping[str, Any], tensors: Collection[str]) -> Config:  # noqa: ARG001
        hidden, heads, width = (found.get(k) for k in ("embedding_length", "attention.head_count", "attention.key_length"))
        usual = hidden // heads if isinstance(hidden, int) and isinstance(heads, int) and heads else None
        return {"query_pre_attn_scalar": usual if found.get("block_count") == wide else width or usual}

    return recover


FAMILY = Family(
    name="gemma2",
    architectures=("Gemma2ForCausalLM",),
    prefixes=("model.",),
    numbers={
        **GEMMA,
        "attention_cap": Number(("attn_logit_softcapping",), 50.0),
        "logit_cap": Number(("final_logit_softcapping",), 30.0),
        "window": Number(("sliding_window",), 4096),
    },
    metadata=(
        *KEYS,
        Key("attn_logit_softcapping", "attention_cap", "f32"),
        Key("final_logit_softcapping", "logit_cap", "f32"),
        Key("attention.sliding_window", "window"),
    ),
    tensors=(EMBEDDINGS, HEAD, *AROUND, *attention(), *gated_mlp()),
    ties=True,
    ignored=FREQUENCIES,
    limits=LIMITS,
    checks=(no_scaling, window_every(2), lambda config, numbers: query_scale(config, numbers, wide=46)),
    notes=(dynamic_note,),
    recover=(recovered_scale(wide=46),),
)
