"""StableLM: layer norms with biases, and a rotation of part of each head.

Source: transformers' modeling_stablelm; the tensor and key names of llama.cpp's architecture `stablelm`. The 12B model has a
norm for each head, kept in a tensor of its own, and adds attention and MLP up in parallel.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from qconvd_gguf.families.base import FILE_TYPE, Config, Family, Key, Limit, Metadata, Number, Numbers, Tensor
from qconvd_gguf.families.decoder import (
    BLOCK,
    EMBEDDINGS,
    FREQUENCIES,
    HEAD,
    HIDDEN,
    LAYER,
    NUMBERS,
    SILU,
    attention,
    gated_mlp,
    norm,
    usual_head_width,
)
from qconvd_gguf.families.rope import dynamic_note, no_scaling, rotated, rotated_share, uncommon_theta


def _parallel(config: Config, numbers: Numbers) -> Metadata:  # noqa: ARG001
    return [("use_parallel_residual", "bool", bool(config.get("use_parallel_residual", False)))]


def _in_turn(config: Config) -> bool:
    return not config.get("use_parallel_residual", False)


def _recovered(found: Mapping[str, Any], tensors: Collection[str]) -> Config:
    return {
        "use_parallel_residual": bool(found.get("use_parallel_residual", False)),
        "qk_layernorm": "blk.0.attn_q_norm.weight" in tensors,
    }


FFN_NORM = LAYER + "post_attention_layernorm"

FAMILY = Family(
    name="stablelm",
    architectures=("StableLmForCausalLM", "StableLMEpochForCausalLM"),
    prefixes=("model.",),
    numbers={
        **{name: number for name, number in NUMBERS.items() if name != "eps"},
        "rotary_factor": Number(("partial_rotary_factor", "rope_parameters.partial_rotary_factor", "rope_pct"), 0.25),
        "rotary": Number((), rotated),
        "eps": Number(("layer_norm_eps", "norm_eps"), 1e-5),
    },
    metadata=(
        Key("context_length", "context"),
        Key("embedding_length", "hidden"),
        Key("block_count", "layers"),
        Key("feed_forward_length", "ffn"),
        Key("rope.dimension_count", "rotary"),
        Key("attention.head_count", "heads"),
        Key("attention.head_count_kv", "kv_heads"),
        _parallel,
        Key("attention.layer_norm_epsilon", "eps", "f32"),
        FILE_TYPE,
        uncommon_theta,
    ),
    tensors=(
        EMBEDDINGS,
        HEAD,
        *norm("output_norm", "{p}norm", bias=True),
        *norm(BLOCK + "attn_norm", LAYER + "input_layernorm", bias=True),
        *attention("use_qkv_bias"),
        Tensor(
            BLOCK + "attn_q_norm.weight",
            LAYER + "self_attn.q_layernorm.norms.{e}.weight",
            ("head_dim",),
            present="qk_layernorm",
            stack="heads",
        ),
        Tensor(
            BLOCK + "attn_k_norm.weight",
            LAYER + "self_attn.k_layernorm.norms.{e}.weight",
            ("head_dim",),
            present="qk_layernorm",
            stack="kv_heads",
        ),
        Tensor(BLOCK + "ffn_norm.weight", FFN_NORM + ".weight", (HIDDEN,), present=_in_turn),
        Tensor(BLOCK + "ffn_norm.bias", FFN_NORM + ".bias", (HIDDEN,), present=_in_turn),
        *gated_mlp(),
    ),
    ignored=FREQUENCIES,
    limits=(SILU, Limit("tie_word_embeddings", (False,), "llama.cpp wants an output layer of its own in this family")),
    checks=(usual_head_width, no_scaling),
    notes=(dynamic_note,),
    recover=(_recovered, rotated_share("partial_rotary_factor")),
)
