"""Plans of GGUF files: which tensors, which types, which names, and everything that is refused before a weight is read."""

from __future__ import annotations

import json
import shutil
import struct
from itertools import pairwise
from math import pi
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gguf_models
from gguf_files import converted, planned, tensor_bytes
from qconvd.engine.expr import Constant
from qconvd.engine.plan import Plan, RowSplit, from_json, to_json
from qconvd.errors import QconvdError, Unsupported
from qconvd.plugins import plugins
from qconvd_gguf.mixes.choice import Choice
from qconvd_gguf.units import _fallbacks


@pytest.fixture
def folder(smollm2: Path, tmp_path: Path) -> Path:
    """A Llama of two layers, d_ff 48 (no multiple of 32), hidden 32, with SmolLM2's tokenizer."""
    return make(tmp_path / "Tiny-2M-Chat", smollm2, intermediate_size=48)


def make(out: Path, smollm2: Path, **config: Any) -> Path:
    gguf_models.tiny(out, 49152, **config)
    shutil.copy(smollm2 / "tokenizer.json", out)
    return out


def change(folder: Path, **config: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))


def types_of(plan: Plan) -> dict[str, str]:
    return {t.name: t.dtype for t in plan.tensors}


@pytest.mark.parametrize("type_", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q5_1"])
def test_the_planned_size_is_the_files_size(folder: Path, tmp_path: Path, type_: str) -> None:
    plan = planned(folder, type_)
    made = converted(folder, [type_], tmp_path / "out")[type_]
    assert made.stat().st_size == plan.nbytes
    assert from_json(to_json(plan)).files == plan.files


def test_rows_that_no_block_divides_fall_back_and_the_plan_says_so(folder: Path) -> None:
    plan = planned(folder, "Q4_0")
    types = types_of(plan)
    assert types["blk.0.ffn_down.weight"] == "F16"
    assert types["blk.0.ffn_up.weight"] == "Q4_0"
    assert types["blk.0.ffn_norm.weight"] == "F32"
    assert types["token_embd.weight"] == "Q8_0"  # Q6_K would be due, but 32 is no multiple of 256
    left = {entry.tensor: (entry.became, entry.reason) for entry in plan.left_out}
    assert left["blk.1.ffn_down.weight"] == ("F16", "rows of 48 weights are no multiple of Q4_0's block of 32")
    assert left["token_embd.weight"] == ("Q8_0", "rows of 32 weights are no multiple of Q6_K's block of 256")
    assert "blk.0.ffn_norm.weight" not in left
    assert any(note.startswith("2 of 20 tensors of the Q4_0 file are F16 because rows of 48 weights") for note in plan.notes)


def test_an_l_variant_that_is_its_preset_by_another_name_says_so(smollm2: Path, tmp_path: Path) -> None:
    """Rows of 576 weights have no block of Q6_K, so that llama-quantize's own choice for the embeddings is Q8_0 already."""
    said = "Q4_K_L is Q4_K_M by another name: for this model both have every tensor in the same type"
    assert said in planned(smollm2, "Q4_K_L").notes
    made = converted(smollm2, ["Q4_K_M", "Q4_K_L"], tmp_path)
    assert made["Q4_K_M"].read_bytes() == made["Q4_K_L"].read_bytes()
    assert said not in planned(smollm2, "Q4_K_M").notes
    gguf_models.make("llama", smollm2, tmp_path / "wide")
    assert said not in planned(tmp_path / "wide", "Q4_K_L").notes


def test_each_reason_to_fall_back_has_its_own_tensors() -> None:
    def choice(wanted: str) -> Choice:
        return Choice("F16", f"no multiple of {wanted}'s block", fallback=True)

    assert list(_fallbacks("Q4_K_M", {"a": choice("Q4_K"), "b": choice("Q6_K"), "c": choice("Q4_K")})) == [
        "2 of 3 tensors of the Q4_K_M file are F16 because no multiple of Q4_K's block: a, c",
        "1 of 3 tensors of the Q4_K_M file are F16 because no multiple of Q6_K's block: b",
    ]


def test_options_of_llama_quantize(folder: Path) -> None:
    assert types_of(planned(folder, "Q4_0", output_tensor_type="q5_1"))["token_embd.weight"] == "Q5_1"
    assert types_of(planned(folder, "Q4_0", token_embedding_type="f16"))["token_embd.weight"] == "F16"
    assert types_of(planned(folder, "Q4_0", pure=True))["token_embd.weight"] == "Q4_0"
    assert types_of(planned(folder, "F16", output_tensor_type="q8_0"))["token_embd.weight"] == "F16"


def test_an_untied_head_gets_more_bits_and_the_embeddings_do_not(smollm2: Path, tmp_path: Path) -> None:
    folder = make(tmp_path / "m", smollm2, hidden_size=256, head_dim=128, tie_word_embeddings=False)
    types = types_of(planned(folder, "Q5_0"))
    assert (types["output.weight"], types["token_embd.weight"]) == ("Q6_K", "Q5_0")
    assert types_of(planned(folder, "Q8_0"))["output.weight"] == "Q8_0"
    assert types_of(planned(folder, "Q5_0", output_tensor_type="q8_0"))["output.weight"] == "Q8_0"
    assert types_of(planned(folder, "Q5_0", pure=True))["output.weight"] == "Q5_0"


def test_chunks_hold_whole_heads(folder: Path) -> None:
    rows = {unit.id: unit.rows for unit in planned(folder, "Q8_0").units}
    assert rows["blk.0.attn_q.weight"] == RowSplit(16, single=True)
    assert rows["blk.0.attn_v.weight"] == RowSplit(1, single=True)


def test_names_and_licence_come_from_the_folder_and_the_model_card(folder: Path) -> None:
    card = "license: apache-2.0\nbase_model: some-org/Tiny-2M\nlanguage: [en, 'no']\ntags: [a]\npipeline_tag: text"
    (folder / "README.md").write_text(f"---\n{card}\n---\n# Tiny\n")
    (folder / "generation_config.json").write_text('{"temperature": 0.6, "top_k": 20, "top_p": null, "do_sample": true}')
    keys = {k: v for k, _, v in planned(folder, "Q8_0").container.metadata if k.startswith("general.")}
    assert keys == {
        "general.architecture": "llama", "general.type": "model", "general.sampling.top_k": 20, "general.sampling.temp": 0.6,
        "general.name": "Tiny 2M Chat", "general.finetune": "Chat", "general.basename": "Tiny", "general.size_label": "2M",
        "general.license": "apache-2.0", "general.base_model.count": 1, "general.base_model.0.name": "Tiny 2M",
        "general.base_model.0.organization": "Some Org", "general.base_model.0.repo_url": "https://huggingface.co/some-org/Tiny-2M",
        "general.tags": ["a", "text"], "general.languages": ["en", "no"],
        "general.quantization_version": 2, "general.file_type": 7,
    }  # fmt: skip


@pytest.mark.parametrize("card", ["license: [", "date: 2023-99-99", "x: 0b_", "x: !!int ''", f"x: {'[' * 5000}"])
def test_a_broken_model_card_is_a_warning(folder: Path, card: str) -> None:
    (folder / "README.md").write_text(f"---\n{card}\n---\n")
    assert any("README.md's front matter cannot be read" in note for note in planned(folder, "Q8_0").notes)


def test_a_card_that_grows_beyond_measure_is_not_written_out(folder: Path) -> None:
    bomb = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 10)}]\n" for a, b in pairwise("abcdefghij"))
    (folder / "README.md").write_text(f"---\n{bomb}tags: [*j, y]\nlicense: [*j, mit]\nbase_model: *j\n---\n")
    keys = {k: v for k, _, v in planned(folder, "Q8_0").container.metadata}
    assert keys["general.tags"] == ["y"] and keys["general.license"] == "mit"
    assert "general.base_model.count" not in keys


