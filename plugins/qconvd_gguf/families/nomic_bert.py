"""Nomic's embedders: BERT with rotary positions and a gated MLP (v1, v1.5), or with experts in every other layer (v2).

Source: the names in the published checkpoints, transformers' modeling_nomic_bert; the tensor and key names of llama.cpp's
architectures `nomic-bert` and `nomic-bert-moe`.
"""

from __future__ import annotations

from dataclasses import replace

from qconvd_gguf.families.base import FILE_TYPE, Config, Family, Fixed, FromFiles, Key, Limit, Number, Numbers, Tensor
from qconvd_gguf.families.decoder import linear, norm
from qconvd_gguf.families.pooling import pooling
from qconvd_gguf.families.steps import PerHead, Transposed

BLOCK, LAYER = "blk.{i}.", "{p}encoder.layers.{i}."
HIDDEN, FFN = "hidden", "ffn"
BIASES = ("qkv_proj_bias", "mlp_fc1_bias", "mlp_fc2_bias")


def _moe(config: Config) -> bool:
    return bool(config.get("moe_every_n_layers"))


def _dense(config: Config) -> bool:
    return not _moe(config)


def _context(config: Config, numbers: Numbers) -> int:
    """What the models were trained for: their configs say more. v2 says 2048 and was trained for 512."""
    positions, trained = int(numbers["positions"]), int(numbers["trained"])
    return 512 if positions == trained == 2048 and "n_positions" in config else min(positions, trained)


NOMIC = Family(
    name="nomic-bert",
    architectures=("NomicBertModel",),
    prefixes=("", "bert."),
    applies=_dense,
    numbers={
        "layers": Number(("n_layer", "num_hidden_layers")),
        "positions": Number(("n_positions", "max_position_embeddings"), 2048),
        "trained": Number(("max_trained_positions",), 2048),
        "context": Number((), _context),
        "hidden": Number(("n_embd", "hidden_size")),
        "ffn": Number(("n_inner", "intermediate_size")),
        "heads": Number(("n_head", "num_attention_heads")),
        "head_dim": Number((), "hidden/heads"),
        "theta": Number(("rotary_emb_base", "rope_parameters.rope_theta"), 1000.0),
        "eps": Number(("layer_norm_epsilon", "layer_norm_eps"), 1e-12),
        "kinds": Number(("type_vocab_size",), 2),
        "vocab": Number(("vocab_size",)),
    },
    metadata=(
        Key("block_count", "layers"),
        Key("context_length", "context"),
        Key("embedding_length", "hidden"),
        Key("feed_forward_length", "ffn"),
        Key("attention.head_count", "heads"),
        Key("rope.freq_base", "theta", "f32"),
        Key("attention.layer_norm_epsilon", "eps", "f32"),
        FILE_TYPE,
        Fixed("attention.causal", "bool", False),
        FromFiles(pooling),
    ),
    vocabulary=(Key("tokenizer.ggml.token_type_count", "kinds"),),
    tensors=(
        Tensor("token_embd.weight", "{p}embeddings.word_embeddings.weight", ("vocab", HIDDEN)),
        Tensor("token_types.weight", "{p}embeddings.token_type_embeddings.weight", ("kinds", HIDDEN)),
        *norm("token_embd_norm", "{p}emb_ln", bias=True),
        *linear(BLOCK + "attn_qkv", LAYER + "attn.Wqkv", "3*hidden", HIDDEN),
        *linear(BLOCK + "attn_output", LAYER + "attn.out_proj", HIDDEN, HIDDEN),
        *norm(BLOCK + "attn_output_norm", LAYER + "norm1", bias=True),
        *linear(BLOCK + "ffn_up", LAYER + "mlp.fc11", FFN, HIDDEN),
        *linear(BLOCK + "ffn_gate", LAYER + "mlp.fc12", FFN, HIDDEN),
        *linear(BLOCK + "ffn_down", LAYER + "mlp.fc2", HIDDEN, FFN),
        *norm(BLOCK + "layer_output_norm", LAYER + "norm2", bias=True),
    ),
    ignored={r"^(cls\.|pooler\.)": "llama.cpp pools the last layer itself"},
    limits=(
        Limit("activation_function", ("swiglu",), "llama.cpp's nomic-bert has SwiGLU"),
        Limit("hidden_act", ("silu",), "llama.cpp's nomic-bert has SwiGLU"),
        *(Limit(key, (False,), "llama.cpp's nomic-bert has no biases") for key in BIASES),
        Limit("prenorm", (False,), "llama.cpp's nomic-bert norms what comes out of a layer"),
        Limit("rotary_emb_fraction", (1, 1.0), "llama.cpp's nomic-bert rotates whole heads"),
        Limit("rotary_emb_interleaved", (False,), "llama.cpp's nomic-bert rotates halves of heads"),
        Limit("causal", (False,), "llama.cpp's nomic-bert looks at the whole text"),
    ),
)


def _has_experts(layer: int, numbers: Numbers) -> bool:
    return bool(layer % numbers["every"] == 1)


def _has_none(layer: int, numbers: Numbers) -> bool:
    return not _has_experts(layer, numbers)


EXPERTS = LAYER + "mlp.experts.mlp."
MOE = replace(
    NOMIC,
    name="nomic-bert-moe",
    applies=_moe,
    numbers={
        **NOMIC.numbers,
        "every": Number(("moe_every_n_layers",)),
        "experts": Number(("num_experts", "num_local_experts")),
        "experts_used": Number(("moe_top_k",)),
    },
    metadata=(
        *NOMIC.metadata[:-3],
        Key("expert_count", "experts"),
        *NOMIC.metadata[-3:],
        Key("moe_every_n_layers", "every"),
        Key("expert_used_count", "experts_used"),
    ),
    tensors=(
        *(tensor for tensor in NOMIC.tensors if ".ffn_" not in tensor.name),
        Tensor(BLOCK + "attn_qkv.bias", LAYER + "attn.Wqkv.bias", ("3*hidden",)),
        Tensor(BLOCK + "attn_output.bias", LAYER + "attn.out_proj.bias", (HIDDEN,)),
        *(
            replace(tensor, where=_has_none)
            for tensor in (
                *linear(BLOCK + "ffn_up", LAYER + "mlp.fc1", FFN, HIDDEN, True),
                *linear(BLOCK + "ffn_down", LAYER + "mlp.fc2", HIDDEN, FFN, True),
            )
        ),
        Tensor(BLOCK + "ffn_gate_inp.weight", LAYER + "mlp.router.layer.weight", ("experts", HIDDEN), where=_has_experts),
        Tensor(
            BLOCK + "ffn_up_exps.weight", EXPERTS + "w1", ("experts*ffn", HIDDEN), (PerHead("experts"),), where=_has_experts
        ),
        Tensor(
            BLOCK + "ffn_down_exps.weight",
            EXPERTS + "w2",
            ("experts*ffn", HIDDEN),
            (PerHead("experts"), Transposed()),
            where=_has_experts,
        ),
    ),
    ignored={**NOMIC.ignored, r"\.mlp\.experts\.bias$": "llama.cpp adds nothing to what the experts give"},
    limits=(
        Limit("activation_function", ("gelu",), "llama.cpp's nomic-bert-moe has the GELU"),
        *(Limit(key, (True,), "llama.cpp's nomic-bert-moe has biases") for key in BIASES),
        *(limit for limit in NOMIC.limits if limit.key not in (*BIASES, "activation_function", "hidden_act")),
    ),
)

FAMILIES = (NOMIC, MOE)
