"""The first OLMo: norms without weights, and clipped queries, keys and values.

Source: transformers' modeling_olmo; the tensor and key names of llama.cpp's architecture `olmo`.
"""

from __future__ import annotations

from qconvd_gguf.families.base import Family, Fixed, Key, Limit, Number
from qconvd_gguf.families.decoder import (
    EMBEDDINGS,
    FREQUENCIES,
    HEAD,
    NUMBERS,
    SILU,
    UNSAID_HEAD_DIM,
    attention,
    common_keys,
    gated_mlp,
    usual_head_width,
)
from qconvd_gguf.families.rope import dynamic_note
from qconvd_gguf.families.steps import RopePairs

OLMO = {
    **{name: number for name, number in NUMBERS.items() if name != "eps"},
    "said_head_dim": UNSAID_HEAD_DIM,
    "clip": Number(("clip_qkv",), optional=True, real=True),
}

FAMILY = Family(
    name="olmo",
    architectures=("OlmoForCausalLM", "OLMoForCausalLM"),
    prefixes=("model.",),
    numbers=OLMO,
    metadata=(
        *common_keys(OLMO),
        Fixed("attention.layer_norm_epsilon", "f32", 1e-5),
        Key("attention.clamp_kqv", "clip", "f32"),
    ),
    tensors=(EMBEDDINGS, HEAD, *attention(query=(RopePairs("heads"),), key=(RopePairs("kv_heads"),)), *gated_mlp()),
    ignored=FREQUENCIES,
    limits=(SILU, Limit("attention_bias", (False,), "llama.cpp knows this family without biases")),
    checks=(usual_head_width,),
    notes=(dynamic_note,),
)
