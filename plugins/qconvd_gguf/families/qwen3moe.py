"""Qwen3's mixtures of experts (30B-A3B, 235B-A22B and fine-tunes).

Source: transformers' modeling_qwen3_moe; the tensor and key names of llama.cpp's architecture `qwen3moe`.
"""

from __future__ import annotations

from qconvd_gguf.families.base import Family, Key, Limit, Number, Tensor
from qconvd_gguf.families.decoder import (
    BLOCK,
    EMBEDDINGS,
    EXPERTS,
    HEAD,
    HIDDEN,
    LAYER,
    NUMBERS,
    SILU,
    attention,
    common_keys,
    experts,
    head_norms,
    sliding_window_note,
)
from qconvd_gguf.families.llama import NORMS
from qconvd_gguf.families.qwen2moe import SPARSE
from qconvd_gguf.families.rope import dynamic_note

QWEN3MOE = {**NUMBERS, **EXPERTS, "expert_ffn": Number(("moe_intermediate_size",))}

FAMILY = Family(
    name="qwen3moe",
    architectures=("Qwen3MoeForCausalLM",),
    prefixes=("model.",),
    numbers=QWEN3MOE,
    metadata=(*common_keys(QWEN3MOE), Key("expert_feed_forward_length", "expert_ffn")),
    tensors=(
        EMBEDDINGS,
        HEAD,
        *NORMS,
        *attention(),
        *head_norms(),
        Tensor(BLOCK + "ffn_gate_inp.weight", LAYER + "mlp.gate.weight", ("experts", HIDDEN)),
        *experts("mlp.experts", gate="gate_proj", up="up_proj", down="down_proj", width="expert_ffn"),
    ),
    limits=(
        SILU,
        Limit("attention_bias", (False,), "llama.cpp knows this family without biases"),
        Limit("norm_topk_prob", (True,), "llama.cpp always scales the chosen experts' weights to a sum of one", default=False),
        *SPARSE,
    ),
    notes=(dynamic_note, sliding_window_note),
)
