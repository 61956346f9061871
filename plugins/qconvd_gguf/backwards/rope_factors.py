"""Llama 3's scaled rotation, which GGUF keeps as a tensor of divisors: the parameters that give these very numbers."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import Any

from qconvd.api import Constant, ModelInfo, Unsupported
from qconvd_gguf.families.base import Family
from qconvd_gguf.families.rope import llama3_factors

TENSOR = "rope_freqs.weight"
FACTORS, LENGTHS = (8.0, 32.0, 4.0, 16.0, 2.0, 64.0), (8192, 4096, 2048, 64)
"""What published models have, most common first."""


def scaling(model: ModelInfo, family: Family, config: Mapping[str, Any], numbers: Mapping[str, Any]) -> dict[str, Any]:
    """`rope_scaling` for config.json. Raises `Unsupported` for divisors that no known parameters give."""
    del family
    held = model.tensor_bytes(TENSOR)
    for factor, length in product(FACTORS, LENGTHS):
        rope = {"rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": length}  # fmt: skip
        made = llama3_factors({**config, "rope_scaling": rope}, numbers)
        if isinstance(made, Constant) and made.payload() == held:
            return {"rope_scaling": rope}
    raise Unsupported(f"{TENSOR} holds divisors of the rotation that no known rope_scaling gives")
