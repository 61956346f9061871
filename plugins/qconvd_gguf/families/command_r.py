"""Cohere's Command R, R+ and Aya: one norm before attention and MLP, which are added up in parallel.

Source: transformers' modeling_cohere; the tensor and key names of llama.cpp's architecture `command-r`.
"""

from __future__ import annotations

from qconvd_gguf.families.base import Config, Family, Fixed, Key, Limit, Number, Numbers, Tensor
from qconvd_gguf.families.decoder import (
    BLOCK,
    EMBEDDINGS,
    FREQUENCIES,
    HEAD,
    LAYER,
    NUMBERS,
    SILU,
    UNSAID_HEAD_DIM,
    attention,
    common_keys,
    gated_mlp,
    norm,
    usual_head_width,
)
from qconvd_gguf.families.rope import dynamic_note, no_scaling

COHERE = {
    **{name: number for name, number in NUMBERS.items() if name != "eps"},
    "context": Number(("model_max_length", "max_position_embeddings"), 8192),
    "layer_norm_eps": Number(("layer_norm_eps",), 1e-5),
    "logit_scale": Number(("logit_scale",), 0.0625),
}
COMMAND_R = {**COHERE, "said_head_dim": UNSAID_HEAD_DIM}
TENSORS = (
    EMBEDDINGS,
    HEAD,
    *norm("output_norm", "{p}norm"),
    *norm(BLOCK + "attn_norm", LAYER + "input_layernorm"),
    *attention(),
    *gated_mlp(),
)
LIMITS = (
    SILU,
    Limit("attention_bias", (False,), "llama.cpp knows this family without biases"),
    Limit("tie_word_embeddings", (True,), "llama.cpp ties the output layer to the embeddings in this family"),
)
UNSCALED = Fixed("rope.scaling.type", "str", "none")
NORMED_FROM = 64


def _head_norms(config: Config, numbers: Numbers) -> str | None:
    """llama.cpp tells the models whose heads are normed by their number of layers."""
    if bool(config.get("use_qk_norm")) == (numbers["layers"] >= NORMED_FROM):
        return None
    expected = "norms of heads" if numbers["layers"] >= NORMED_FROM else "no norms of heads"
    return f"use_qk_norm does not fit: llama.cpp expects {expected} in a model of {numbers['layers']} layers"


FAMILY = Family(
    name="command-r",
    architectures=("CohereForCausalLM",),
    prefixes=("model.",),
    numbers=COMMAND_R,
    metadata=(*common_keys(COMMAND_R), Key("logit_scale", "logit_scale", "f32"), UNSCALED),
    tensors=(
        *TENSORS,
        Tensor(BLOCK + "attn_q_norm.weight", LAYER + "self_attn.q_norm.weight", ("heads", "head_dim"), present="use_qk_norm"),
        Tensor(
            BLOCK + "attn_k_norm.weight", LAYER + "self_attn.k_norm.weight", ("kv_heads", "head_dim"), present="use_qk_norm"
        ),
    ),
    ties=True,
    ignored=FREQUENCIES,
    limits=LIMITS,
    checks=(usual_head_width, no_scaling, _head_norms),
    notes=(dynamic_note,),
)
