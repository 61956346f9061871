"""IBM's Granite 3: llama with multipliers of its own.

Source: transformers' modeling_granite; the tensor and key names of llama.cpp's architecture `granite`.
"""

from __future__ import annotations

from qconvd_gguf.families import llama
from qconvd_gguf.families.base import Family, Key, Number
from qconvd_gguf.families.decoder import (
    EMBEDDINGS,
    FREQUENCIES,
    HEAD,
    NUMBERS,
    SILU,
    UNSAID_HEAD_DIM,
    common_keys,
    gated_mlp,
    usual_head_width,
)
from qconvd_gguf.families.rope import dynamic_note, rope_scaling_or_factors

GRANITE = {
    **NUMBERS,
    "said_head_dim": UNSAID_HEAD_DIM,
    "attention_scale": Number(("attention_multiplier",), 1.0),
    "embedding_scale": Number(("embedding_multiplier",), 1.0),
    "residual_scale": Number(("residual_multiplier",), 1.0),
    "logit_scale": Number(("logits_scaling",), 1.0),
}
KEYS = (
    *llama.KEYS,
    Key("attention.scale", "attention_scale", "f32"),
    Key("embedding_scale", "embedding_scale", "f32"),
    Key("residual_scale", "residual_scale", "f32"),
    Key("logit_scale", "logit_scale", "f32"),
)

FAMILY = Family(
    name="granite",
    architectures=("GraniteForCausalLM",),
    prefixes=("model.",),
    numbers=GRANITE,
    metadata=(*common_keys(GRANITE, rope_scaling_or_factors), *KEYS),
    tensors=(EMBEDDINGS, HEAD, *llama.NORMS, *llama.ATTENTION, *gated_mlp("mlp_bias")),
    made=llama.FACTORS,
    ignored=FREQUENCIES,
    limits=(SILU,),
    checks=(usual_head_width,),
    notes=(dynamic_note,),
)
