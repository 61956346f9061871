"""Llama 1, 2 and 3, Mistral, SmolLM and whatever else says it is one of them.

Source: transformers' modeling_llama and modeling_mistral; the tensor and key names of llama.cpp's architecture `llama`.
"""

from __future__ import annotations

from qconvd_gguf.families.base import FILE_TYPE, Config, Family, Key, Limit, Made, Number, Numbers, Tensor
from qconvd_gguf.families.rope import THETA, dynamic_note, llama3_factors, rope_scaling
from qconvd_gguf.families.steps import RopePairs

BLOCK, LAYER = "blk.{i}.", "{p}layers.{i}."
Q, KV, HIDDEN, FFN = "heads*head_dim", "kv_heads*head_dim", "hidden", "ffn"


def _sliding_window(config: Config, numbers: Numbers) -> str | None:
    window = config.get("sliding_window")
    if not isinstance(window, int) or config.get("use_sliding_window") is False or window >= numbers["context"]:
        return None
    return f"llama.cpp attends to the whole context where this model looks back {window} tokens only: longer prompts differ"


FAMILY = Family(
    name="llama",
    architectures=("LlamaForCausalLM", "LLaMAForCausalLM", "MistralForCausalLM"),
    prefixes=("model.", ""),
    numbers={
        "layers": Number(("num_hidden_layers",)),
        "context": Number(("max_position_embeddings",), 2048),
        "hidden": Number(("hidden_size",)),
        "ffn": Number(("intermediate_size",)),
        "heads": Number(("num_attention_heads",)),
        "kv_heads": Number(("num_key_value_heads",), "heads"),
        "head_dim": Number(("head_dim",), "hidden/heads"),
        "rope_theta": THETA,
        "eps": Number(("rms_norm_eps",), 1e-6),
        "vocab": Number(("vocab_size",)),
    },
    metadata=(
        Key("block_count", "layers"),
        Key("context_length", "context"),
        Key("embedding_length", "hidden"),
        Key("feed_forward_length", "ffn"),
        Key("attention.head_count", "heads"),
        Key("attention.head_count_kv", "kv_heads"),
        rope_scaling,
        Key("rope.freq_base", "rope_theta", "f32"),
        Key("attention.layer_norm_rms_epsilon", "eps", "f32"),
        Key("attention.key_length", "head_dim"),
        Key("attention.value_length", "head_dim"),
        FILE_TYPE,
        Key("vocab_size", "vocab"),
        Key("rope.dimension_count", "head_dim"),
    ),
    tensors=(
        Tensor("token_embd.weight", "{p}embed_tokens.weight", ("vocab", HIDDEN)),
        Tensor("output_norm.weight", "{p}norm.weight", (HIDDEN,)),
        Tensor("output.weight", "lm_head.weight", ("vocab", HIDDEN), untied=True),
        Tensor(BLOCK + "attn_norm.weight", LAYER + "input_layernorm.weight", (HIDDEN,)),
        Tensor(BLOCK + "attn_q.weight", LAYER + "self_attn.q_proj.weight", (Q, HIDDEN), (RopePairs("heads"),)),
        Tensor(BLOCK + "attn_k.weight", LAYER + "self_attn.k_proj.weight", (KV, HIDDEN), (RopePairs("kv_heads"),)),
        Tensor(BLOCK + "attn_v.weight", LAYER + "self_attn.v_proj.weight", (KV, HIDDEN)),
        Tensor(BLOCK + "attn_output.weight", LAYER + "self_attn.o_proj.weight", (HIDDEN, Q)),
        Tensor(BLOCK + "attn_q.bias", LAYER + "self_attn.q_proj.bias", (Q,), (RopePairs("heads"),), present="attention_bias"),
        Tensor(
            BLOCK + "attn_k.bias", LAYER + "self_attn.k_proj.bias", (KV,), (RopePairs("kv_heads"),), present="attention_bias"
        ),
        Tensor(BLOCK + "attn_v.bias", LAYER + "self_attn.v_proj.bias", (KV,), present="attention_bias"),
        Tensor(BLOCK + "attn_output.bias", LAYER + "self_attn.o_proj.bias", (HIDDEN,), present="attention_bias"),
        Tensor(BLOCK + "ffn_norm.weight", LAYER + "post_attention_layernorm.weight", (HIDDEN,)),
        Tensor(BLOCK + "ffn_gate.weight", LAYER + "mlp.gate_proj.weight", (FFN, HIDDEN)),
        Tensor(BLOCK + "ffn_up.weight", LAYER + "mlp.up_proj.weight", (FFN, HIDDEN)),
        Tensor(BLOCK + "ffn_down.weight", LAYER + "mlp.down_proj.weight", (HIDDEN, FFN)),
        Tensor(BLOCK + "ffn_gate.bias", LAYER + "mlp.gate_proj.bias", (FFN,), present="mlp_bias"),
        Tensor(BLOCK + "ffn_up.bias", LAYER + "mlp.up_proj.bias", (FFN,), present="mlp_bias"),
        Tensor(BLOCK + "ffn_down.bias", LAYER + "mlp.down_proj.bias", (HIDDEN,), present="mlp_bias"),
    ),
    made=(Made("rope_freqs.weight", llama3_factors),),
    ignored={r"\.rotary_emb\.inv_freq$": "readers compute the rotation's frequencies themselves"},
    limits=(Limit("hidden_act", ("silu", "swish"), "llama.cpp's graph for this family has SiLU built in"),),
    notes=(dynamic_note, _sliding_window),
)
