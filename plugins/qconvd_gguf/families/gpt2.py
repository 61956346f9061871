"""GPT-2 and models of its class.

Source: transformers' modeling_gpt2; the tensor and key names of llama.cpp's architecture `gpt2`.
"""

from __future__ import annotations

from qconvd_gguf.families.base import FILE_TYPE, Family, Key, Limit, Number, Tensor
from qconvd_gguf.families.steps import Transposed

BLOCK, LAYER = "blk.{i}.", "{p}h.{i}."
HIDDEN, FFN = "hidden", "ffn"
LINEAR = (Transposed(),)

FAMILY = Family(
    name="gpt2",
    architectures=("GPT2LMHeadModel",),
    prefixes=("transformer.", ""),
    numbers={
        "layers": Number(("n_layer",)),
        "context": Number(("n_ctx", "n_positions"), 1024),
        "hidden": Number(("n_embd",)),
        "ffn": Number(("n_inner",), "4*hidden"),
        "heads": Number(("n_head",)),
        "eps": Number(("layer_norm_epsilon",), 1e-5),
        "positions": Number(("n_positions", "n_ctx"), 1024),
        "vocab": Number(("vocab_size",)),
    },
    metadata=(
        Key("block_count", "layers"),
        Key("context_length", "context"),
        Key("embedding_length", "hidden"),
        Key("feed_forward_length", "ffn"),
        Key("attention.head_count", "heads"),
        Key("attention.layer_norm_epsilon", "eps", "f32"),
        FILE_TYPE,
    ),
    tensors=(
        Tensor("token_embd.weight", "{p}wte.weight", ("vocab", HIDDEN)),
        Tensor("position_embd.weight", "{p}wpe.weight", ("positions", HIDDEN)),
        Tensor("output_norm.weight", "{p}ln_f.weight", (HIDDEN,)),
        Tensor("output_norm.bias", "{p}ln_f.bias", (HIDDEN,)),
        Tensor("output.weight", "lm_head.weight", ("vocab", HIDDEN), untied=True),
        Tensor(BLOCK + "attn_norm.weight", LAYER + "ln_1.weight", (HIDDEN,)),
        Tensor(BLOCK + "attn_norm.bias", LAYER + "ln_1.bias", (HIDDEN,)),
        Tensor(BLOCK + "attn_qkv.weight", LAYER + "attn.c_attn.weight", (HIDDEN, "3*hidden"), LINEAR),
        Tensor(BLOCK + "attn_qkv.bias", LAYER + "attn.c_attn.bias", ("3*hidden",)),
        Tensor(BLOCK + "attn_output.weight", LAYER + "attn.c_proj.weight", (HIDDEN, HIDDEN), LINEAR),
        Tensor(BLOCK + "attn_output.bias", LAYER + "attn.c_proj.bias", (HIDDEN,)),
        Tensor(BLOCK + "ffn_norm.weight", LAYER + "ln_2.weight", (HIDDEN,)),
        Tensor(BLOCK + "ffn_norm.bias", LAYER + "ln_2.bias", (HIDDEN,)),
        Tensor(BLOCK + "ffn_up.weight", LAYER + "mlp.c_fc.weight", (HIDDEN, FFN), LINEAR),
        Tensor(BLOCK + "ffn_up.bias", LAYER + "mlp.c_fc.bias", (FFN,)),
        Tensor(BLOCK + "ffn_down.weight", LAYER + "mlp.c_proj.weight", (FFN, HIDDEN), LINEAR),
        Tensor(BLOCK + "ffn_down.bias", LAYER + "mlp.c_proj.bias", (HIDDEN,)),
    ),
    ties=True,
    ignored={r"\.attn\.(masked_)?bias$": "the causal mask, which readers build themselves"},
    limits=(
        Limit(
            "activation_function", ("gelu_new", "gelu_pytorch_tanh", "gelu_fast"), "llama.cpp computes gpt2 with the tanh GELU"
        ),
        Limit("scale_attn_weights", (True,), "llama.cpp always divides attention scores by the root of the head's width"),
        Limit("scale_attn_by_inverse_layer_idx", (False,), "llama.cpp does not scale attention by the layer's number"),
        Limit("add_cross_attention", (False,), "llama.cpp's gpt2 has no cross attention"),
    ),
)
