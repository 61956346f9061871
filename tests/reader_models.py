"""Small random Llamas for GPTQ and its readers: with widths that every group size up to 1024 divides, and with SmolLM2's.

Their weights depend on nothing but the tensors' names, so everyone makes the same bytes. They are spread so that logits differ
by several units from token to token: a reader that took a wrong zero or scale could not agree by chance.
"""

from __future__ import annotations

import shutil
import zlib
from pathlib import Path
from typing import Any

import numpy as np

import gguf_models

CONFIG: dict[str, Any] = dict(
    architectures=["LlamaForCausalLM"], model_type="llama", hidden_size=1024, intermediate_size=2048, num_hidden_layers=1,
    num_attention_heads=8, num_key_value_heads=4, head_dim=128, max_position_embeddings=512, rms_norm_eps=1e-5,
    rope_theta=10000.0, hidden_act="silu", attention_bias=False, mlp_bias=False, tie_word_embeddings=False, vocab_size=1024,
    bos_token_id=2, eos_token_id=3, pad_token_id=0, torch_dtype="bfloat16",
)  # fmt: skip
NARROW = dict(hidden_size=576, intermediate_size=1536, num_attention_heads=9, num_key_value_heads=3, head_dim=64)
KINDS: dict[str, dict[str, Any]] = {"wide": {}, "wide-2": {"num_hidden_layers": 2}, "narrow": NARROW}
"""What is otherwise than in CONFIG."""
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")


def make(kind: str, glass: Path, out: Path) -> Path:
    """Write the checkpoint of one of KINDS (bf16) with the tokenizer of glassllm's model, whose vocabulary has 1024 tokens."""
    config = CONFIG | KINDS[kind]
    tensors = {name: gguf_models.bfloat16(weights(name, shape)) for name, shape in gguf_models.shapes(config).items()}
    gguf_models.write(out, tensors, config)
    for name in TOKENIZER:
        shutil.copy(glass / name, out)
    return out


def weights(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """float32: norms about one, matrices with a spread of 1 / sqrt(columns) and a few outliers, the head's three times that."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    if len(shape) == 1:
        return np.float32(1) + np.float32(0.1) * rng.standard_normal(shape, dtype=np.float32)
    x = rng.standard_normal(shape, dtype=np.float32) * np.float32((3 if "lm_head" in name else 1) / shape[1] ** 0.5)
    at = rng.integers(0, x.size, x.size // 2000)
    x.reshape(-1)[at] *= rng.uniform(3, 6, at.size).astype(np.float32)
    return x
