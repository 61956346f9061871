"""DeepSeek V2, V2.5, V3, R1 and models of their class: latent attention (MLA) and many small experts.

Source: transformers' modeling_deepseek_v2 and _v3; the tensor and key names of llama.cpp's architecture `deepseek2`. llama.cpp
keeps the latent keys and values in its cache and multiplies them into queries and outputs ("absorption"): the projection that
unfolds them is split per head, its key part transposed. To the cache it looks like one key head of kv_rank + rope_dim.
"""

from __future__ import annotations

from dataclasses import replace

from qconvd_gguf.families.base import FILE_TYPE, Config, Family, Key, Limit, Metadata, Number, Numbers, Tensor
from qconvd_gguf.families.decoder import (
    BLOCK,
    EMBEDDINGS,
    FFN,
    FREQUENCIES,
    HEAD,
    HIDDEN,
    LAYER,
    SILU,
    experts,
    linear,
    norm,
)
from qconvd_gguf.families.rope import THETA, dynamic_note, rope_parameters, rope_scaling
from qconvd_gguf.families.steps import Part, PerHead, Transposed

GATINGS = {"softmax": 1, "sigmoid": 2}
"""llama.cpp's numbers of the functions that make weights of the router's scores."""
ATTENTION = LAYER + "self_attn."


def _v3(config: Config) -> bool:
    return "DeepseekV3ForCausalLM" in (config.get("architectures") or ())


def _one_query(config: Config) -> bool:
    """The lite models have no low-rank queries."""
    return not config.get("q_lora_rank")


def _gating(config: Config, numbers: Numbers) -> Metadata:  # noqa: ARG001
    """V3's own default is the sigmoid, of which its config need not speak; what V2 has is what llama.cpp assumes."""
    said = config.get("scoring_func") or ("sigmoid" if _v3(config) else None)
    return [("expert_gating_func", "u32", GATINGS[said])] if said in GATINGS else []


def _query_rank(config: Config, numbers: Numbers) -> int | None:
    """llama.cpp wants the key of all but the lite models, which it tells by their layers; zero says there is none."""
    said = config.get("q_lora_rank")
    return said if isinstance(said, int) and said > 0 else None if _lite(numbers) else 0


def _lite(numbers: Numbers) -> bool:
    return numbers["layers"] in (26, 27) or (numbers["layers"] == 48 and numbers["vocab"] == 128256)


def _normalized(config: Config, numbers: Numbers) -> Metadata:  # noqa: ARG001
    return [("expert_weights_norm", "bool", True)] if config.get("norm_topk_prob", _v3(config)) else []


def _yarn_multiplier(config: Config, numbers: Numbers) -> Metadata:  # noqa: ARG001
    """A tenth of what the config says, which llama.cpp multiplies by ten again."""
    said = rope_parameters(config).get("mscale_all_dim")
    return [] if said is None else [("rope.scaling.yarn_log_multiplier", "f32", 0.1 * float(said))]


def _runnable(config: Config, numbers: Numbers) -> str | None:
    parameters = rope_parameters(config)
    if parameters.get("mscale", 1) != parameters.get("mscale_all_dim", parameters.get("mscale", 1)):
        return "mscale and mscale_all_dim differ: llama.cpp takes them for one"
    if config.get("q_lora_rank") and _lite(numbers):
        return f"q_lora_rank is set: llama.cpp takes a model of {numbers['layers']} layers for a lite one, without that"
    groups, used = numbers["groups"] or 1, numbers["groups_used"] or 1
    if numbers["experts_used"] > numbers["experts"] or used > groups or numbers["experts"] % groups:
        return f"{numbers['experts_used']} of {numbers['experts']} experts in {used} of {groups} groups cannot be chosen"
    if config.get("topk_method") == "greedy" and (config.get("n_group") or 1) > 1:
        return "topk_method is greedy with several n_group: llama.cpp would choose experts by groups"
    return None


def _groups_note(config: Config, numbers: Numbers) -> str | None:  # noqa: ARG001
    if config.get("topk_method") != "group_limited_greedy" or (config.get("n_group") or 1) == 1:
        return None
    return "llama.cpp chooses groups of experts by their best two, this model by the best one: a few tokens get other experts"


def _is_dense(layer: int, numbers: Numbers) -> bool:
    return bool(layer < numbers["dense"])


def _of_experts(*tensors: Tensor) -> tuple[Tensor, ...]:
    """What only the layers behind the dense ones have."""
    return tuple(replace(tensor, where=lambda layer, numbers: not _is_dense(layer, numbers)) for tensor in tensors)


