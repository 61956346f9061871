"""Tiny models of every family, rebuilt from records: config, the checkpoint's names and shapes, and what llama.cpp makes of it.

A record holds no weights: these depend on the tensors' names alone, so nobody needs torch to make them. Records are made by
tests/golden/families/make.py, with transformers for the names and llama.cpp's own converter for the rest.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import gguf_models

RECORDS = Path(__file__).parent / "golden" / "families"
NAMES = tuple(sorted(path.name.removesuffix(".json.gz") for path in RECORDS.glob("*.json.gz")))
VOCAB = 288
TOKENS = 261
"""Tokens of the tiny tokenizer; the other ids of the vocabulary are padding."""
PRE = "gpt-2"
"""The tiny tokenizer is nobody's, so its pre-tokenizer must be said."""


def record(name: str) -> dict[str, Any]:
    with gzip.open(RECORDS / f"{name}.json.gz") as file:
        return dict(json.load(file))


def make(out: Path, config: Mapping[str, Any], shapes: Mapping[str, Any]) -> Path:
    """Write the checkpoint in float32."""
    tensors = {name: weights(name, shape) for name, shape in shapes.items()}
    gguf_models.write(out, tensors, config)
    (out / "tokenizer.json").write_text(_tokenizer())
    (out / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    return out


def weights(name: str, shape: Sequence[int]) -> np.ndarray:
    """float32, ten times the usual spread: with small weights, a wrong rotation would hardly show in the logits."""
    x = gguf_models.weights(name, tuple(shape))
    return x * np.float32(10) if x.ndim >= 2 else x


def old_spelling(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config as transformers 4 wrote it, where transformers 5 has names of its own."""
    old = {k: v for k, v in config.items() if k not in ("rope_parameters", "dtype")}
    if "dtype" in config:
        old["torch_dtype"] = config["dtype"]
    if isinstance(inner := config.get("text_config"), Mapping):
        old["text_config"] = old_spelling(inner)
    rope = config.get("rope_parameters") or {}
    if "full_attention" in rope:
        every, local = rope["full_attention"], rope["sliding_attention"]
        old["rope_local_base_freq"] = local["rope_theta"]
        rope = every
    for name in ("rope_theta", "partial_rotary_factor", "original_max_position_embeddings"):
        if name in rope and (name != "original_max_position_embeddings" or rope.get("rope_type") == "longrope"):
            old[name] = rope[name]
    scaling = {k: v for k, v in rope.items() if k not in ("rope_theta", "partial_rotary_factor") and k not in old}
    if scaling.get("rope_type", "default") != "default":
        old["rope_scaling"] = scaling
    return old


def _tokenizer() -> str:
    """256 bytes, one merge and four special tokens."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate([*letters, "th"])}, [("t", "h")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in ("<pad>", "<s>", "</s>", "<|endoftext|>")])
    return str(tokenizer.to_str())