def test_what_readers_compute_themselves_is_dropped(folder: Path) -> None:
    tensors = gguf_models.checkpoint(_config(folder))
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.zeros(8, np.float32)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    gguf_models.write(folder, tensors, _config(folder))
    left = {entry.tensor: (entry.became, entry.reason) for entry in planned(folder, "F16").left_out}
    assert left == {
        "model.layers.0.self_attn.rotary_emb.inv_freq": ("dropped", "readers compute the rotation's frequencies themselves"),
        "lm_head.weight": ("dropped", "config.json ties it to the embeddings"),
    }


def test_names_without_the_usual_prefix(folder: Path, tmp_path: Path) -> None:
    config = _config(folder)
    tensors = {
        n.removeprefix("model."): gguf_models.bfloat16(gguf_models.weights(n, s)) for n, s in gguf_models.shapes(config).items()
    }
    shutil.copytree(folder, tmp_path / "bare")
    gguf_models.write(tmp_path / "bare", tensors, config)
    assert types_of(planned(tmp_path / "bare", "F16")) == types_of(planned(folder, "F16"))


def test_float64_sources_are_rounded_once(folder: Path, tmp_path: Path) -> None:
    config = _config(folder)
    exact = {n: gguf_models.weights(n, s) for n, s in gguf_models.shapes(config).items()}
    gguf_models.write(folder, {n: x.astype(np.float64) for n, x in exact.items()}, config)
    data = tensor_bytes(converted(folder, ["F32"], tmp_path / "out")["F32"], "blk.1.ffn_up.weight")
    ours = np.frombuffer(data, np.float32).reshape(48, 32)
    assert np.array_equal(ours, exact["model.layers.1.mlp.up_proj.weight"])


