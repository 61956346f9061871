"""OLMo 1: a Llama whose norms have no weights.

Source: transformers' modeling_olmo; the tensor and key names of llama.cpp's architecture `olmo`.
"""

from qconvd_gguf.families.base import FILE_TYPE, Family, Key, Limit, Number, Tensor
from qconvd_gguf.families.rope import THETA, rope_scaling
from qconvd_gguf.families.steps import RopePairs

BLOCK, LAYER = "blk.{i}.", "{p}layers.{i}."
Q, KV = "heads*head_dim", "kv_heads*head_dim"


def clamp(config, numbers):
    """A key that is written only where config.json sets what it stands for."""
    clip = config.get("clip_qkv")
    return [] if clip is None else [("attention.clamp_kqv", "f32", float(clip))]


FAMILY = Family(
    name="olmo",
    architectures=("OlmoForCausalLM", "OLMoForCausalLM"),
    prefixes=("model.", ""),
    numbers={
        "layers": Number(("num_hidden_layers",)),
        "context": Number(("max_position_embeddings",), 2048),
        "hidden": Number(("hidden_size",)),
        "ffn": Number(("intermediate_size",)),
        "heads": Number(("num_attention_heads",)),
        "kv_heads": Number(("num_key_value_heads",), "heads"),
        "head_dim": Number((), "hidden/heads"),
        "rope_theta": THETA,
        "eps": Number((), 1e-5),
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
        Key("attention.layer_norm_epsilon", "eps", "f32"),
        clamp,
        FILE_TYPE,
    ),
    tensors=(
        Tensor("token_embd.weight", "{p}embed_tokens.weight", ("vocab", "hidden")),
        Tensor("output.weight", "lm_head.weight", ("vocab", "hidden"), untied=True),
        Tensor(BLOCK + "attn_q.weight", LAYER + "self_attn.q_proj.weight", (Q, "hidden"), (RopePairs("heads"),)),
        Tensor(BLOCK + "attn_k.weight", LAYER + "self_attn.k_proj.weight", (KV, "hidden"), (RopePairs("kv_heads"),)),
        Tensor(BLOCK + "attn_v.weight", LAYER + "self_attn.v_proj.weight", (KV, "hidden")),
        Tensor(BLOCK + "attn_output.weight", LAYER + "self_attn.o_proj.weight", ("hidden", Q)),
        Tensor(BLOCK + "ffn_gate.weight", LAYER + "mlp.gate_proj.weight", ("ffn", "hidden")),
        Tensor(BLOCK + "ffn_up.weight", LAYER + "mlp.up_proj.weight", ("ffn", "hidden")),
        Tensor(BLOCK + "ffn_down.weight", LAYER + "mlp.down_proj.weight", ("hidden", "ffn")),
    ),
    ignored={r"\.rotary_emb\.inv_freq$": "readers compute the rotation's frequencies themselves"},
    limits=(
        Limit("hidden_act", ("silu",), "llama.cpp's graph for this family has SiLU built in"),
        Limit("attention_bias", (False,), "llama.cpp's olmo has no biases"),
    ),
)
