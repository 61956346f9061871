"""Llama 1, 2 and 3, Mistral, SmolLM and whatever else says it is one of them.

Source: transformers' modeling_llama and modeling_mistral; the tensor and key names of llama.cpp's architecture `llama`.
"""

from __future__ import annotations

from qconvd_gguf.families.base import Family, Key, Made
from qconvd_gguf.families.decoder import (
    BLOCK,
    EMBEDDINGS,
    FREQUENCIES,
    HEAD,
    LAYER,
    NUMBERS,
    SILU,
    attention,
    common_keys,
    gated_mlp,
    norm,
    sliding_window_note,
)
from qconvd_gguf.families.rope import dynamic_note, llama3_factors, rope_scaling_or_factors
from qconvd_gguf.families.steps import RopePairs

ATTENTION = attention("attention_bias", "attention_bias", (RopePairs("heads"),), (RopePairs("kv_heads"),))
NORMS = (
    *norm("output_norm", "{p}norm"),
    *norm(BLOCK + "attn_norm", LAYER + "input_layernorm"),
    *norm(BLOCK + "ffn_norm", LAYER + "post_attention_layernorm"),
)
FACTORS = (Made("rope_freqs.weight", llama3_factors),)
KEYS = (Key("vocab_size", "vocab"), Key("rope.dimension_count", "head_dim"))

FAMILY = Family(
    name="llama",
    architectures=("LlamaForCausalLM", "LLaMAForCausalLM", "MistralForCausalLM"),
    prefixes=("model.", ""),
    numbers=NUMBERS,
    metadata=(*common_keys(NUMBERS, rope_scaling_or_factors), *KEYS),
    tensors=(EMBEDDINGS, HEAD, *NORMS, *ATTENTION, *gated_mlp("mlp_bias")),
    made=FACTORS,
    ignored=FREQUENCIES,
    limits=(SILU,),
    notes=(dynamic_note, sliding_window_note),
)
