"""Falcon 7B, 11B, 40B and 180B.

Source: transformers' modeling_falcon; the tensor and key names of llama.cpp's architecture `falcon`, whose graph has
attention and MLP side by side, without biases. The checkpoint's fused projection lies by groups of query heads that share
one key and one value head.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from qconvd_gguf.families.base import FILE_TYPE, Config, Family, Fixed, Key, Limit, Number, Numbers, Tensor
from qconvd_gguf.families.decoder import linear, norm
from qconvd_gguf.families.rope import THETA, dynamic_note, no_scaling, uncommon_theta
from qconvd_gguf.families.steps import Ungrouped

BLOCK, LAYER = "blk.{i}.", "{p}h.{i}."
HIDDEN, FFN = "hidden", "ffn"
QKV = (Ungrouped("kv_heads", queries="heads/kv_heads"),)


def _kv_heads(config: Config, numbers: Numbers) -> int:
    """One for all in Falcon 7B, whatever else its config says; one for each group in the later style."""
    heads = int(numbers["heads"])
    said = config.get("num_kv_heads") or config.get("n_head_kv")
    if not config.get("new_decoder_architecture", False):
        return 1 if config.get("multi_query", True) else heads
    return said if isinstance(said, int) and said > 0 else heads


def _two_norms(tensors: Collection[str]) -> bool:
    """Falcon 40B has a norm for attention and one for the MLP, which it calls by other names than the one for both."""
    return "blk.0.attn_norm_2.weight" in tensors


def _recovered(found: Mapping[str, Any], tensors: Collection[str]) -> Config:
    """Falcon 7B has one key head and one norm; those of the later style have several of one or the other."""
    kept = found.get("attention.head_count_kv")
    new = kept != 1 or _two_norms(tensors)
    style = {"num_kv_heads": kept, "num_ln_in_parallel_attn": 1 + _two_norms(tensors)} if new else {}
    return {"new_decoder_architecture": new, "multi_query": not new, **style}


def _one_block(config: Config, numbers: Numbers) -> str | None:  # noqa: ARG001
    if config.get("new_decoder_architecture", False) or config.get("parallel_attn", True):
        return None
    return "parallel_attn is False: llama.cpp's falcon computes attention and MLP side by side"


FAMILY = Family(
    name="falcon",
    architectures=("FalconForCausalLM", "RWForCausalLM"),
    prefixes=("transformer.", ""),
    numbers={
        "layers": Number(("num_hidden_layers", "n_layer")),
        "context": Number(("max_position_embeddings",), 2048),
        "hidden": Number(("hidden_size",)),
        "ffn": Number(("ffn_hidden_size",), "4*hidden"),
        "heads": Number(("num_attention_heads", "n_head")),
        "kv_heads": Number((), _kv_heads),
        "head_dim": Number((), "hidden/heads"),
        "rope_theta": THETA,
        "eps": Number(("layer_norm_epsilon",), 1e-5),
        "vocab": Number(("vocab_size",)),
    },
    metadata=(
        Key("context_length", "context"),
        Fixed("tensor_data_layout", "str", "jploski"),
        Key("embedding_length", "hidden"),
        Key("feed_forward_length", "ffn"),
        Key("block_count", "layers"),
        Key("attention.head_count", "heads"),
        Key("attention.head_count_kv", "kv_heads"),
        Key("attention.layer_norm_epsilon", "eps", "f32"),
        uncommon_theta,
        FILE_TYPE,
    ),
    tensors=(
        Tensor("token_embd.weight", "{p}word_embeddings.weight", ("vocab", HIDDEN)),
        Tensor("output.weight", "lm_head.weight", ("vocab", HIDDEN), untied=True),
        *norm("output_norm", "{p}ln_f", bias=True),
        Tensor(BLOCK + "attn_norm.weight", LAYER + "input_layernorm.weight", (HIDDEN,), also=(LAYER + "ln_mlp.weight",)),
        Tensor(BLOCK + "attn_norm.bias", LAYER + "input_layernorm.bias", (HIDDEN,), also=(LAYER + "ln_mlp.bias",)),
        Tensor(BLOCK + "attn_norm_2.weight", LAYER + "ln_attn.weight", (HIDDEN,), present=False),
        Tensor(BLOCK + "attn_norm_2.bias", LAYER + "ln_attn.bias", (HIDDEN,), present=False),
        *linear(
            BLOCK + "attn_qkv",
            LAYER + "self_attention.query_key_value",
            "hidden+2*kv_heads*head_dim",
            HIDDEN,
            steps=QKV,
        ),
        *linear(BLOCK + "attn_output", LAYER + "self_attention.dense", HIDDEN, HIDDEN),
        *linear(BLOCK + "ffn_up", LAYER + "mlp.dense_h_to_4h", FFN, HIDDEN),
        *linear(BLOCK + "ffn_down", LAYER + "mlp.dense_4h_to_h", HIDDEN, FFN),
    ),
    ties=True,
    ignored={r"\.rotary_emb\.inv_freq$": "readers compute the rotation's frequencies themselves"},
    limits=(
        Limit("alibi", (False,), "llama.cpp's falcon has rotary positions only"),
        Limit("bias", (False,), "llama.cpp's falcon has no biases"),
        Limit("activation", ("gelu",), "llama.cpp's graph for this family has the GELU built in"),
    ),
    checks=(_one_block, no_scaling),
    recover=(_recovered,),
    other_names=_two_norms,
    notes=(dynamic_note,),
)
