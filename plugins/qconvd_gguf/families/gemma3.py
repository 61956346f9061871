"""Gemma 3: text models, and the text part of those that see.

Source: transformers' modeling_gemma3; the tensor and key names of llama.cpp's architecture `gemma3`. Configs of the models
that see leave out whatever is the class's default, hence the defaults here.
"""

from __future__ import annotations

from qconvd_gguf.families.base import Family, Key, Limit, Number
from qconvd_gguf.families.decoder import (
    EMBEDDINGS,
    HEAD,
    attention,
    common_keys,
    gated_mlp,
    head_norms,
    text_only,
    towers,
    window_every,
)
from qconvd_gguf.families.gemma import GEMMA, LIMITS, ONE
from qconvd_gguf.families.gemma2 import AROUND, query_scale, recovered_scale
from qconvd_gguf.families.rope import LOCAL_THETA, THETA

GEMMA3 = {
    **GEMMA,
    "context": Number(("max_position_embeddings",), 131072),
    "hidden": Number(("hidden_size",), 2304),
    "ffn": Number(("intermediate_size",), 9216),
    "layers": Number(("num_hidden_layers",), 26),
    "heads": Number(("num_attention_heads",), 8),
    "kv_heads": Number(("num_key_value_heads",), 4),
    "rope_theta": Number(THETA.keys, 1_000_000.0),
    "local_rope_theta": LOCAL_THETA,
    "vocab": Number(("vocab_size",), 262_208),
    "window": Number(("sliding_window",), 4096),
    "logit_cap": Number(("final_logit_softcapping",), optional=True, real=True),
}


FAMILY = Family(
    name="gemma3",
    architectures=("Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"),
    prefixes=("model.", "language_model.model.", "model.language_model."),
    numbers=GEMMA3,
    metadata=(
        *common_keys(GEMMA3),
        Key("final_logit_softcapping", "logit_cap", "f32"),
        Key("attention.sliding_window", "window"),
    ),
    tensors=(EMBEDDINGS, HEAD, *AROUND, *attention(), *head_norms(ONE), *gated_mlp()),
    ties=True,
    ignored=towers("vision_tower", "multi_modal_projector"),
    limits=(*LIMITS, Limit("attn_logit_softcapping", (), "llama.cpp caps no attention scores in this family")),
    checks=(window_every(6), lambda config, numbers: query_scale(config, numbers, wide=62)),
    notes=(text_only,),
    recover=(recovered_scale(wide=62),),
)