def test_llama_3s_rope_factors(folder: Path) -> None:
    scaling = dict(
        rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192
    )
    change(folder, rope_parameters=scaling | {"rope_theta": 500000.0}, rope_theta=None)
    plan = planned(folder, "Q4_0")
    unit = next(u for u in plan.units if u.id == "rope_freqs.weight")
    assert isinstance(unit.inputs[0], Constant)
    factors = struct.unpack("<8f", unit.inputs[0].payload())
    waves = [2 * pi * 500000.0 ** (2 * i / 16) for i in range(8)]
    assert factors[0] == 1.0
    assert factors[-1] == 8.0
    for factor, wave in zip(factors, waves, strict=True):
        if 8192 / 4 < wave < 8192:
            share = (8192 / wave - 1) / 3
            assert factor == pytest.approx(1 / ((1 - share) / 8 + share), rel=1e-5)
        else:
            assert factor == (1.0 if wave <= 8192 / 4 else 8.0)
    assert ("llama.rope.freq_base", "f32", 500000.0) in plan.container.metadata


def test_yarn_and_dynamic_scaling(folder: Path) -> None:
    change(folder, rope_scaling={"type": "yarn", "factor": 4, "original_max_position_embeddings": 512, "beta_fast": 16})
    scaling = {k: v for k, _, v in planned(folder, "F16").container.metadata if "rope.scaling" in k}
    assert scaling == {
        "llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0,
        "llama.rope.scaling.original_context_length": 512, "llama.rope.scaling.yarn_beta_fast": 16.0,
    }  # fmt: skip
    change(folder, rope_scaling={"type": "dynamic", "factor": 4})
    assert any("dynamic rope scaling" in note for note in planned(folder, "F16").notes)


def test_a_sliding_window_is_a_warning(folder: Path) -> None:
    change(folder, architectures=["MistralForCausalLM"], sliding_window=1024)
    assert any("looks back 1024 tokens" in note for note in planned(folder, "F16").notes)


