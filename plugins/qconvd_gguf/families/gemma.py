"""Gemma (the first) and CodeGemma.

Source: transformers' modeling_gemma; the tensor and key names of llama.cpp's architecture `gemma`. Norm weights are stored
minus one, and the graph scales the embeddings.
"""

from __future__ import annotations

from qconvd_gguf.families.base import FILE_TYPE, Family, Key, Limit, Number
from qconvd_gguf.families.decoder import (
    BLOCK,
    EMBEDDINGS,
    FREQUENCIES,
    HEAD,
    LAYER,
    NUMBERS,
    attention,
    gated_mlp,
    norm,
)
from qconvd_gguf.families.rope import dynamic_note, no_scaling, uncommon_theta
from qconvd_gguf.families.steps import PlusOne

ONE = (PlusOne(),)
NORMS = (*norm("output_norm", "{p}norm", steps=ONE), *norm(BLOCK + "attn_norm", LAYER + "input_layernorm", steps=ONE))
GEMMA = {**NUMBERS, "head_dim": Number(("head_dim",), 256)}
KEYS = (
    Key("context_length", "context"),
    Key("embedding_length", "hidden"),
    Key("block_count", "layers"),
    Key("feed_forward_length", "ffn"),
    Key("attention.head_count", "heads"),
    Key("attention.head_count_kv", "kv_heads"),
    Key("attention.layer_norm_rms_epsilon", "eps", "f32"),
    Key("attention.key_length", "head_dim"),
    Key("attention.value_length", "head_dim"),
    FILE_TYPE,
    uncommon_theta,
)
TANH = ("gelu_pytorch_tanh", "gelu_new", "gelu")
"""The first configs said `gelu` and meant the approximation, which transformers and llama.cpp both compute."""
LIMITS = (
    Limit("hidden_activation", TANH, "llama.cpp computes this family with the tanh GELU"),
    Limit("attention_bias", (False,), "llama.cpp knows this family without biases"),
    Limit("tie_word_embeddings", (True,), "llama.cpp ties the output layer to the embeddings in this family"),
    Limit("use_bidirectional_attention", (False,), "llama.cpp generates with this family, each token seeing those before it"),
)


FAMILY = Family(
    name="gemma",
    architectures=("GemmaForCausalLM",),
    prefixes=("model.",),
    numbers=GEMMA,
    metadata=KEYS,
    tensors=(
        EMBEDDINGS,
        HEAD,
        *NORMS,
        *attention(),
        *norm(BLOCK + "ffn_norm", LAYER + "post_attention_layernorm", steps=ONE),
        *gated_mlp(),
    ),
    ties=True,
    ignored=FREQUENCIES,
    limits=LIMITS,
    checks=(no_scaling,),
    notes=(dynamic_note,),
)
