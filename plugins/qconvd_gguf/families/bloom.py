"""BLOOM and BLOOMZ.

Source: transformers' modeling_bloom; the tensor and key names of llama.cpp's architecture `bloom`, whose graph has ALiBi
built in.
"""

from __future__ import annotations

from qconvd_gguf.families.base import FILE_TYPE, Family, Key, Limit, Number, Tensor
from qconvd_gguf.families.decoder import linear, norm
from qconvd_gguf.families.steps import Ungrouped

BLOCK, LAYER = "blk.{i}.", "{p}h.{i}."
HIDDEN, FFN = "hidden", "ffn"

FAMILY = Family(
    name="bloom",
    architectures=("BloomForCausalLM", "BloomModel"),
    prefixes=("transformer.", ""),
    numbers={
        "layers": Number(("n_layer", "num_hidden_layers")),
        "hidden": Number(("hidden_size", "n_embed")),
        "context": Number(("seq_length",), "hidden"),
        "ffn": Number((), "4*hidden"),
        "heads": Number(("n_head", "num_attention_heads")),
        "head_dim": Number((), "hidden/heads"),
        "eps": Number(("layer_norm_epsilon",), 1e-5),
        "vocab": Number(("vocab_size",)),
    },
    metadata=(
        Key("context_length", "context"),
        Key("embedding_length", "hidden"),
        Key("feed_forward_length", "ffn"),
        Key("block_count", "layers"),
        Key("attention.head_count", "heads"),
        Key("attention.head_count_kv", "heads"),
        Key("attention.layer_norm_epsilon", "eps", "f32"),
        FILE_TYPE,
    ),
    tensors=(
        Tensor("token_embd.weight", "{p}word_embeddings.weight", ("vocab", HIDDEN)),
        *norm("token_embd_norm", "{p}word_embeddings_layernorm", bias=True),
        Tensor("output.weight", "lm_head.weight", ("vocab", HIDDEN), untied=True),
        *norm("output_norm", "{p}ln_f", bias=True),
        *norm(BLOCK + "attn_norm", LAYER + "input_layernorm", bias=True),
        *linear(BLOCK + "attn_qkv", LAYER + "self_attention.query_key_value", "3*hidden", HIDDEN, True, (Ungrouped("heads"),)),
        *linear(BLOCK + "attn_output", LAYER + "self_attention.dense", HIDDEN, HIDDEN, True),
        *norm(BLOCK + "ffn_norm", LAYER + "post_attention_layernorm", bias=True),
        *linear(BLOCK + "ffn_up", LAYER + "mlp.dense_h_to_4h", FFN, HIDDEN, True),
        *linear(BLOCK + "ffn_down", LAYER + "mlp.dense_4h_to_h", HIDDEN, FFN, True),
    ),
    ties=True,
    limits=(
        Limit("apply_residual_connection_post_layernorm", (False,), "llama.cpp adds what came before the norm, not behind it"),
    ),
)
