"""ModernBERT, GTE's and Granite's embedders of that make.

Source: transformers' modeling_modernbert; the tensor and key names of llama.cpp's architecture `modern-bert`. All layers but
every n-th look at a window of `local_attention` tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qconvd_gguf.families.base import FILE_TYPE, Config, Family, Fixed, FromFiles, Key, Limit, Metadata, Number, Numbers, Tensor
from qconvd_gguf.families.decoder import linear, norm
from qconvd_gguf.families.pooling import POOLINGS, pooling
from qconvd_gguf.families.rope import rope_kind

BLOCK, LAYER = "blk.{i}.", "{p}layers.{i}."
HIDDEN, FFN = "hidden", "ffn"


def _period(config: Config, numbers: Numbers) -> int:  # noqa: ARG001
    """Every how many layers one looks at everything: said by old configs, listed in new ones."""
    said, layers = config.get("global_attn_every_n_layers"), _layer_types(config)
    whole = [i for i, kind in enumerate(layers) if kind == "full_attention"]
    return said if isinstance(said, int) and said > 0 else whole[1] if len(whole) > 1 else len(layers) or 3


def _layer_types(config: Config) -> list[Any]:
    said = config.get("layer_types")
    return said if isinstance(said, list) else []


def _regular(config: Config, numbers: Numbers) -> str | None:
    layers = _layer_types(config)
    kinds = ("full_attention", "sliding_attention")
    wanted = [kinds[bool(i % numbers["period"])] for i in range(numbers["layers"])]
    return None if layers in ([], wanted) else "layer_types has no period, which llama.cpp's modern-bert needs"


def _unscaled(config: Config, numbers: Numbers) -> str | None:  # noqa: ARG001
    said = config.get("rope_parameters")
    parts = [said.get(part) for part in ("full_attention", "sliding_attention")] if isinstance(said, Mapping) else [None, None]
    kinds = [rope_kind({"rope_parameters": part}) for part in parts]
    plain = kinds == ["default", "default"] and not config.get("rope_scaling")
    return None if plain else "llama.cpp's modern-bert scales no rotation"


def _activation(config: Config, numbers: Numbers) -> Metadata:  # noqa: ARG001
    said = config.get("hidden_activation")
    return [("hidden_activation", "str", said)] if isinstance(said, str) else []


def _classifier_pooling(config: Config, numbers: Numbers) -> Metadata:  # noqa: ARG001
    said = config.get("classifier_pooling")
    return [("classifier.pooling_type", "u32", POOLINGS[said])] if isinstance(said, str) and said in POOLINGS else []


FAMILY = Family(
    name="modern-bert",
    architectures=("ModernBertModel", "ModernBertForMaskedLM"),
    prefixes=("model.", ""),
    numbers={
        "layers": Number(("num_hidden_layers",)),
        "context": Number(("max_position_embeddings",)),
        "hidden": Number(("hidden_size",)),
        "ffn": Number(("intermediate_size",)),
        "heads": Number(("num_attention_heads",)),
        "head_dim": Number((), "hidden/heads"),
        "theta": Number(("global_rope_theta", "rope_parameters.full_attention.rope_theta"), 160000.0),
        "local_theta": Number(("local_rope_theta", "rope_parameters.sliding_attention.rope_theta"), 10000.0),
        "eps": Number(("norm_eps", "layer_norm_eps"), 1e-5),
        "window": Number(("local_attention",), 128),
        "period": Number((), _period),
        "vocab": Number(("vocab_size",)),
    },
    metadata=(
        Key("block_count", "layers"),
        Key("context_length", "context"),
        Key("embedding_length", "hidden"),
        Key("feed_forward_length", "ffn"),
        Key("attention.head_count", "heads"),
        Key("rope.freq_base", "theta", "f32"),
        Key("rope.freq_base_swa", "local_theta", "f32"),
        Key("attention.layer_norm_rms_epsilon", "eps", "f32"),
        Key("attention.layer_norm_epsilon", "eps", "f32"),
        FILE_TYPE,
        Fixed("attention.causal", "bool", False),
        FromFiles(pooling),
        _classifier_pooling,
        Key("attention.sliding_window", "window"),
        Key("attention.sliding_window_pattern", "period"),
        Fixed("rope.scaling.type", "str", "none"),
        Key("vocab_size", "vocab"),
        _activation,
    ),
    tensors=(
        Tensor("token_embd.weight", "{p}embeddings.tok_embeddings.weight", ("vocab", HIDDEN)),
        *norm("token_embd_norm", "{p}embeddings.norm"),
        *norm("output_norm", "{p}final_norm"),
        # The first layer has none: what it would norm comes from a norm.
        Tensor(BLOCK + "attn_norm.weight", LAYER + "attn_norm.weight", (HIDDEN,), present=False),
        *linear(BLOCK + "attn_qkv", LAYER + "attn.Wqkv", "3*hidden", HIDDEN),
        *linear(BLOCK + "attn_output", LAYER + "attn.Wo", HIDDEN, HIDDEN),
        *norm(BLOCK + "ffn_norm", LAYER + "mlp_norm"),
        *linear(BLOCK + "ffn_up", LAYER + "mlp.Wi", "2*ffn", HIDDEN),
        *linear(BLOCK + "ffn_down", LAYER + "mlp.Wo", HIDDEN, FFN),
    ),
    ignored={r"^(head|decoder)\.": "the head that guesses masked words is no part of an embedding"},
    limits=(
        Limit("hidden_activation", ("gelu", "silu"), "llama.cpp's modern-bert has GELU and SiLU"),
        Limit("attention_bias", (False,), "llama.cpp's modern-bert has no biases"),
        Limit("mlp_bias", (False,), "llama.cpp's modern-bert has no biases"),
        Limit("norm_bias", (False,), "llama.cpp's modern-bert has no biases"),
    ),
    checks=(_regular, _unscaled),
)
