"""OLMo 2: norms after each part, and over all query and all key heads.

Source: transformers' modeling_olmo2; the tensor and key names of llama.cpp's architecture `olmo2`.
"""

from __future__ import annotations

from qconvd_gguf.families.base import Family, Limit
from qconvd_gguf.families.decoder import (
    BLOCK,
    EMBEDDINGS,
    FREQUENCIES,
    HEAD,
    KV,
    LAYER,
    NUMBERS,
    SAID_HEAD_DIM,
    SILU,
    Q,
    attention,
    common_keys,
    gated_mlp,
    norm,
    usual_head_width,
)
from qconvd_gguf.families.rope import dynamic_note

OLMO2 = {**NUMBERS, "said_head_dim": SAID_HEAD_DIM}

FAMILY = Family(
    name="olmo2",
    architectures=("Olmo2ForCausalLM",),
    prefixes=("model.",),
    numbers=OLMO2,
    metadata=common_keys(OLMO2),
    tensors=(
        EMBEDDINGS,
        HEAD,
        *norm("output_norm", "{p}norm"),
        *attention(),
        *norm(BLOCK + "attn_q_norm", LAYER + "self_attn.q_norm", Q),
        *norm(BLOCK + "attn_k_norm", LAYER + "self_attn.k_norm", KV),
        *norm(BLOCK + "post_attention_norm", LAYER + "post_attention_layernorm"),
        *gated_mlp(),
        *norm(BLOCK + "post_ffw_norm", LAYER + "post_feedforward_layernorm"),
    ),
    ignored=FREQUENCIES,
    limits=(
        SILU,
        Limit("attention_bias", (False,), "llama.cpp knows this family without biases"),
        Limit("tie_word_embeddings", (False,), "llama.cpp wants an output layer of its own in this family"),
    ),
    checks=(usual_head_width,),
    notes=(dynamic_note,),
)
