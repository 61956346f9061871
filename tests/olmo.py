"""Random OLMo checkpoints, for the family that the guide adds from outside."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

import gguf_models

CONFIG = dict(
    architectures=["OlmoForCausalLM"], model_type="olmo", hidden_size=64, intermediate_size=96, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512, rope_theta=10000.0, hidden_act="silu",
    clip_qkv=None, attention_bias=False, tie_word_embeddings=False, torch_dtype="float32",
    vocab_size=49152, bos_token_id=1, eos_token_id=2, pad_token_id=2,
)  # fmt: skip


def write_olmo(out: Path, change: Mapping[str, Any]) -> None:
    """A checkpoint of two layers in float32, with ten times the usual spread, so that a wrong rotation shows in the logits."""
    config = CONFIG | change
    shapes = {name: shape for name, shape in gguf_models.shapes(config).items() if "norm" not in name}
    biases = {name: shape for name, shape in shapes.items() if name.endswith(".bias")}
    tensors = {n: gguf_models.weights(n, s) * np.float32(1 if n in biases else 10) for n, s in shapes.items()}
    gguf_models.write(out, tensors, config)
