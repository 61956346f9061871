"""Phi 3, 3.5 and 4, with the two sets of rope factors of the long-context variants.

Source: transformers' modeling_phi3 and modeling_rope_utils; the tensor and key names of llama.cpp's architecture `phi3`. Query,
key and value stay one tensor, and so do gate and up.
"""

from __future__ import annotations

import math
import struct

from qconvd.api import Constant, Expr, Unsupported
from qconvd_gguf.families.base import FILE_TYPE, Config, Family, Key, Made, Metadata, Number, Numbers
from qconvd_gguf.families.decoder import (
    BLOCK,
    EMBEDDINGS,
    FFN,
    FREQUENCIES,
    HEAD,
    HIDDEN,
    LAYER,
    NUMBERS,
    SILU,
    linear,
    sliding_window_note,
    usual_head_width,
)
from qconvd_gguf.families.llama import NORMS
from qconvd_gguf.families.rope import parameter, rope_kind, rope_parameters, rotated

LONG = ("longrope", "su")
WHERE = "config.json, rope_scaling"


def _attention_factor(config: Config, numbers: Numbers) -> Metadata:
    """What the rotated queries and keys are multiplied by: LongRoPE's root of the logarithm of the stretch."""
    if rope_kind(config) not in LONG:
        return []
    parameters = rope_parameters(config)
    if parameters.get("attention_factor") is not None:
        return [("rope.scaling.attn_factor", "f32", parameter(parameters, "attention_factor"))]
    said, trained = parameters.get("factor") is not None, numbers["trained"]
    stretch = parameter(parameters, "factor") if said else numbers["context"] / trained
    if stretch > 1 and trained == 1:
        raise Unsupported("original_max_position_embeddings is 1, which is no context", where=WHERE)
    factor = math.sqrt(1 + math.log(stretch) / math.log(trained)) if stretch > 1 else 1.0
    return [("rope.scaling.attn_factor", "f32", factor)]


def _factors(config: Config, numbers: Numbers, name: str) -> Expr | None:
    """float32, one per pair of a head's rotated part."""
    if rope_kind(config) not in LONG:
        return None
    factors = rope_parameters(config).get(name)
    pairs = numbers["rotary"] // 2
    try:
        return Constant.of("F32", (pairs,), struct.pack(f"<{pairs}f", *(factors if isinstance(factors, list) else ())))
    except (TypeError, struct.error, OverflowError) as error:
        what = f"{name} must be a list of {pairs} numbers, one for each pair of a head"
        raise Unsupported(what, where=WHERE) from error


def _long_factors(config: Config, numbers: Numbers) -> Expr | None:
    return _factors(config, numbers, "long_factor")


def _short_factors(config: Config, numbers: Numbers) -> Expr | None:
    return _factors(config, numbers, "short_factor")


def _scaling(config: Config, numbers: Numbers) -> str | None:  # noqa: ARG001
    kind = rope_kind(config)
    return None if kind in ("default", *LONG) else f"rope scaling of the kind {kind!r} is not supported in this family"


def _long_note(config: Config, numbers: Numbers) -> str | None:
    if rope_kind(config) not in LONG:
        return None
    return f"llama.cpp uses the long rope factors for every prompt once its context (-c) is above {numbers['trained']} tokens"


FAMILY = Family(
    name="phi3",
    architectures=("Phi3ForCausalLM",),
    prefixes=("model.",),
    numbers={
        **NUMBERS,
        "rotary_factor": Number(("partial_rotary_factor", "rope_parameters.partial_rotary_factor"), 1.0),
        "rotary": Number((), rotated),
        "trained": Number(
            (
                "original_max_position_embeddings",
                "rope_parameters.original_max_position_embeddings",
                "rope_scaling.original_max_position_embeddings",
            ),
            4096,
        ),
        "window": Number(("sliding_window",), 0, least=0),
    },
    metadata=(
        _attention_factor,
        Key("context_length", "context"),
        Key("rope.scaling.original_context_length", "trained"),
        Key("embedding_length", "hidden"),
        Key("feed_forward_length", "ffn"),
        Key("block_count", "layers"),
        Key("attention.head_count", "heads"),
        Key("attention.head_count_kv", "kv_heads"),
        Key("attention.layer_norm_rms_epsilon", "eps", "f32"),
        Key("rope.dimension_count", "rotary"),
        Key("rope.freq_base", "rope_theta", "f32"),
        FILE_TYPE,
        Key("attention.sliding_window", "window"),
    ),
    tensors=(
        EMBEDDINGS,
        HEAD,
        *NORMS,
        *linear(BLOCK + "attn_qkv", LAYER + "self_attn.qkv_proj", "heads*head_dim+2*kv_heads*head_dim", HIDDEN),
        *linear(BLOCK + "attn_output", LAYER + "self_attn.o_proj", HIDDEN, "heads*head_dim"),
        *linear(BLOCK + "ffn_up", LAYER + "mlp.gate_up_proj", "2*ffn", HIDDEN),
        *linear(BLOCK + "ffn_down", LAYER + "mlp.down_proj", HIDDEN, FFN),
    ),
    made=(Made("rope_factors_long.weight", _long_factors), Made("rope_factors_short.weight", _short_factors)),
    ignored=FREQUENCIES,
    limits=(SILU,),
    checks=(usual_head_width, _scaling),
    notes=(_long_note, sliding_window_note),
)
