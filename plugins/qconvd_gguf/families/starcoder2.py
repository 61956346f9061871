"""StarCoder 2.

Source: transformers' modeling_starcoder2; the tensor and key names of llama.cpp's architecture `starcoder2`.
"""

from __future__ import annotations

from qconvd_gguf.families.base import Family, Limit, Number
from qconvd_gguf.families.decoder import (
    BLOCK,
    EMBEDDINGS,
    FFN,
    FREQUENCIES,
    HEAD,
    HIDDEN,
    LAYER,
    NUMBERS,
    SAID_HEAD_DIM,
    attention,
    common_keys,
    linear,
    norm,
    sliding_window_note,
)
from qconvd_gguf.families.rope import dynamic_note

STARCODER2 = {name: number for name, number in NUMBERS.items() if name not in ("eps", "head_dim")} | {
    "head_dim": Number((), "hidden/heads"),
    "said_head_dim": SAID_HEAD_DIM,
    "layer_norm_eps": Number(("norm_epsilon",), 1e-5),
}

FAMILY = Family(
    name="starcoder2",
    architectures=("Starcoder2ForCausalLM",),
    prefixes=("model.",),
    numbers=STARCODER2,
    metadata=common_keys(STARCODER2),
    tensors=(
        EMBEDDINGS,
        HEAD,
        *norm("output_norm", "{p}norm", bias=True),
        *norm(BLOCK + "attn_norm", LAYER + "input_layernorm", bias=True),
        *attention(bias=True, output_bias=True),
        *norm(BLOCK + "ffn_norm", LAYER + "post_attention_layernorm", bias=True),
        *linear(BLOCK + "ffn_up", LAYER + "mlp.c_fc", FFN, HIDDEN, True),
        *linear(BLOCK + "ffn_down", LAYER + "mlp.c_proj", HIDDEN, FFN, True),
    ),
    ties=True,
    ignored=FREQUENCIES,
    limits=(
        Limit("hidden_act", ("gelu_pytorch_tanh", "gelu_new", "gelu"), "llama.cpp computes starcoder2 with a GELU"),
        Limit("use_bias", (True,), "llama.cpp's starcoder2 needs biases"),
        Limit("mlp_type", ("default",), "llama.cpp's starcoder2 has no gated MLP"),
        Limit("norm_type", ("layer_norm",), "llama.cpp's starcoder2 has layer norms"),
    ),
    notes=(dynamic_note, sliding_window_note),
)