def _config(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return config


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"architectures": ["FooForCausalLM"]}, "gguf does not know the architecture FooForCausalLM"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu': llama.cpp's graph for this family has SiLU built in"),
        ({"num_hidden_layers": 3}, "the model lacks model.layers.2.input_layernorm.weight"),
        ({"num_hidden_layers": 10**12}, "config.json says 1000000000000 layers, but the model has 20 tensors"),
        ({"num_hidden_layers": 1}, "LlamaForCausalLM has no tensor model.layers.1.input_layernorm.weight"),
        ({"hidden_size": 64}, "tensor model.embed_tokens.weight: its shape is [49152, 32], config.json says [49152, 64]"),
        ({"head_dim": None, "num_attention_heads": 3}, "config.json contradicts itself: hidden/heads is 32/3"),
        ({"vocab_size": None}, "vocab_size is missing"),
        ({"vocab_size": "many"}, "vocab_size is 'many', which is no number"),
        ({"num_hidden_layers": True}, "num_hidden_layers is True, which is no number"),
        ({"rope_theta": float("nan")}, "rope_theta is nan, which is no number"),
        ({"rms_norm_eps": float("inf")}, "rms_norm_eps is inf, which is no number"),
        ({"rms_norm_eps": 10**400}, "which is no number"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0, which is no number"),
        ({"tie_word_embeddings": False}, "it must be there because config.json says tie_word_embeddings: false"),
        (
            {"attention_bias": True},
            "the model lacks model.layers.0.self_attn.q_proj.bias, model.layers.1.self_attn.q_proj.bias",
        ),
        ({"rope_scaling": {"type": "longrope"}}, "rope scaling of the kind 'longrope' is not supported"),
        ({"rope_scaling": {"type": "linear"}}, "rope scaling lacks factor"),
    ],
)
def test_models_that_do_not_fit_are_refused_by_name(folder: Path, config: dict[str, Any], message: str) -> None:
    change(folder, **config)
    with pytest.raises(Unsupported) as caught:
        planned(folder, "Q8_0")
    assert message in str(caught.value)
    assert "architecture" not in message or "InternLM2ForCausalLM, LLaMAForCausalLM, LlamaForCausalLM" in str(caught.value)


def test_tensors_that_are_no_floats_are_refused(folder: Path) -> None:
    config = _config(folder)
    tensors = gguf_models.checkpoint(config)
    tensors["model.norm.weight"] = np.zeros(32, np.int32)
    gguf_models.write(folder, tensors, config)
    with pytest.raises(Unsupported, match=r"tensor model\.norm\.weight: its type is I32, not a float"):
        planned(folder, "Q8_0")


def test_gpt2s_that_llama_cpp_computes_otherwise_are_refused(smollm2: Path, tmp_path: Path) -> None:
    config = gguf_models.CONFIGS["gpt2"] | {"n_embd": 32, "n_layer": 1, "n_head": 2}
    gguf_models.write(tmp_path, gguf_models.checkpoint(config), config)
    shutil.copy(smollm2 / "tokenizer.json", tmp_path)
    assert types_of(planned(tmp_path, "Q4_0"))["position_embd.weight"] == "F32"
    for key, value in {
        "activation_function": "relu",
        "scale_attn_by_inverse_layer_idx": True,
        "add_cross_attention": True,
    }.items():
        (tmp_path / "config.json").write_text(json.dumps(config | {key: value}))
        with pytest.raises(Unsupported, match=f"{key} is {value!r}"):
            planned(tmp_path, "Q4_0")


def test_nan_weights_are_refused_where_the_options_say_so(folder: Path, tmp_path: Path) -> None:
    config = _config(folder)
    tensors = gguf_models.checkpoint(config)
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = 0x7FC0
    gguf_models.write(folder, tensors, config)
    converted(folder, ["Q8_0"], tmp_path / "reported")
    with pytest.raises(AssertionError) as caught:
        converted(folder, ["Q8_0"], tmp_path / "refused", non_finite="refuse")
    assert isinstance(caught.value.__cause__, QconvdError)
    assert "blk.1.ffn_up.weight: has 1 NaN and 0 infinite weights" in str(caught.value.__cause__)


def test_what_was_written_decodes_to_the_source_within_the_bound(folder: Path, tmp_path: Path) -> None:
    gguf = plugins().formats["gguf"]
    source = gguf_models.weights("model.layers.0.mlp.up_proj.weight", (48, 32))
    source = (gguf_models.bfloat16(source).astype(np.uint32) << 16).view(np.float32)
    for type_, path in converted(folder, ["F16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"], tmp_path / "out").items():
        unit = next(u for u in planned(folder, type_).units if u.id == "blk.0.ffn_up.weight")
        (decoded,) = gguf.decode(unit, (0, 48), [tensor_bytes(path, unit.id)])
        (bound,) = gguf.bound(unit, (0, 48), [source], {})
        assert decoded.shape == source.shape
        assert (abs(decoded - source) <= bound).all(), type_
        assert np.median(bound) < (1e-4 if type_ == "F16" else 0.01)  # the weights are about 0.02
