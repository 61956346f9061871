"""What llama.cpp's graphs take for granted is refused where a config says otherwise, before a weight is read."""

from __future__ import annotations

from math import log, prod
from pathlib import Path
from typing import Any

import pytest

import family_models
from gguf_files import planned
from qconvd.checkpoints.base import ModelInfo, TensorInfo
from qconvd.engine.plan import Plan
from qconvd.errors import Unsupported
from qconvd_gguf import mapping
from qconvd_gguf.families import family_of

BARE = "llama.cpp knows this family without biases"
TIED = "llama.cpp ties the output layer to the embeddings in this family"
UNTIED = "llama.cpp wants an output layer of its own in this family"
HEADS = "head_dim is 24: llama.cpp divides hidden_size by the number of heads in this family"
EVERY_LAYER = "llama.cpp's graph for this family has experts in every layer"
LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64)
YARN = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=64)
FULL = ["full_attention"]
FACTORS: list[dict[str, float]] = [{}, {"factor": 8.0}, {"attention_factor": 1.25}]


def changed(name: str, folder: Path, **config: Any) -> Plan:
    """The plan of a recorded model whose config says something else."""
    record = family_models.record(name)
    if "text_config" in record["config"]:
        config = {"text_config": record["config"]["text_config"] | config}
    family_models.make(folder, record["config"] | config, record["checkpoint"])
    return planned(folder, "F16", pre=family_models.PRE)


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("mixtral", {"hidden_act": "gelu"}, "hidden_act is 'gelu': llama.cpp's graph for this family has SiLU built in"),
        ("mixtral", {"num_local_experts": 10**12}, "its shape is [11, 64], config.json says [1000000000000, 64]"),
        ("qwen2", {"head_dim": 24}, HEADS),
        ("qwen2", {"rope_parameters": LLAMA3}, "rope scaling of the kind 'llama3' is not supported"),
        ("qwen2moe", {"norm_topk_prob": True}, "llama.cpp does not scale the chosen experts' weights to a sum of one here"),
        ("qwen2moe", {"qkv_bias": False}, "qkv_bias is False: llama.cpp knows this family with biases"),
        ("qwen2moe", {"decoder_sparse_step": 2}, f"decoder_sparse_step is 2: {EVERY_LAYER}"),
        ("qwen2moe", {"tie_word_embeddings": True}, UNTIED),
        ("qwen3", {"attention_bias": True}, BARE),
        ("qwen3moe", {"norm_topk_prob": False}, "llama.cpp always scales the chosen experts' weights to a sum of one"),
        ("qwen3moe", {"norm_topk_prob": None}, "norm_topk_prob is False"),
        ("qwen3moe", {"mlp_only_layers": [1]}, f"mlp_only_layers is [1]: {EVERY_LAYER}"),
        ("qwen3moe", {"attention_bias": True}, BARE),
        ("gemma", {"hidden_activation": "relu"}, "llama.cpp computes this family with the tanh GELU"),
        ("gemma", {"attention_bias": True}, BARE),
        ("gemma", {"tie_word_embeddings": False}, TIED),
        ("gemma", {"rope_parameters": YARN}, "rope scaling of the kind 'yarn' is nothing this family has"),
        ("gemma2", {"query_pre_attn_scalar": 16}, "query_pre_attn_scalar is 16: llama.cpp takes it to be 32 in this model"),
        ("gemma2", {"layer_types": FULL * 3}, "has full attention in every layer of 2, config.json says otherwise"),
        ("gemma3", {"layer_types": FULL * 7}, "has full attention in every layer of 6, config.json says otherwise"),
        ("gemma3", {"_sliding_window_pattern": 5}, "has full attention in every layer of 6, config.json says otherwise"),
        ("gemma3", {"sliding_window_pattern": [1]}, "has full attention in every layer of 6, config.json says otherwise"),
        ("gemma3", {"attn_logit_softcapping": 50.0}, "llama.cpp caps no attention scores in this family"),
        ("gemma3", {"use_bidirectional_attention": True}, "each token seeing those before it"),
        ("gemma3-vision", {"query_pre_attn_scalar": 16}, "query_pre_attn_scalar is 16"),
        ("phi3", {"head_dim": 24}, HEADS),
        ("phi3", {"rope_parameters": YARN}, "rope scaling of the kind 'yarn' is not supported in this family"),
        ("ministral3", {"rope_parameters": YARN}, "llama.cpp wants yarn scaling with mscale_all_dim and llama_4_scaling_beta"),
        ("granite", {"head_dim": 24}, HEADS),
        ("granitemoe", {"hidden_act": "gelu"}, "SiLU built in"),
        ("olmo", {"attention_bias": True}, BARE),
        ("olmo2", {"tie_word_embeddings": True}, UNTIED),
        ("stablelm", {"rope_parameters": YARN}, "rope scaling of the kind 'yarn' is nothing this family has"),
        ("stablelm", {"use_qkv_bias": False, "qk_layernorm": True}, "self_attn.q_layernorm.norms.0.weight"),
        ("stablelm", {"tie_word_embeddings": True}, UNTIED),
        (
            "stablelm-parallel",
            {"num_attention_heads": 64, "num_key_value_heads": 32},
            "config.json says 64 heads, but the model has 49 tensors",
        ),
        ("stablelm-parallel", {"use_parallel_residual": False}, "lacks model.layers.0.post_attention_layernorm.weight"),
        ("smollm3", {"no_rope_layers": [1, 1, 1, 1, 0]}, "no_rope_layers is not every 4th layer"),
        ("smollm3", {"no_rope_layer_interval": 3}, "llama.cpp leaves every 4th layer unrotated in this family"),
        ("smollm3", {"mlp_bias": True}, BARE),
        ("internlm2", {"bias": True}, BARE),
        ("internlm2", {"num_key_value_heads": 1}, "its shape is [128, 64], config.json says [96, 64]"),
        ("glm4", {"hidden_act": "gelu"}, "SiLU built in"),
        ("command-r", {"use_qk_norm": True}, "llama.cpp expects no norms of heads in a model of 3 layers"),
        ("command-r", {"tie_word_embeddings": False}, TIED),
        ("command-r", {"attention_bias": True}, BARE),
        ("cohere2", {"layer_types": FULL * 5}, "has full attention in every layer of 4, config.json says otherwise"),
        ("cohere2", {"layer_switch": 3}, "has full attention in every layer of 4, config.json says otherwise"),
        ("cohere2", {"rotary_pct": 0.5}, "rotary_pct is 0.5: transformers rotates whole heads in this family"),
    ],
)
def test_what_a_graph_cannot_do_is_refused(name: str, config: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(Unsupported) as caught:
        changed(name, tmp_path / "model", **config)
    assert message in str(caught.value)


def test_every_expert_must_be_there_and_none_besides(tmp_path: Path) -> None:
    record = family_models.record("mixtral")
    name = "model.layers.1.block_sparse_moe.experts.{}.w2.weight"
    shapes = {n: s for n, s in record["checkpoint"].items() if n != name.format(10)}
    family_models.make(tmp_path / "fewer", record["config"], shapes)
    with pytest.raises(Unsupported, match=r"the model lacks model.layers.1.block_sparse_moe.experts.10.w2.weight"):
        planned(tmp_path / "fewer", "F16", pre=family_models.PRE)
    family_models.make(tmp_path / "more", record["config"], record["checkpoint"] | {name.format(11): [64, 96]})
    with pytest.raises(Unsupported, match=r"has no tensor model.layers.1.block_sparse_moe.experts.11.w2.weight"):
        planned(tmp_path / "more", "F16", pre=family_models.PRE)


@pytest.mark.parametrize(
    ("name", "rope", "message"),
    [
        ("llama", {"factor": 0}, "factor is 0, which is no float32 above zero"),
        ("llama", {"low_freq_factor": -1.0}, "low_freq_factor is -1.0, which is no float32 above zero"),
        ("llama", {"rope_theta": 1e300}, "rope_theta is 1e+300, which is no float32 above zero"),
        ("llama", {"high_freq_factor": None}, "rope scaling lacks high_freq_factor"),
        ("llama", {"high_freq_factor": 0.5}, "high_freq_factor is not above low_freq_factor"),
        ("phi3-longrope", {"factor": "4"}, "factor is '4', which is no float32 above zero"),
        ("phi3-longrope", {"attention_factor": True}, "attention_factor is True, which is no float32 above zero"),
        ("phi3-longrope", {"partial_rotary_factor": 1.5}, "1.5 of a head is rotated, which is no share"),
        ("glm4", {"partial_rotary_factor": -1.0}, "-1.0 of a head is rotated, which is no share"),
        ("qwen2", {"factor": 1e300}, "factor is 1e+300, which is no float32 above zero"),
    ],
)
def test_rope_numbers_are_checked(name: str, rope: dict[str, Any], message: str, tmp_path: Path) -> None:
    whole = family_models.record(name)["config"]["rope_parameters"] | rope
    with pytest.raises(Unsupported) as caught:
        changed(name, tmp_path / "model", rope_parameters=whole)
    assert message in str(caught.value)


def test_a_first_context_of_one_token_is_none(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="original_max_position_embeddings is 1, which is no context"):
        changed("phi3-longrope", tmp_path / "model", original_max_position_embeddings=1)


def test_a_factor_that_the_config_says_goes_before_the_contexts_ratio(tmp_path: Path) -> None:
    rope = family_models.record("phi3-longrope")["config"]["rope_parameters"]
    plans = [changed("phi3-longrope", tmp_path / str(i), rope_parameters=rope | said) for i, said in enumerate(FACTORS)]
    found = [value for plan in plans for key, _, value in plan.container.metadata if key == "phi3.rope.scaling.attn_factor"]
    assert found == pytest.approx([(1 + log(2) / log(256)) ** 0.5, (1 + log(8) / log(256)) ** 0.5, 1.25])


@pytest.mark.parametrize("factors", [None, 1.0, [1.0] * 5, ["1"] * 6, [1e300] * 6])
def test_long_rope_factors_are_checked(factors: Any, tmp_path: Path) -> None:
    rope = family_models.record("phi3-longrope")["config"]["rope_parameters"] | {"long_factor": factors}
    with pytest.raises(Unsupported, match="long_factor must be a list of 6 numbers, one for each pair of a head"):
        changed("phi3-longrope", tmp_path / "model", rope_parameters=rope)


@pytest.mark.parametrize(
    ("name", "config", "note"),
    [
        (
            "qwen3",
            {"sliding_window": 64, "use_sliding_window": True},
            "llama.cpp attends to the whole context where this model looks back 64 tokens only",
        ),
        ("qwen3moe", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "dynamic rope scaling"),
        ("phi3-longrope", {}, "llama.cpp uses the long rope factors for every prompt once its context (-c) is above 256"),
        ("gemma3-vision", {}, "only the text part is converted: the vision tower is left out"),
    ],
)
def test_what_readers_do_otherwise_is_a_warning(name: str, config: dict[str, Any], note: str, tmp_path: Path) -> None:
    assert any(note in said for said in changed(name, tmp_path / "model", **config).notes)


def test_a_vision_tower_is_named_in_the_report(tmp_path: Path) -> None:
    plan = changed("gemma3-vision", tmp_path / "model")
    left = {entry.tensor: entry.became for entry in plan.left_out if "mmproj" in entry.reason}
    assert left["vision_tower.embeddings.patch_embedding.weight"] == "dropped"
    assert left["multi_modal_projector.mm_soft_emb_norm.weight"] == "dropped"
    assert not any("vision" in tensor.name for tensor in plan.tensors)


def test_a_turn_of_glm4_ends_where_the_users_begins(tmp_path: Path) -> None:
    record = family_models.record("glm4")
    model = family_models.make(tmp_path / "model", record["config"], record["checkpoint"])
    tokenizer = (model / "tokenizer.json").read_text()
    assert "<pad>" in tokenizer
    (model / "tokenizer.json").write_text(tokenizer.replace("<pad>", "<|user|>"))
    keys = {k: v for k, _, v in planned(model, "F16", pre=family_models.PRE).container.metadata}
    assert keys["tokenizer.ggml.eot_token_id"] == 257


def test_a_config_that_ties_and_does_not_is_settled_by_the_models_tensors(tmp_path: Path) -> None:
    record = family_models.record("mistral3-vision")
    assert [c["tie_word_embeddings"] for c in (record["config"], record["config"]["text_config"])] == [True, False]
    assert "output.weight" not in {tensor.name for tensor in changed("mistral3-vision", tmp_path / "tied").tensors}
    shapes = record["checkpoint"] | {"language_model.lm_head.weight": [288, 64]}
    family_models.make(tmp_path / "untied", record["config"], shapes)
    plan = planned(tmp_path / "untied", "F16", pre=family_models.PRE)
    assert "output.weight" in {tensor.name for tensor in plan.tensors}


def test_multimodal_configs_leave_out_what_is_the_classs_default() -> None:
    """gemma-3-4b-it's text_config has six entries; the others are Gemma3TextConfig's defaults."""
    tensors = {"language_model.model.embed_tokens.weight": (262208, 2560), "language_model.model.norm.weight": (2560,)}
    for i in range(34):
        layer = f"language_model.model.layers.{i}."
        linears = {"q": (2048, 2560), "k": (1024, 2560), "v": (1024, 2560), "o": (2560, 2048)}
        tensors |= {f"{layer}self_attn.{name}_proj.weight": shape for name, shape in linears.items()}
        linears = {"gate": (10240, 2560), "up": (10240, 2560), "down": (2560, 10240)}
        tensors |= {f"{layer}mlp.{name}_proj.weight": shape for name, shape in linears.items()}
        tensors |= {f"{layer}self_attn.{name}_norm.weight": (256,) for name in "qk"}
        norms = ("input", "post_attention", "pre_feedforward", "post_feedforward")
        tensors |= {f"{layer}{name}_layernorm.weight": (2560,) for name in norms}
    tensors["vision_tower.vision_model.embeddings.patch_embedding.bias"] = (1152,)
    text = dict(hidden_size=2560, intermediate_size=10240, model_type="gemma3_text", num_hidden_layers=34)
    text |= dict(rope_scaling={"factor": 8.0, "rope_type": "linear"}, sliding_window=1024)
    config = dict(architectures=["Gemma3ForConditionalGeneration"], model_type="gemma3", text_config=text, vision_config={})
    infos = {n: TensorInfo(n, "BF16", s, "model.safetensors", 0, 2 * prod(s)) for n, s in tensors.items()}
    model = ModelInfo(Path("gemma-3-4b-it"), "gemma-3-4b-it", "safetensors", infos, (), config)
    seen = mapping.apply(family_of(model), model)
    keys = {k.removeprefix("gemma3."): v for k, _, v in mapping.metadata(seen, model, ("general.file_type", "u32", 1))}
    assert keys == {
        "general.file_type": 1,
        "block_count": 34, "context_length": 131072, "embedding_length": 2560, "feed_forward_length": 10240,
        "attention.head_count": 8, "attention.head_count_kv": 4, "rope.scaling.type": "linear", "rope.scaling.factor": 8.0,
        "rope.freq_base": 1000000.0, "rope.freq_base_swa": 10000.0, "attention.layer_norm_rms_epsilon": 1e-6,
        "attention.key_length": 256, "attention.value_length": 256, "attention.sliding_window": 1024,
    }  # fmt: skip
