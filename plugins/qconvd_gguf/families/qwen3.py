"""Qwen 3: as Qwen 2, with norms of single heads in place of biases.

Source: transformers' modeling_qwen3; the tensor and key names of llama.cpp's architecture `qwen3`.
"""

from __future__ import annotations

from qconvd_gguf.families.base import Family, Limit
from qconvd_gguf.families.decoder import (
    EMBEDDINGS,
    HEAD,
    NUMBERS,
    SILU,
    attention,
    common_keys,
    gated_mlp,
    head_norms,
    sliding_window_note,
)
from qconvd_gguf.families.llama import NORMS
from qconvd_gguf.families.rope import dynamic_note

FAMILY = Family(
    name="qwen3",
    architectures=("Qwen3ForCausalLM",),
    prefixes=("model.", ""),
    numbers=NUMBERS,
    metadata=common_keys(NUMBERS),
    tensors=(EMBEDDINGS, HEAD, *NORMS, *attention(), *head_norms(), *gated_mlp()),
    limits=(SILU, Limit("attention_bias", (False,), "llama.cpp knows this family without biases")),
    notes=(dynamic_note, sliding_window_note),
)