FAMILY = Family(
    name="deepseek2",
    architectures=("DeepseekV2ForCausalLM", "DeepseekV3ForCausalLM"),
    prefixes=("model.",),
    numbers={
        "layers": Number(("num_hidden_layers",)),
        "context": Number(("max_position_embeddings",), 2048),
        "hidden": Number(("hidden_size",)),
        "ffn": Number(("intermediate_size",)),
        "heads": Number(("num_attention_heads",)),
        "rope_theta": THETA,
        "eps": Number(("rms_norm_eps",), 1e-6),
        "experts": Number(("n_routed_experts",)),
        "experts_used": Number(("num_experts_per_tok",)),
        "groups": Number(("n_group",), optional=True),
        "groups_used": Number(("topk_group",), optional=True),
        "dense": Number(("first_k_dense_replace",), 0, least=0),
        "vocab": Number(("vocab_size",)),
        "q_rank": Number(("q_lora_rank",), _query_rank, optional=True, least=0),
        "kv_rank": Number(("kv_lora_rank",), 512),
        "rope": Number(("qk_rope_head_dim",)),
        "nope": Number(("qk_nope_head_dim",)),
        "value": Number(("v_head_dim",)),
        "expert_ffn": Number(("moe_intermediate_size",)),
        "shared": Number(("n_shared_experts",)),
        "scale": Number(("routed_scaling_factor",), lambda config, _: 2.5 if _v3(config) else None, optional=True, real=True),
    },
    metadata=(
        Key("block_count", "layers"),
        Key("context_length", "context"),
        Key("embedding_length", "hidden"),
        Key("feed_forward_length", "ffn"),
        Key("attention.head_count", "heads"),
        Key("attention.head_count_kv", "1"),
        rope_scaling,
        Key("rope.freq_base", "rope_theta", "f32"),
        Key("attention.layer_norm_rms_epsilon", "eps", "f32"),
        Key("expert_count", "experts"),
        Key("expert_used_count", "experts_used"),
        Key("expert_group_count", "groups"),
        Key("expert_group_used_count", "groups_used"),
        _gating,
        FILE_TYPE,
        Key("leading_dense_block_count", "dense"),
        Key("vocab_size", "vocab"),
        Key("attention.q_lora_rank", "q_rank"),
        Key("attention.kv_lora_rank", "kv_rank"),
        Key("attention.key_length", "kv_rank+rope"),
        Key("attention.value_length", "kv_rank"),
        Key("attention.key_length_mla", "nope+rope"),
        Key("attention.value_length_mla", "value"),
        Key("expert_feed_forward_length", "expert_ffn"),
        Key("expert_shared_count", "shared"),
        Key("expert_weights_scale", "scale", "f32"),
        _normalized,
        Key("rope.dimension_count", "rope"),
        _yarn_multiplier,
    ),
    tensors=(
        EMBEDDINGS,
        HEAD,
        *norm("output_norm", "{p}norm"),
        *norm(BLOCK + "attn_norm", LAYER + "input_layernorm"),
        Tensor(BLOCK + "attn_q.weight", ATTENTION + "q_proj.weight", ("heads*nope+heads*rope", HIDDEN), present=_one_query),
        Tensor(BLOCK + "attn_q_a.weight", ATTENTION + "q_a_proj.weight", ("q_rank", HIDDEN), present="q_lora_rank"),
        Tensor(BLOCK + "attn_q_a_norm.weight", ATTENTION + "q_a_layernorm.weight", ("q_rank",), present="q_lora_rank"),
        Tensor(
            BLOCK + "attn_q_b.weight",
            ATTENTION + "q_b_proj.weight",
            ("heads*nope+heads*rope", "q_rank"),
            present="q_lora_rank",
        ),
        *linear(BLOCK + "attn_kv_a_mqa", ATTENTION + "kv_a_proj_with_mqa", "kv_rank+rope", HIDDEN),
        *norm(BLOCK + "attn_kv_a_norm", ATTENTION + "kv_a_layernorm", "kv_rank"),
        *linear(
            BLOCK + "attn_k_b",
            ATTENTION + "kv_b_proj",
            "heads*nope+heads*value",
            "kv_rank",
            steps=(PerHead("heads"), Part("0", "nope", axis=1), Transposed()),
        ),
        *linear(
            BLOCK + "attn_v_b",
            ATTENTION + "kv_b_proj",
            "heads*nope+heads*value",
            "kv_rank",
            steps=(PerHead("heads"), Part("nope", "nope+value", axis=1)),
        ),
        *linear(BLOCK + "attn_output", ATTENTION + "o_proj", HIDDEN, "heads*value"),
        *norm(BLOCK + "ffn_norm", LAYER + "post_attention_layernorm"),
        Tensor(BLOCK + "ffn_gate.weight", LAYER + "mlp.gate_proj.weight", (FFN, HIDDEN), where=_is_dense),
        Tensor(BLOCK + "ffn_up.weight", LAYER + "mlp.up_proj.weight", (FFN, HIDDEN), where=_is_dense),
        Tensor(BLOCK + "ffn_down.weight", LAYER + "mlp.down_proj.weight", (HIDDEN, FFN), where=_is_dense),
        *_of_experts(
            Tensor(BLOCK + "ffn_gate_inp.weight", LAYER + "mlp.gate.weight", ("experts", HIDDEN)),
            Tensor(BLOCK + "exp_probs_b.bias", LAYER + "mlp.gate.e_score_correction_bias", ("experts",), present=_v3),
            *experts("mlp.experts", gate="gate_proj", up="up_proj", down="down_proj", width="expert_ffn"),
            *linear(BLOCK + "ffn_gate_shexp", LAYER + "mlp.shared_experts.gate_proj", "shared*expert_ffn", HIDDEN),
            *linear(BLOCK + "ffn_up_shexp", LAYER + "mlp.shared_experts.up_proj", "shared*expert_ffn", HIDDEN),
            *linear(BLOCK + "ffn_down_shexp", LAYER + "mlp.shared_experts.down_proj", HIDDEN, "shared*expert_ffn"),
        ),
    ),
    ignored=FREQUENCIES,
    spare={r"^model\.layers\.(\d+)\.": "llama.cpp predicts one token at a time with this family"},
    limits=(
        SILU,
        Limit("scoring_func", tuple(GATINGS), "llama.cpp has softmax and sigmoid here"),
        Limit("attention_bias", (False,), "llama.cpp's latent attention has no biases"),
        Limit("moe_layer_freq", (1,), "llama.cpp has experts in every layer behind the dense ones"),
    ),
    checks=(_runnable,),
    notes=(dynamic_note, _groups_note),
)
