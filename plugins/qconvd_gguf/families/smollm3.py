"""SmolLM 3: llama with no rotation in every fourth layer.

Source: transformers' modeling_smollm3; the tensor and key names of llama.cpp's architecture `smollm3`.
"""

from __future__ import annotations

from qconvd_gguf.families import llama
from qconvd_gguf.families.base import Config, Family, Limit, Numbers
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
)
from qconvd_gguf.families.rope import dynamic_note
from qconvd_gguf.families.steps import RopePairs

STEP = 4
SMOLLM3 = {**NUMBERS, "said_head_dim": SAID_HEAD_DIM}
BARE = "llama.cpp knows this family without biases"


def _rotated(config: Config, numbers: Numbers) -> str | None:
    said = config.get("no_rope_layers")
    wanted = [int((i + 1) % STEP != 0) for i in range(numbers["layers"])]
    if said in (None, [], wanted):
        return None
    return f"no_rope_layers is not every {STEP}th layer, which is what llama.cpp leaves unrotated in this family"


FAMILY = Family(
    name="smollm3",
    architectures=("SmolLM3ForCausalLM",),
    prefixes=("model.",),
    numbers=SMOLLM3,
    metadata=(*common_keys(SMOLLM3), *llama.KEYS),
    tensors=(
        EMBEDDINGS,
        HEAD,
        *llama.NORMS,
        *attention(query=(RopePairs("heads"),), key=(RopePairs("kv_heads"),)),
        *gated_mlp(),
    ),
    ties=True,
    ignored=FREQUENCIES,
    limits=(
        SILU,
        Limit("attention_bias", (False,), BARE),
        Limit("mlp_bias", (False,), BARE),
        Limit("no_rope_layer_interval", (STEP,), f"llama.cpp leaves every {STEP}th layer unrotated in this family"),
    ),
    checks=(_rotated,),
    notes=(dynamic_note, sliding_window_note),
)
