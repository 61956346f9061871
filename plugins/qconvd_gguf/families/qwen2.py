"""Qwen 1.5, 2 and 2.5, and the many models made from them (also DeepSeek's small R1 distillates).

Source: transformers' modeling_qwen2; the tensor and key names of llama.cpp's architecture `qwen2`.
"""

from __future__ import annotations

from qconvd_gguf.families.base import Family
from qconvd_gguf.families.decoder import (
    EMBEDDINGS,
    FREQUENCIES,
    HEAD,
    NUMBERS,
    SAID_HEAD_DIM,
    SILU,
    attention,
    common_keys,
    gated_mlp,
    sliding_window_note,
    usual_head_width,
)
from qconvd_gguf.families.llama import NORMS
from qconvd_gguf.families.rope import dynamic_note

QWEN2 = {**NUMBERS, "said_head_dim": SAID_HEAD_DIM}

FAMILY = Family(
    name="qwen2",
    architectures=("Qwen2ForCausalLM",),
    prefixes=("model.", ""),
    numbers=QWEN2,
    metadata=common_keys(QWEN2),
    tensors=(EMBEDDINGS, HEAD, *NORMS, *attention(bias=True), *gated_mlp()),
    ignored=FREQUENCIES,
    limits=(SILU,),
    checks=(usual_head_width,),
    notes=(dynamic_note, sliding_window_note),
)
