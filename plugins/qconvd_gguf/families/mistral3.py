"""Mistral Small 3.1 and 3.2 (which see; the text part) and Ministral 3.

Source: transformers' modeling_mistral3 and modeling_ministral3; the tensor and key names of llama.cpp's architecture
`mistral3`. Ministral 3 makes attention sharper with the distance from the start, by `llama_4_scaling_beta`.
"""

from __future__ import annotations

from dataclasses import replace

from qconvd_gguf.families import llama
from qconvd_gguf.families.base import Config, Family, Metadata, Numbers
from qconvd_gguf.families.decoder import (
    EMBEDDINGS,
    FREQUENCIES,
    HEAD,
    NUMBERS,
    SILU,
    attention,
    common_keys,
    gated_mlp,
    sliding_window_note,
    text_only,
    towers,
)
from qconvd_gguf.families.rope import dynamic_note, rope_kind, rope_parameters, rope_scaling_or_factors
from qconvd_gguf.families.steps import RopePairs


def _sharpening(config: Config, numbers: Numbers) -> Metadata:  # noqa: ARG001
    if config.get("model_type") != "ministral3":
        return []
    rope = rope_parameters(config)
    return [
        ("rope.scaling.yarn_log_multiplier", "f32", float(rope["mscale_all_dim"])),
        ("attention.temperature_scale", "f32", float(rope["llama_4_scaling_beta"])),
    ]


def _complete(config: Config, numbers: Numbers) -> str | None:  # noqa: ARG001
    if config.get("model_type") != "ministral3":
        return None
    rope = rope_parameters(config)
    lacking = [name for name in ("mscale_all_dim", "llama_4_scaling_beta") if not isinstance(rope.get(name), int | float)]
    if rope_kind(config) == "yarn" and not lacking:
        return None
    return "llama.cpp wants yarn scaling with mscale_all_dim and llama_4_scaling_beta in rope_parameters of ministral3"


FAMILY = Family(
    name="mistral3",
    architectures=("Mistral3ForConditionalGeneration", "Ministral3ForCausalLM"),
    prefixes=("model.", "language_model.model.", "model.language_model."),
    numbers=NUMBERS,
    metadata=(*common_keys(NUMBERS, rope_scaling_or_factors), *llama.KEYS, _sharpening),
    tensors=(
        EMBEDDINGS,
        replace(HEAD, also=("language_model.lm_head.weight",)),
        *llama.NORMS,
        *attention(query=(RopePairs("heads"),), key=(RopePairs("kv_heads"),)),
        *gated_mlp(),
    ),
    made=llama.FACTORS,
    ignored={**FREQUENCIES, **towers("vision_tower", "multi_modal_projector")},
    limits=(SILU,),
    checks=(_complete,),
    notes=(text_only, dynamic_note, sliding_window_note),
)
