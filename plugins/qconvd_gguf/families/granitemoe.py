"""IBM's Granite 3 as mixtures of experts, with or without one that every token passes.

Source: transformers' modeling_granitemoe and modeling_granitemoeshared; the tensor and key names of llama.cpp's architecture
`granitemoe`. Checkpoints hold all experts' gates and ups in one tensor [experts, gate and up, hidden].
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from qconvd_gguf.families import llama
from qconvd_gguf.families.base import Config, Family, Key, Number, Tensor
from qconvd_gguf.families.decoder import (
    BLOCK,
    EMBEDDINGS,
    EXPERTS,
    FREQUENCIES,
    HEAD,
    HIDDEN,
    LAYER,
    SILU,
    common_keys,
    usual_head_width,
)
from qconvd_gguf.families.granite import GRANITE, KEYS
from qconvd_gguf.families.rope import dynamic_note, rope_scaling_or_factors
from qconvd_gguf.families.steps import Part

GRANITEMOE = {**GRANITE, **EXPERTS, "shared_ffn": Number(("shared_intermediate_size",), optional=True)}
SPARSE, SHARED = LAYER + "block_sparse_moe.", LAYER + "shared_mlp."


def _shares(config: Config) -> bool:
    return bool(config.get("shared_intermediate_size"))


def _recovered(found: Mapping[str, Any], tensors: Collection[str]) -> Config:  # noqa: ARG001
    """Those with a shared expert are of a class of their own."""
    if "blk.0.ffn_gate_shexp.weight" not in tensors:
        return {}
    return {"architectures": ["GraniteMoeSharedForCausalLM"], "model_type": "granitemoeshared"}


FAMILY = Family(
    name="granitemoe",
    architectures=("GraniteMoeForCausalLM", "GraniteMoeSharedForCausalLM"),
    prefixes=("model.",),
    numbers=GRANITEMOE,
    metadata=(
        *common_keys(GRANITEMOE, rope_scaling_or_factors),
        *KEYS,
        Key("expert_shared_feed_forward_length", "shared_ffn"),
    ),
    tensors=(
        EMBEDDINGS,
        HEAD,
        *llama.NORMS,
        *llama.ATTENTION,
        Tensor(BLOCK + "ffn_gate_inp.weight", SPARSE + "router.layer.weight", ("experts", HIDDEN)),
        Tensor(
            BLOCK + "ffn_gate_exps.weight",
            SPARSE + "input_linear.weight",
            ("experts", "2*ffn", HIDDEN),
            (Part("0", "ffn", axis=1),),
        ),
        Tensor(
            BLOCK + "ffn_up_exps.weight",
            SPARSE + "input_linear.weight",
            ("experts", "2*ffn", HIDDEN),
            (Part("ffn", "2*ffn", axis=1),),
        ),
        Tensor(BLOCK + "ffn_down_exps.weight", SPARSE + "output_linear.weight", ("experts", HIDDEN, "ffn")),
        Tensor(
            BLOCK + "ffn_gate_shexp.weight",
            SHARED + "input_linear.weight",
            ("2*shared_ffn", HIDDEN),
            (Part("0", "shared_ffn"),),
            present=_shares,
        ),
        Tensor(
            BLOCK + "ffn_up_shexp.weight",
            SHARED + "input_linear.weight",
            ("2*shared_ffn", HIDDEN),
            (Part("shared_ffn", "2*shared_ffn"),),
            present=_shares,
        ),
        Tensor(BLOCK + "ffn_down_shexp.weight", SHARED + "output_linear.weight", (HIDDEN, "shared_ffn"), present=_shares),
    ),
    made=llama.FACTORS,
    ignored=FREQUENCIES,
    limits=(SILU,),
    checks=(usual_head_width,),
    notes=(dynamic_note,),
    recover=(_recovered,),
)
