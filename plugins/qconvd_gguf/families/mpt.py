"""MPT and what is trained with LLM Foundry.

Source: transformers' modeling_mpt and llm-foundry's; the tensor and key names of llama.cpp's architecture `mpt`.
"""

from __future__ import annotations

from collections.abc import Mapping

from qconvd_gguf.families.base import Config, Family, Key, Limit, Metadata, Number, Numbers, Tensor
from qconvd_gguf.families.decoder import linear, norm

BLOCK, LAYER = "blk.{i}.", "{p}blocks.{i}."
HIDDEN, FFN = "hidden", "ffn"


def _alibi(config: Config, numbers: Numbers) -> Metadata:
    """How steep ALiBi is; 0 where there is none."""
    said = config.get("attn_config")
    used = said.get("alibi", True) if isinstance(said, Mapping) else True
    return [("attention.max_alibi_bias", "f32", float(numbers["steepest"]) if used else 0.0)]


def _scale(config: Config, numbers: Numbers) -> str | None:  # noqa: ARG001
    said = config.get("attn_config")
    scale = said.get("softmax_scale") if isinstance(said, Mapping) else None
    if scale is None and config.get("logit_scale") is None:
        return None
    return "softmax_scale or logit_scale is set: llama.cpp's mpt scales attention by the head's width, and logits not at all"


FAMILY = Family(
    name="mpt",
    architectures=("MPTForCausalLM", "MptForCausalLM"),
    prefixes=("transformer.", ""),
    numbers={
        "layers": Number(("n_layers", "num_hidden_layers")),
        "context": Number(("max_seq_len",), 2048),
        "hidden": Number(("d_model", "hidden_size")),
        "ffn": Number((), "4*hidden"),
        "heads": Number(("n_heads", "num_attention_heads")),
        "said_kv_heads": Number(("attn_config.kv_n_heads",), optional=True),
        "kv_heads": Number(("attn_config.kv_n_heads",), "heads"),
        "head_dim": Number((), "hidden/heads"),
        "eps": Number(("layer_norm_epsilon",), 1e-5),
        "clip": Number(("attn_config.clip_qkv",), optional=True, real=True),
        "steepest": Number(("attn_config.alibi_bias_max",), 8.0),
        "vocab": Number(("vocab_size",)),
    },
    metadata=(
        Key("context_length", "context"),
        Key("embedding_length", "hidden"),
        Key("block_count", "layers"),
        Key("feed_forward_length", "ffn"),
        Key("attention.head_count", "heads"),
        Key("attention.head_count_kv", "said_kv_heads"),
        Key("attention.layer_norm_epsilon", "eps", "f32"),
        Key("attention.clamp_kqv", "clip", "f32"),
        _alibi,
    ),
    tensors=(
        Tensor("token_embd.weight", "{p}wte.weight", ("vocab", HIDDEN)),
        Tensor("position_embd.weight", "{p}wpe.weight", ("context", HIDDEN), present=False),
        Tensor("output.weight", "lm_head.weight", ("vocab", HIDDEN), untied=True),
        *norm("output_norm", "{p}norm_f", bias=False),
        *norm(BLOCK + "attn_norm", LAYER + "norm_1", bias=False),
        *linear(BLOCK + "attn_qkv", LAYER + "attn.Wqkv", "hidden+2*kv_heads*head_dim", HIDDEN, False),
        *linear(BLOCK + "attn_output", LAYER + "attn.out_proj", HIDDEN, HIDDEN, False),
        *norm(BLOCK + "ffn_norm", LAYER + "norm_2", bias=False),
        *linear(BLOCK + "ffn_up", LAYER + "ffn.up_proj", FFN, HIDDEN, False),
        *linear(BLOCK + "ffn_down", LAYER + "ffn.down_proj", HIDDEN, FFN, False),
    ),
    ties=True,
    limits=(
        Limit("expansion_ratio", (4,), "llama.cpp's mpt has an MLP of four times the width"),
        Limit("norm_type", ("low_precision_layernorm", "layernorm"), "llama.cpp's mpt has layer norms"),
        Limit("attn_config.qk_ln", (False,), "norms of queries and keys were never verified in llama.cpp's mpt"),
        Limit("attn_config.rope", (False,), "llama.cpp's mpt has no rotary positions"),
        Limit("attn_config.prefix_lm", (False,), "llama.cpp's mpt is causal"),
        Limit("attn_config.attn_uses_sequence_id", (False,), "llama.cpp's mpt knows no sequence ids"),
    ),
    checks=(_scale,),
)
