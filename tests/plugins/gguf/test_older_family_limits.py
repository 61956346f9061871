"""What llama.cpp takes for granted in older decoders, DeepSeek, encoders and T5 is refused, as in test_family_limits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import encoder_models
import family_models
from gguf_files import planned
from qconvd.engine.plan import Plan
from qconvd.errors import Unsupported

YARN = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=64)
GELU = "llama.cpp's graph for this family has the GELU built in"


def changed(name: str, folder: Path, shapes: dict[str, Any] | None = None, **config: Any) -> Plan:
    """The plan of a recorded model whose config says something else, or which has other tensors besides."""
    if name in encoder_models.NAMES:
        record = encoder_models.record(name)
        more = {"config": record["config"] | config, "checkpoint": record["checkpoint"] | (shapes or {})}
        encoder_models.make(folder, record | more)
        return planned(folder, "F16", pre=None if record["tokenizer"] in ("unigram", "spiece") else encoder_models.PRE)
    record = family_models.record(name)
    family_models.make(folder, record["config"] | config, record["checkpoint"] | (shapes or {}))
    return planned(folder, "F16", pre=family_models.PRE)


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("gptneox", {"hidden_act": "relu"}, "hidden_act is 'relu': llama.cpp computes gptneox with a GELU"),
        ("gptneox", {"tie_word_embeddings": True}, "llama.cpp's gptneox needs an output layer of its own"),
        ("gptneox", {"attention_bias": False}, "llama.cpp's gptneox needs the biases of attention"),
        (
            "gptneox",
            {"rope_scaling": YARN, "rope_parameters": None},
            "rope scaling of the kind 'yarn' is nothing this family has",
        ),
        ("phi2", {"hidden_act": "silu"}, "llama.cpp computes phi2 with the tanh GELU"),
        ("phi2", {"qk_layernorm": True}, "llama.cpp's phi2 has no norms of queries and keys"),
        ("phi2", {"tie_word_embeddings": True}, "llama.cpp's phi2 needs an output layer of its own"),
        ("phi2", {"rope_parameters": YARN}, "rope scaling of the kind 'yarn' is nothing this family has"),
        ("starcoder2", {"hidden_act": "silu"}, "llama.cpp computes starcoder2 with a GELU"),
        ("starcoder2", {"use_bias": False}, "llama.cpp's starcoder2 needs biases"),
        ("starcoder2", {"mlp_type": "gated"}, "llama.cpp's starcoder2 has no gated MLP"),
        ("starcoder2", {"norm_type": "rms_norm"}, "llama.cpp's starcoder2 has layer norms"),
        ("bloom", {"apply_residual_connection_post_layernorm": True}, "llama.cpp adds what came before the norm"),
        ("mpt", {"expansion_ratio": 2}, "llama.cpp's mpt has an MLP of four times the width"),
        ("mpt", {"norm_type": "rmsnorm"}, "llama.cpp's mpt has layer norms"),
        ("mpt", {"attn_config": {"qk_ln": True}}, "attn_config.qk_ln is True"),
        ("mpt", {"attn_config": {"rope": True}}, "llama.cpp's mpt has no rotary positions"),
        ("mpt", {"attn_config": {"prefix_lm": True}}, "llama.cpp's mpt is causal"),
        ("mpt", {"attn_config": {"attn_uses_sequence_id": True}}, "llama.cpp's mpt knows no sequence ids"),
        ("mpt", {"attn_config": {"softmax_scale": 0.5}}, "softmax_scale or logit_scale is set"),
        ("mpt", {"logit_scale": 0.5}, "softmax_scale or logit_scale is set"),
        ("falcon-7b", {"alibi": True}, "llama.cpp's falcon has rotary positions only"),
        ("falcon-7b", {"bias": True}, "llama.cpp's falcon has no biases"),
        ("falcon-7b", {"activation": "relu"}, GELU),
        ("falcon-7b", {"parallel_attn": False}, "llama.cpp's falcon computes attention and MLP side by side"),
        ("falcon-7b", {"rope_parameters": YARN}, "rope scaling of the kind 'yarn' is nothing this family has"),
        ("falcon-40b", {"num_kv_heads": 4}, "its shape is [96, 64], config.json says [128, 64]"),
        ("deepseek3", {"hidden_act": "gelu"}, "SiLU built in"),
        ("deepseek3", {"scoring_func": "sqrtsoftplus"}, "llama.cpp has softmax and sigmoid here"),
        ("deepseek3", {"attention_bias": True}, "llama.cpp's latent attention has no biases"),
        ("deepseek3", {"moe_layer_freq": 2}, "llama.cpp has experts in every layer behind the dense ones"),
        ("deepseek3", {"rope_parameters": YARN | {"mscale": 1.0, "mscale_all_dim": 0.5}}, "mscale and mscale_all_dim differ"),
        ("deepseek2", {"num_hidden_layers": 27}, "q_lora_rank is set: llama.cpp takes a model of 27 layers for a lite one"),
        ("deepseek2", {"n_group": 4}, "topk_method is greedy with several n_group"),
        ("deepseek2", {"num_experts_per_tok": 9}, "9 of 8 experts in 1 of 1 groups cannot be chosen"),
        ("deepseek3", {"n_group": 3}, "3 of 8 experts in 2 of 3 groups cannot be chosen"),
        (
            "deepseek3",
            {"max_position_embeddings": 1 << 32},
            "context_length would be 4294967296, which no GGUF can say",
        ),
        ("deepseek3", {"rope_parameters": YARN | {"beta_fast": "fast"}}, "beta_fast is 'fast', which is no float32 above zero"),
        ("bert", {"num_attention_heads": 5}, "config.json contradicts itself: hidden/heads is 64/5"),
        ("mpt", {"attn_config": {"clip_qkv": "x"}}, "attn_config.clip_qkv is 'x', which is no number"),
        ("deepseek2", {"q_lora_rank": None}, "the model lacks model.layers.0.self_attn.q_proj.weight"),
        ("deepseek2", {"first_k_dense_replace": 0}, "the model lacks model.layers.0.mlp.gate.weight"),
        ("bert", {"hidden_act": "relu"}, GELU),
        ("bert", {"position_embedding_type": "relative_key"}, "llama.cpp has absolute positions only in this family"),
        ("bert", {"is_decoder": True}, "llama.cpp's encoders look at the whole text"),
        ("roberta", {"pad_token_id": 200}, "max_position_embeddings is 130, but positions begin at 201"),
        ("distilbert", {"activation": "relu"}, GELU),
        ("nomic-bert", {"activation_function": "gelu"}, "llama.cpp's nomic-bert has SwiGLU"),
        ("nomic-bert", {"hidden_act": "gelu"}, "llama.cpp's nomic-bert has SwiGLU"),
        ("nomic-bert", {"qkv_proj_bias": True}, "llama.cpp's nomic-bert has no biases"),
        ("nomic-bert", {"mlp_fc1_bias": True}, "llama.cpp's nomic-bert has no biases"),
        ("nomic-bert", {"prenorm": True}, "llama.cpp's nomic-bert norms what comes out of a layer"),
        ("nomic-bert", {"rotary_emb_fraction": 0.5}, "llama.cpp's nomic-bert rotates whole heads"),
        ("nomic-bert", {"rotary_emb_interleaved": True}, "llama.cpp's nomic-bert rotates halves of heads"),
        ("nomic-bert", {"causal": True}, "llama.cpp's nomic-bert looks at the whole text"),
        ("nomic-bert", {"n_positions": "x"}, "n_positions is 'x', which is no number"),
        ("nomic-bert-moe", {"activation_function": "swiglu"}, "llama.cpp's nomic-bert-moe has the GELU"),
        ("nomic-bert-moe", {"mlp_fc2_bias": False}, "llama.cpp's nomic-bert-moe has biases"),
        ("nomic-bert-moe", {"prenorm": True}, "norms what comes out of a layer"),
        ("nomic-bert-moe", {"num_experts": 4}, "its shape is [5, 64], config.json says [4, 64]"),
        ("modern-bert", {"hidden_activation": "relu"}, "llama.cpp's modern-bert has GELU and SiLU"),
        ("modern-bert", {"attention_bias": True}, "llama.cpp's modern-bert has no biases"),
        ("modern-bert", {"mlp_bias": True}, "llama.cpp's modern-bert has no biases"),
        ("modern-bert", {"norm_bias": True}, "llama.cpp's modern-bert has no biases"),
        ("modern-bert", {"layer_types": ["sliding_attention"] * 5}, "layer_types has no period"),
        ("modern-bert", {"rope_parameters": {"full_attention": YARN}}, "llama.cpp's modern-bert scales no rotation"),
        ("t5", {"feed_forward_proj": "gated-silu"}, "llama.cpp's t5 has the ReLU, or the GELU as a gate"),
        ("t5", {"relative_attention_max_distance": 64}, "llama.cpp's t5 tells distances up to 128 apart"),
        ("t5", {"feed_forward_proj": "gated-gelu"}, "the model lacks encoder.block.0.layer.1.DenseReluDense.wi_0.weight"),
        ("t5", {"num_decoder_layers": 3}, "the model lacks decoder.block.2.layer.0.layer_norm.weight"),
    ],
)
def test_what_a_graph_cannot_do_is_refused(name: str, config: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(Unsupported) as caught:
        changed(name, tmp_path / "model", **config)
    assert message in str(caught.value)


def test_layers_for_multi_token_prediction_are_left_out_by_name(tmp_path: Path) -> None:
    plan = changed("deepseek3", tmp_path / "model", {"model.layers.3.eh_proj.weight": [64, 128]})
    left = {entry.tensor: entry.reason for entry in plan.left_out if entry.became == "dropped"}
    assert left == {"model.layers.3.eh_proj.weight": "llama.cpp predicts one token at a time with this family"}
    with pytest.raises(Unsupported, match=r"has no tensor model.layers.2.eh_proj.weight"):
        changed("deepseek3", tmp_path / "other", {"model.layers.2.eh_proj.weight": [64, 128]})


def test_groups_of_experts_chosen_otherwise_are_a_warning(tmp_path: Path) -> None:
    plan = changed("deepseek2", tmp_path / "model", n_group=4, topk_group=2, topk_method="group_limited_greedy")
    assert any("llama.cpp chooses groups of experts by their best two" in note for note in plan.notes)


def test_v3s_scores_are_sigmoids_where_its_config_is_silent(tmp_path: Path) -> None:
    for name, gating in (("deepseek3", 2), ("deepseek2", None)):
        keys = {k: v for k, _, v in changed(name, tmp_path / name, scoring_func=None).container.metadata}
        assert keys.get("deepseek2.expert_gating_func") == gating


def test_falcon_7bs_key_head_is_one_whatever_its_config_says(tmp_path: Path) -> None:
    keys = {k: v for k, _, v in changed("falcon-7b", tmp_path / "model", num_kv_heads=4).container.metadata}
    assert keys["falcon.attention.head_count_kv"] == 1


@pytest.mark.parametrize(
    ("positions", "trained", "context"), [(8192, 2048, 2048), (2048, 2048, 512), (2048, 8192, 2048), (8192, None, 2048)]
)
def test_nomics_context_is_what_it_was_trained_for(positions: int, trained: int | None, context: int, tmp_path: Path) -> None:
    plan = changed("nomic-bert", tmp_path / "model", n_positions=positions, max_trained_positions=trained)
    assert ("nomic-bert.context_length", "u32", context) in plan.container.metadata


@pytest.mark.parametrize("pooling", [{"pooling_mode_max_tokens": True}, {"pooling_mode": "weightedmean"}, []])
def test_a_pooling_that_llama_cpp_has_not_is_refused(pooling: Any, tmp_path: Path) -> None:
    record = encoder_models.record("bert")
    model = encoder_models.make(tmp_path / "model", record)
    (model / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    with pytest.raises(Unsupported, match="the model pools its tokens in a way that llama") as caught:
        planned(model, "F16")
    assert "llama.cpp has mean, cls and lasttoken" in str(caught.value)


@pytest.mark.parametrize(
    ("config", "number"), [({"pooling_mode_lasttoken": True}, 3), ({"pooling_mode": "cls"}, 2), ({"pooling_mode": "mean"}, 1)]
)
def test_poolings_in_both_spellings(config: dict[str, Any], number: int, tmp_path: Path) -> None:
    record = encoder_models.record("bert")
    model = encoder_models.make(tmp_path / "model", record)
    (model / "1_Pooling" / "config.json").write_text(json.dumps(config))
    assert ("bert.pooling_type", "u32", number) in planned(model, "F16").container.metadata


def test_a_model_that_says_nothing_of_pooling_gets_no_key(tmp_path: Path) -> None:
    keys = [k for k, _, _ in changed("bert-masked", tmp_path / "model").container.metadata]
    assert "bert.pooling_type" not in keys


@pytest.mark.parametrize("labels", [None, {"0": "LABEL_0", "1": "LABEL_1"}])
def test_a_classifier_without_names_of_its_own_has_two_classes(labels: Any, tmp_path: Path) -> None:
    head = {"classifier.weight": [2, 64], "classifier.bias": [2]}
    plan = changed("bert-classifier", tmp_path / "model", head, id2label=labels)
    assert ("bert.classifier.output_labels", "arr[str]", ["LABEL_0", "LABEL_1"]) in plan.container.metadata


def test_a_t5_whose_embeddings_go_by_another_name(tmp_path: Path) -> None:
    record = encoder_models.record("t5-encoder")
    shapes = dict(record["checkpoint"])
    shapes["encoder.embed_tokens.weight"] = shapes.pop("shared.weight")
    encoder_models.make(tmp_path / "model", record | {"checkpoint": shapes})
    names = [tensor.name for tensor in planned(tmp_path / "model", "F16").tensors]
    assert "token_embd.weight" in names
