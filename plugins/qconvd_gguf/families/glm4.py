"""GLM-4-0414 (9B, 32B and the Z1 models).

Source: transformers' modeling_glm4; the tensor and key names of llama.cpp's architecture `glm4`. Gate and up stay one tensor.
"""

from __future__ import annotations

from qconvd_gguf.families.base import Family, Key
from qconvd_gguf.families.decoder import (
    BLOCK,
    EMBEDDINGS,
    FFN,
    FREQUENCIES,
    HEAD,
    HIDDEN,
    LAYER,
    NUMBERS,
    SAID_HEAD_DIM,
    SILU,
    attention,
    common_keys,
    linear,
    norm,
)
from qconvd_gguf.families.rope import dynamic_note, rotary_width

GLM4 = {**NUMBERS, "said_head_dim": SAID_HEAD_DIM, "rotary": rotary_width(0.5)}

FAMILY = Family(
    name="glm4",
    architectures=("Glm4ForCausalLM",),
    prefixes=("model.",),
    numbers=GLM4,
    metadata=(*common_keys(GLM4), Key("rope.dimension_count", "rotary")),
    tensors=(
        EMBEDDINGS,
        HEAD,
        *norm("output_norm", "{p}norm"),
        *norm(BLOCK + "attn_norm", LAYER + "input_layernorm"),
        *attention("attention_bias"),
        *norm(BLOCK + "post_attention_norm", LAYER + "post_self_attn_layernorm"),
        *norm(BLOCK + "ffn_norm", LAYER + "post_attention_layernorm"),
        *linear(BLOCK + "ffn_up", LAYER + "mlp.gate_up_proj", "2*ffn", HIDDEN),
        *linear(BLOCK + "ffn_down", LAYER + "mlp.down_proj", HIDDEN, FFN),
        *norm(BLOCK + "post_ffw_norm", LAYER + "post_mlp_layernorm"),
    ),
    ignored=FREQUENCIES,
    limits=(SILU,),
    notes=(dynamic_note,),
)
