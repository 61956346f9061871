"""Phi 1, 1.5 and 2.

Source: transformers' modeling_phi; the tensor and key names of llama.cpp's architecture `phi2`.
"""

from __future__ import annotations

from qconvd_gguf.families.base import FILE_TYPE, Family, Key, Limit, Number, Tensor
from qconvd_gguf.families.decoder import BLOCK, EMBEDDINGS, FFN, HIDDEN, KV, LAYER, Q, linear, norm
from qconvd_gguf.families.rope import THETA, dynamic_note, no_scaling, rotated, rotated_share, uncommon_theta

FAMILY = Family(
    name="phi2",
    architectures=("PhiForCausalLM",),
    prefixes=("model.",),
    numbers={
        "layers": Number(("num_hidden_layers",)),
        "context": Number(("max_position_embeddings",), 2048),
        "hidden": Number(("hidden_size",)),
        "ffn": Number(("intermediate_size",), "4*hidden"),
        "heads": Number(("num_attention_heads",)),
        "kv_heads": Number(("num_key_value_heads",), "heads"),
        "head_dim": Number((), "hidden/heads"),
        "rotary_factor": Number(("partial_rotary_factor", "rope_parameters.partial_rotary_factor"), 0.5),
        "rotated": Number((), rotated),
        "rope_theta": THETA,
        "eps": Number(("layer_norm_eps",), 1e-5),
        "vocab": Number(("vocab_size",)),
    },
    metadata=(
        Key("context_length", "context"),
        Key("embedding_length", "hidden"),
        Key("feed_forward_length", "ffn"),
        Key("block_count", "layers"),
        Key("attention.head_count", "heads"),
        Key("attention.head_count_kv", "kv_heads"),
        Key("attention.layer_norm_epsilon", "eps", "f32"),
        Key("rope.dimension_count", "rotated"),
        uncommon_theta,
        FILE_TYPE,
    ),
    tensors=(
        EMBEDDINGS,
        Tensor("output.weight", "lm_head.weight", ("vocab", HIDDEN)),
        Tensor("output.bias", "lm_head.bias", ("vocab",)),
        *norm("output_norm", "{p}final_layernorm", bias=True),
        *norm(BLOCK + "attn_norm", LAYER + "input_layernorm", bias=True),
        *linear(BLOCK + "attn_q", LAYER + "self_attn.q_proj", Q, HIDDEN, True),
        *linear(BLOCK + "attn_k", LAYER + "self_attn.k_proj", KV, HIDDEN, True),
        *linear(BLOCK + "attn_v", LAYER + "self_attn.v_proj", KV, HIDDEN, True),
        *linear(BLOCK + "attn_output", LAYER + "self_attn.dense", HIDDEN, HIDDEN, True),
        *linear(BLOCK + "ffn_up", LAYER + "mlp.fc1", FFN, HIDDEN, True),
        *linear(BLOCK + "ffn_down", LAYER + "mlp.fc2", HIDDEN, FFN, True),
    ),
    ignored={r"\.rotary_emb\.inv_freq$": "readers compute the rotation's frequencies themselves"},
    limits=(
        Limit("hidden_act", ("gelu_new", "gelu_pytorch_tanh", "gelu_fast"), "llama.cpp computes phi2 with the tanh GELU"),
        Limit("qk_layernorm", (False,), "llama.cpp's phi2 has no norms of queries and keys"),
        Limit("tie_word_embeddings", (False,), "llama.cpp's phi2 needs an output layer of its own"),
    ),
    checks=(no_scaling,),
    notes=(dynamic_note,),
    recover=(rotated_share("partial_rotary_factor"),),
)
