"""Cohere's Command R7B and A: as Command R, with windows and a rotation in three of four layers.

Source: transformers' modeling_cohere2; the tensor and key names of llama.cpp's architecture `cohere2`.
"""

from __future__ import annotations

from qconvd_gguf.families.base import Family, Key, Limit, Number
from qconvd_gguf.families.command_r import COHERE, LIMITS, TENSORS, UNSCALED
from qconvd_gguf.families.decoder import FREQUENCIES, common_keys, usual_head_width, window_every
from qconvd_gguf.families.rope import dynamic_note, no_scaling

COHERE2 = {**COHERE, "window": Number(("sliding_window",), 4096)}

FAMILY = Family(
    name="cohere2",
    architectures=("Cohere2ForCausalLM",),
    prefixes=("model.",),
    numbers=COHERE2,
    metadata=(
        *common_keys(COHERE2),
        Key("logit_scale", "logit_scale", "f32"),
        Key("attention.sliding_window", "window"),
        Key("vocab_size", "vocab"),
        Key("rope.dimension_count", "head_dim"),
        UNSCALED,
    ),
    tensors=TENSORS,
    ties=True,
    ignored=FREQUENCIES,
    limits=(*LIMITS, Limit("rotary_pct", (1, 1.0), "transformers rotates whole heads in this family")),
    checks=(usual_head_width, no_scaling, window_every(4)),
    notes=(dynamic_note,),
)
