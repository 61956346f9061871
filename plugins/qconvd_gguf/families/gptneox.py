"""GPT-NeoX: Pythia, Dolly, RedPajama, StableLM's first models.

Source: transformers' modeling_gpt_neox; the tensor and key names of llama.cpp's architecture `gptneox`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from qconvd_gguf.families.base import Config, Family, Key, Limit, Metadata, Number, Numbers, Tensor
from qconvd_gguf.families.decoder import linear, norm
from qconvd_gguf.families.rope import THETA, dynamic_note, no_scaling, rotated, rotated_share, uncommon_theta
from qconvd_gguf.families.steps import Ungrouped

BLOCK, LAYER = "blk.{i}.", "{p}layers.{i}."
HIDDEN, FFN = "hidden", "ffn"


def _parallel(config: Config, numbers: Numbers) -> Metadata:  # noqa: ARG001
    return [("use_parallel_residual", "bool", bool(config.get("use_parallel_residual", True)))]


def _recovered(found: Mapping[str, Any], tensors: Collection[str]) -> Config:  # noqa: ARG001
    return {"use_parallel_residual": bool(found.get("use_parallel_residual", True)),
            "rotary_emb_base": found.get("rope.freq_base", 10000)}  # fmt: skip


FAMILY = Family(
    name="gptneox",
    architectures=("GPTNeoXForCausalLM",),
    prefixes=("gpt_neox.", ""),
    numbers={
        "layers": Number(("num_hidden_layers",)),
        "context": Number(("max_position_embeddings",), 2048),
        "hidden": Number(("hidden_size",)),
        "ffn": Number(("intermediate_size",)),
        "heads": Number(("num_attention_heads",)),
        "head_dim": Number((), "hidden/heads"),
        "rotary_factor": Number(("rotary_pct", "rope_parameters.partial_rotary_factor", "partial_rotary_factor"), 0.25),
        "rotated": Number((), rotated),
        "rope_theta": Number(("rotary_emb_base", *THETA.keys), 10000.0),
        "eps": Number(("layer_norm_eps",), 1e-5),
        "vocab": Number(("vocab_size",)),
    },
    metadata=(
        Key("context_length", "context"),
        Key("embedding_length", "hidden"),
        Key("block_count", "layers"),
        Key("feed_forward_length", "ffn"),
        Key("rope.dimension_count", "rotated"),
        uncommon_theta,
        Key("attention.head_count", "heads"),
        _parallel,
        Key("attention.layer_norm_epsilon", "eps", "f32"),
    ),
    tensors=(
        Tensor("token_embd.weight", "{p}embed_in.weight", ("vocab", HIDDEN)),
        Tensor("output.weight", "embed_out.weight", ("vocab", HIDDEN), also=("lm_head.weight",)),
        *norm("output_norm", "{p}final_layer_norm", bias=True),
        *norm(BLOCK + "attn_norm", LAYER + "input_layernorm", bias=True),
        *linear(BLOCK + "attn_qkv", LAYER + "attention.query_key_value", "3*hidden", HIDDEN, True, steps=(Ungrouped("heads"),)),
        *linear(BLOCK + "attn_output", LAYER + "attention.dense", HIDDEN, HIDDEN, True),
        *norm(BLOCK + "ffn_norm", LAYER + "post_attention_layernorm", bias=True),
        *linear(BLOCK + "ffn_up", LAYER + "mlp.dense_h_to_4h", FFN, HIDDEN, True),
        *linear(BLOCK + "ffn_down", LAYER + "mlp.dense_4h_to_h", HIDDEN, FFN, True),
    ),
    ignored={r"\.attention\.(masked_bias|bias|rotary_emb\.inv_freq)$": "readers build masks and frequencies themselves"},
    limits=(
        Limit("hidden_act", ("gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh"), "llama.cpp computes gptneox with a GELU"),
        Limit("tie_word_embeddings", (False,), "llama.cpp's gptneox needs an output layer of its own"),
        Limit("attention_bias", (True,), "llama.cpp's gptneox needs the biases of attention"),
    ),
    checks=(no_scaling,),
    notes=(dynamic_note,),
    recover=(_recovered, rotated_share("rotary_pct")),
)
