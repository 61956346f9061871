"""GLM-4-0414 (9B, 32B and the Z1 models).

Source: transformers' modeling_glm4; the tensor and key names of llama.cpp's architecture `glm4`. Gate and up stay one tensor.
"""

from __future__ import annotations

from collections.abc import Mapping

from qconvd.api import ModelInfo
from qconvd_gguf.families.base import Family, FromFiles, Key, Metadata, Number
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
from qconvd_gguf.families.rope import dynamic_note, rotated

GLM4 = {
    **NUMBERS,
    "said_head_dim": SAID_HEAD_DIM,
    "rotary_factor": Number(("partial_rotary_factor", "rope_parameters.partial_rotary_factor"), 0.5),
    "rotary": Number((), rotated),
}

END_OF_TURN = "<|user|>"


def _end_of_turn(model: ModelInfo) -> Metadata:
    """A turn ends where the model hands over to the user, which no file of the tokenizer says and llama.cpp cannot guess."""
    data = model.read_json("tokenizer.json") if model.has("tokenizer.json") else {}
    added = data.get("added_tokens") if isinstance(data, Mapping) else None
    tokens = [t for t in added if isinstance(t, Mapping)] if isinstance(added, list) else []
    number = next((t.get("id") for t in tokens if t.get("content") == END_OF_TURN), None)
    return [("tokenizer.ggml.eot_token_id", "u32", number)] if isinstance(number, int) and number >= 0 else []


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
    vocabulary=(FromFiles(_end_of_turn),),
)
