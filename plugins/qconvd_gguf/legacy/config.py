"""What GGML's header does not say of a LLaMA model: from the recipe, from a config.json beside it, or guessed; and told."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from qconvd.api import ModelInfo, Unsupported

EPS, CONTEXT, THETA = 5e-6, 2048, 10000.0
"""What readers of GGML computed with where nobody told them."""
SECOND_EPS, SECOND_CONTEXT = 1e-5, 4096
"""Llama 2's."""
GUESSED = {
    True: "as Llama 2 has it; the target may say otherwise",
    False: "as old readers took it; the target may say otherwise",
}
_SECOND = re.compile(r"llama-?_?2(?!\d)", re.IGNORECASE)
_OWN = {"rms_norm_eps": "eps", "max_position_embeddings": "context_length", "rope_theta": "rope_theta"}


def complete(model: ModelInfo, said: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """config.json, and where its numbers come from. Raises `Unsupported` for a `gqa` that the tensors contradict."""
    config = dict(model.config)
    if model.metadata["family"] != "llama":
        return config, []
    heads, kept = int(config["num_attention_heads"]), int(config.get("num_key_value_heads") or 0)
    grouped = kept and heads // kept
    if "gqa" in said and said["gqa"] != grouped:
        what = f"gqa is said to be {said['gqa']}, but {heads} query heads have {kept} key heads: it is {grouped}"
        raise Unsupported(what, where=str(model.path), fix="leave gqa out: the tensors' shapes say it")
    second = grouped == 8 or bool(_SECOND.search(model.name))
    guesses = {
        "rms_norm_eps": SECOND_EPS if second else EPS,
        "max_position_embeddings": SECOND_CONTEXT if second else CONTEXT,
        "rope_theta": THETA,
    }
    told: dict[str, list[str]] = {}
    for key, guess in guesses.items():
        value, beside = said.get(_OWN[key]), _from_config(config, key)
        source = "from the recipe" if value is not None else "from config.json" if beside is not None else GUESSED[second]
        config[key] = value if value is not None else beside if beside is not None else guess
        told.setdefault(source, []).append(f"{_OWN[key]} {config[key]:g}")
    notes = [f"{', '.join(values)}: a GGML header does not say this, it is taken {source}" for source, values in told.items()]
    if grouped > 1:
        notes.append(f"grouped-query attention ({grouped} query heads for a key head) is told from the tensors' shapes")
    return config, notes


def _from_config(config: Mapping[str, Any], key: str) -> float | int | None:
    value = config.get(key)
    if key == "rope_theta" and value is None:
        inner = config.get("rope_parameters")
        value = inner.get("rope_theta") if isinstance(inner, Mapping) else None
    usable = isinstance(value, int | float) and not isinstance(value, bool) and value > 0
    return value if usable else None
