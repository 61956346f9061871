"""The families' tiny models in llama.cpp: logits as transformers computes them, on more tokens than a sliding window holds.

Bounds are Kullback-Leibler divergences in nats per token. llama.cpp keeps keys and values in F16, hence not nought.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import family_models
import gguf_models
from gguf_files import converted
from gguf_readers import Llama, mean_kl, reference

pytestmark = pytest.mark.readers

BOUNDS = {"mixtral": 1e-3}
"""A mixture may choose another expert where two are nearly as good."""
INTERNLM2 = {
    "tok_embeddings": "embed_tokens", "attention.wo": "self_attn.o_proj", "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm", "feed_forward.w1": "mlp.gate_proj", "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj", "output.weight": "lm_head.weight",
}  # fmt: skip


@pytest.mark.parametrize("name", family_models.NAMES)
def test_a_family_computes_what_transformers_computes(name: str, tmp_path: Path) -> None:
    record = family_models.record(name)
    model = family_models.make(tmp_path / "model", record["config"], record["checkpoint"])
    made = converted(model, ["F32", "F16"], tmp_path / "out", pre=family_models.PRE)
    if name == "internlm2":
        model = _as_llama(record, tmp_path / "llama")
    ids = _tokens(96)
    theirs = reference(model, ids)
    kl = {type_: mean_kl(theirs, Llama(path).logits(ids, context=256)) for type_, path in made.items()}
    print(name, {type_: f"{value:.1e}" for type_, value in kl.items()})
    assert kl["F32"] < BOUNDS.get(name, 1e-4)
    assert kl["F16"] < 1e-3


def test_long_rope_factors_serve_prompts_beyond_the_first_context(tmp_path: Path) -> None:
    record = family_models.record("phi3-longrope")
    assert record["config"]["original_max_position_embeddings"] == 256
    model = family_models.make(tmp_path / "model", record["config"], record["checkpoint"])
    made = converted(model, ["F32"], tmp_path / "out", pre=family_models.PRE)["F32"]
    ids = _tokens(300)
    assert mean_kl(reference(model, ids), Llama(made).logits(ids, context=512)) < 1e-4


def _tokens(count: int) -> list[int]:
    return [int(i) for i in np.random.default_rng(1).integers(0, family_models.TOKENS, count)]


def _as_llama(record: Mapping[str, Any], out: Path) -> Path:
    """InternLM 2's weights as a class that transformers has: its wqkv holds each key head's queries, key and value together."""
    config = record["config"]
    groups, heads = config["num_key_value_heads"], config["num_attention_heads"]
    tensors = {}
    for name, shape in record["checkpoint"].items():
        x = family_models.weights(name, shape)
        if "wqkv" in name:
            each = x.reshape(groups, heads // groups + 2, -1, x.shape[1])
            for part, rows in (("q", each[:, :-2]), ("k", each[:, -2]), ("v", each[:, -1])):
                tensors[name.replace("attention.wqkv", f"self_attn.{part}_proj")] = rows.reshape(-1, x.shape[1])
            continue
        for theirs, ours in INTERNLM2.items():
            name = name.replace(theirs, ours)
        tensors[name] = x
    gguf_models.write(out, tensors, config | {"architectures": ["LlamaForCausalLM"], "model_type": "llama"})
    return out
