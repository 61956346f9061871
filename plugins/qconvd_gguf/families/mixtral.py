"""Mixtral: llama with experts in place of the MLP, under llama.cpp's architecture `llama`.

Source: transformers' modeling_mixtral. Published checkpoints hold each expert by itself: w1 is the gate, w3 up, w2 down.
"""

from __future__ import annotations

from qconvd_gguf.families import llama
from qconvd_gguf.families.base import Family, Tensor
from qconvd_gguf.families.decoder import (
    BLOCK,
    EMBEDDINGS,
    EXPERTS,
    FFN,
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
    sliding_window_note,
)
from qconvd_gguf.families.rope import dynamic_note, rope_scaling_or_factors
from qconvd_gguf.families.steps import RopePairs

MIXTRAL = {**NUMBERS, **EXPERTS, "said_head_dim": SAID_HEAD_DIM}

FAMILY = Family(
    name="llama",
    architectures=("MixtralForCausalLM",),
    prefixes=("model.",),
    numbers=MIXTRAL,
    metadata=(*common_keys(MIXTRAL, rope_scaling_or_factors), *llama.KEYS),
    tensors=(
        EMBEDDINGS,
        HEAD,
        *llama.NORMS,
        *attention(query=(RopePairs("heads"),), key=(RopePairs("kv_heads"),)),
        Tensor(BLOCK + "ffn_gate_inp.weight", LAYER + "block_sparse_moe.gate.weight", ("experts", HIDDEN)),
        *experts("block_sparse_moe.experts", gate="w1", up="w3", down="w2", width=FFN),
    ),
    made=llama.FACTORS,
    ignored=FREQUENCIES,
    limits=(SILU,),
    notes=(dynamic_note, sliding_window_note),
)
