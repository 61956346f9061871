"""Qwen 1.5 and 2 as mixtures of experts: small experts and one that every token passes (A2.7B, 57B-A14B).

Source: transformers' modeling_qwen2_moe; the tensor and key names of llama.cpp's architecture `qwen2moe`.
"""

from __future__ import annotations

from qconvd_gguf.families.base import Family, Key, Limit, Number, Tensor
from qconvd_gguf.families.decoder import (
    BLOCK,
    EMBEDDINGS,
    EXPERTS,
    FREQUENCIES,
    HEAD,
    HIDDEN,
    LAYER,
    NUMBERS,
    SAID_HEAD_DIM,
    SILU,
    attention,
    common_keys,
    experts,
    linear,
    sliding_window_note,
    usual_head_width,
)
from qconvd_gguf.families.llama import NORMS
from qconvd_gguf.families.rope import dynamic_note

QWEN2MOE = {
    **NUMBERS,
    **EXPERTS,
    "expert_ffn": Number(("moe_intermediate_size",)),
    "shared_ffn": Number(("shared_expert_intermediate_size",)),
    "said_head_dim": SAID_HEAD_DIM,
}
SHARED = LAYER + "mlp.shared_expert."
EVERY_LAYER = "llama.cpp's graph for this family has experts in every layer"
SPARSE = (Limit("decoder_sparse_step", (1,), EVERY_LAYER), Limit("mlp_only_layers", ([],), EVERY_LAYER))

FAMILY = Family(
    name="qwen2moe",
    architectures=("Qwen2MoeForCausalLM",),
    prefixes=("model.",),
    numbers=QWEN2MOE,
    metadata=(
        *common_keys(QWEN2MOE),
        Key("expert_feed_forward_length", "expert_ffn"),
        Key("expert_shared_feed_forward_length", "shared_ffn"),
    ),
    tensors=(
        EMBEDDINGS,
        HEAD,
        *NORMS,
        *attention(bias=True),
        Tensor(BLOCK + "ffn_gate_inp.weight", LAYER + "mlp.gate.weight", ("experts", HIDDEN)),
        *experts("mlp.experts", gate="gate_proj", up="up_proj", down="down_proj", width="expert_ffn"),
        Tensor(BLOCK + "ffn_gate_inp_shexp.weight", LAYER + "mlp.shared_expert_gate.weight", ("1", HIDDEN)),
        *linear(BLOCK + "ffn_gate_shexp", SHARED + "gate_proj", "shared_ffn", HIDDEN),
        *linear(BLOCK + "ffn_up_shexp", SHARED + "up_proj", "shared_ffn", HIDDEN),
        *linear(BLOCK + "ffn_down_shexp", SHARED + "down_proj", HIDDEN, "shared_ffn"),
    ),
    ignored=FREQUENCIES,
    limits=(
        SILU,
        *SPARSE,
        Limit("norm_topk_prob", (False,), "llama.cpp does not scale the chosen experts' weights to a sum of one here"),
        Limit("qkv_bias", (True,), "llama.cpp knows this family with biases"),
        Limit("tie_word_embeddings", (False,), "llama.cpp wants an output layer of its own in this family"),
    ),
    checks=(usual_head_width,),
    notes=(dynamic_note, sliding_window_note),
)
