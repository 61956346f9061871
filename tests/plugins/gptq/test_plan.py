"""Which tensors become what, what the config says of them, and who will load the result."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from header_models import headers, llama
from qconvd.api import ModelInfo, Plan, Unsupported
from qconvd.engine.plan import from_json, to_json
from qconvd.plugins import plugins
from qconvd_gptq.format import Gptq
from qconvd_gptq.options import GptqOptions


def planned(model: ModelInfo, **options: Any) -> Plan:
    return Gptq().plan(model, GptqOptions.model_validate(options))


def config_of(plan: Plan) -> dict[str, Any]:
    """`quantization_config`, which is what quantize_config.json says, too."""
    texts = {s.path: json.loads(s.text) for s in plan.side_files if s.text is not None}
    quantization: dict[str, Any] = texts["config.json"]["quantization_config"]
    assert texts["quantize_config.json"] == quantization
    return quantization


def left_out(plan: Plan) -> dict[str, str]:
    return {x.tensor: x.reason for x in plan.left_out}


def dynamic(config: dict[str, Any], module: str) -> Any:
    """What GPTQModel and vLLM make of a module: False if it is left out, else what is otherwise in it."""
    for pattern, changed in config.get("dynamic", {}).items():
        if re.match(pattern[2:], module):
            return False if pattern.startswith("-:") else changed
    return {}


def test_linears_of_layers_become_four_tensors_and_the_rest_stays() -> None:
    plan = planned(headers(llama()))
    by_name = {t.name: t for t in plan.tensors}
    q = {k: (by_name[f"model.layers.0.mlp.down_proj.{k}"].dtype, by_name[f"model.layers.0.mlp.down_proj.{k}"].shape)
         for k in ("qweight", "qzeros", "scales", "g_idx")}  # fmt: skip
    assert q == {
        "qweight": ("I32", (64, 256)), "qzeros": ("I32", (4, 32)), "scales": ("F16", (4, 256)), "g_idx": ("I32", (512,)),
    }  # fmt: skip
    assert sum(name.endswith(".qweight") for name in by_name) == 14
    assert {n: by_name[n].dtype for n in ("lm_head.weight", "model.embed_tokens.weight", "model.norm.weight")} == {
        "lm_head.weight": "BF16", "model.embed_tokens.weight": "BF16", "model.norm.weight": "BF16",
    }  # fmt: skip
    assert plan.left_out == ()
    assert [u.layer for u in plan.units if u.id == "model.layers.1.mlp.up_proj.weight"] == [1]
    assert from_json(to_json(plan)) == plan
    assert plan.name == Gptq().name_parts(GptqOptions())


def test_calibration_is_asked_for_and_rounding_needs_none() -> None:
    asked = [s.key for u in planned(headers(llama(1))).units for s in u.statistics]
    assert len(asked) == 7
    assert "model.layers.0.self_attn.q_proj.weight:hessian" in asked
    assert not any(u.statistics for u in planned(headers(llama(1)), method="rtn").units)
    quantized = planned(headers(llama(1)), calibration={"activations": "quantized"})
    assert quantized.calibration is not None
    assert quantized.calibration.stream == "quantized"


def test_who_wants_statistics_in_float32_gets_feedback_so_too() -> None:
    for calibration, wanted in (({}, None), ({"dtype": "float32"}, "float32")):
        units = planned(headers(llama(1)), calibration=calibration).units
        assert {u.options.get("feedback") for u in units if "bits" in u.options} == {wanted}


@pytest.mark.parametrize(("bits", "words", "zeros"), [(2, 32, 16), (3, 48, 24), (4, 64, 32), (8, 128, 64)])
def test_sizes_by_bits(bits: int, words: int, zeros: int) -> None:
    shapes = {t.name: t.shape for t in planned(headers(llama(1)), bits=bits).tensors}
    assert shapes["model.layers.0.mlp.down_proj.qweight"] == (words, 256)
    assert shapes["model.layers.0.mlp.down_proj.qzeros"] == (4, zeros * 256 // 256)


def test_the_config_has_the_keys_that_readers_know() -> None:
    plan = planned(headers(llama()))
    config = config_of(plan)
    meta = config.pop("meta")
    assert config == {
        "quant_method": "gptq", "bits": 4, "group_size": 128, "damp_percent": 0.01, "desc_act": False, "static_groups": True,
        "sym": True, "true_sequential": False, "lm_head": False, "checkpoint_format": "gptq", "pack_dtype": "int32",
    }  # fmt: skip
    assert meta["quantizer"][0].startswith("qconvd:")
    side = [s.path for s in plan.side_files]
    assert side == ["config.json", "quantize_config.json", "tokenizer.json", "generation_config.json"]
    assert plan.container.metadata == (("format", "str", "pt"),)


def test_shuffled_groups_are_said_and_whole_rows_have_none() -> None:
    assert config_of(planned(headers(llama()), desc_act=True))["desc_act"] is True
    whole = planned(headers(llama()), desc_act=True, group_size=-1)
    assert config_of(whole)["desc_act"] is False
    assert config_of(whole)["group_size"] == -1
    assert next(t.shape for t in whole.tensors if t.name.endswith("down_proj.scales")) == (1, 256)


def test_what_a_group_size_does_not_divide_stays_in_16_bits_and_is_named() -> None:
    plan = planned(headers(llama(width=192, hidden=512, key=192)))
    reason = "groups of 128 do not divide 192 inputs; `group_size: 64` would"
    assert left_out(plan)["model.layers.0.self_attn.q_proj.weight"] == reason
    assert len(plan.left_out) == 12
    assert (
        plan.notes[0] == f"quantizes only 2 of 14 linears: {reason}, and so would `partial_groups: true`, for GPTQModel alone"
    )
    config = config_of(plan)
    assert dynamic(config, "model.layers.1.mlp.down_proj") == {}
    for module in ("self_attn.q_proj", "self_attn.qkv_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.gate_up_proj"):
        assert dynamic(config, f"model.layers.1.{module}") is False, module
    assert config["modules_in_block_to_quantize"] == [["mlp.down_proj"]]
    assert [r.name for r in plan.loads_with] == ["vLLM (Marlin)", "vLLM", "ExLlamaV2", "transformers", "GPTQModel"]


@pytest.mark.parametrize(("inputs", "said", "better"), [(192, 128, 64), (96, 64, 32), (192, 1024, 64), (80, 32, -1)])
def test_a_group_size_that_would_do_is_named(inputs: int, said: int, better: int) -> None:
    plan = planned(headers({"layers.0.x_proj.weight": (64, inputs), "layers.0.y_proj.weight": (64, 1024)}), group_size=said)
    assert (
        left_out(plan)["layers.0.x_proj.weight"]
        == f"groups of {said} do not divide {inputs} inputs; `group_size: {better}` would"
    )
    assert left_out(planned(headers({"layers.0.x_proj.weight": (64, inputs)}), group_size=better)) == {}


def test_partial_groups_take_them_in_and_only_gptqmodel_reads_that() -> None:
    plan = planned(headers(llama(width=192, key=192)), partial_groups=True)
    assert plan.left_out == ()
    assert next(t.shape for t in plan.tensors if t.name.endswith("q_proj.scales")) == (2, 192)
    assert [(r.name, r.note) for r in plan.loads_with] == [
        ("GPTQModel", 'on a CPU with `backend="torch"`, for the last groups are short')
    ]
    eight = planned(headers(llama(width=192, key=192)), partial_groups=True, bits=8)
    assert [(r.name, r.note) for r in eight.loads_with] == [("GPTQModel", "")]
    assert not any("quantizes only" in note for note in plan.notes)


def test_widths_that_do_not_fill_words_are_left_out() -> None:
    shapes = {"model.layers.0.mlp.up_proj.weight": (340, 128), "model.layers.0.mlp.down_proj.weight": (128, 340),
              "model.layers.0.mlp.o_proj.weight": (128, 128)}  # fmt: skip
    found = left_out(planned(headers(shapes)))
    assert found == {
        "model.layers.0.mlp.up_proj.weight": "340 outputs cannot be packed with 4 bits, which takes a multiple of 8",
        "model.layers.0.mlp.down_proj.weight": "340 inputs cannot be packed with 4 bits, which takes a multiple of 8",
    }
    three = left_out(planned(headers({**shapes, "model.layers.0.mlp.x.weight": (80, 128)}), bits=3))
    assert three["model.layers.0.mlp.x.weight"] == "80 outputs cannot be packed with 3 bits, which takes a multiple of 32"


def test_modules_are_left_out_or_get_other_bits_and_the_config_says_so() -> None:
    plan = planned(
        headers(llama(3)), modules={"layers\\.0\\.": "skip", "down_proj": {"bits": 8, "group_size": 64}, "nix": "skip"}
    )
    config = config_of(plan)
    shapes = {t.name: t.shape for t in plan.tensors}
    assert shapes["model.layers.1.mlp.down_proj.qweight"] == (128, 256)
    assert shapes["model.layers.1.mlp.down_proj.scales"] == (8, 256)
    assert "model.layers.0.mlp.down_proj.weight" in shapes
    for unit in plan.units:
        module = unit.id.removesuffix(".weight")
        found = dynamic(config, module)
        if "bits" in unit.options:
            assert found is not False
            assert (unit.options["bits"], unit.options["group_size"]) == (found.get("bits", 4), found.get("group_size", 128))
        elif module in {x.tensor.removesuffix(".weight") for x in plan.left_out}:
            assert found is False
    assert plan.notes[-1] == "`modules`: 'nix' is found in no linear's name, so it changes nothing"
    assert "transformers" not in [r.name for r in plan.loads_with]


def test_what_vllm_joins_must_be_quantized_alike() -> None:
    plan = planned(headers(llama()), modules={"k_proj": "skip"})
    assert (
        "does not load with vLLM (Marlin), vLLM: it joins q_proj and k_proj and v_proj, which are not all quantized alike"
        in plan.notes
    )
    with pytest.raises(Unsupported) as caught:
        planned(headers(llama()), modules={"k_proj": "skip"}, **{"for": "vllm"})
    assert str(caught.value) == (
        "vLLM would not load it: it joins q_proj and k_proj and v_proj, which are not all quantized alike\n"
        "  change that, or leave vllm out of `for`"
    )


def test_routers_heads_towers_and_stacks_are_no_linears() -> None:
    extra = {
        "model.layers.0.mlp.gate.weight": (8, 256), "model.layers.0.mlp.experts.3.up_proj.weight": (512, 256),
        "model.layers.0.mlp.shared_expert_gate.weight": (32, 256), "vision_tower.layers.0.q_proj.weight": (256, 256),
        "model.layers.0.mlp.experts.gate_up_proj": (4, 512, 256),
    }  # fmt: skip
    plan = planned(headers(llama(1) | extra))
    names = {t.name for t in plan.tensors}
    assert "model.layers.0.mlp.experts.3.up_proj.qweight" in names
    assert {n for n in extra if n in names} == extra.keys() - {"model.layers.0.mlp.experts.3.up_proj.weight"}
    assert left_out(plan) == {"model.layers.0.mlp.experts.gate_up_proj": "a stack of matrices, which no GPTQ reader knows"}


def test_gpt2_stores_its_linears_the_other_way_round() -> None:
    shapes = {"h.0.attn.c_attn.weight": (256, 768), "h.0.mlp.c_proj.weight": (1024, 256), "wte.weight": (300, 256)}
    plan = planned(
        headers(
            shapes, config={"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "torch_dtype": "float16"}, dtype="F16"
        )
    )
    found = {t.name: t.shape for t in plan.tensors}
    assert found["h.0.attn.c_attn.qweight"] == (32, 768)
    assert found["h.0.mlp.c_proj.scales"] == (8, 256)


def test_a_model_in_float32_becomes_float16_and_a_few_such_tensors_in_another_stay() -> None:
    plan = planned(headers(llama(1), "F32", {"architectures": ["LlamaForCausalLM"], "torch_dtype": "float32"}))
    assert {t.dtype for t in plan.tensors} == {"I32", "F16"}
    assert json.loads(next(s.text or "" for s in plan.side_files if s.path == "config.json"))["torch_dtype"] == "float16"
    said = "the model is in float32; what of that is not quantized becomes float16"
    assert said in plan.notes
    mixed = planned(headers(llama(1), "BF16", None, model_norm_weight="F32"))
    assert said not in mixed.notes
    assert next(t.dtype for t in mixed.tensors if t.name == "model.norm.weight") == "F32"


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            headers({"model.norm.weight": (8,)}),
            "/nowhere/m: has no linears that can be quantized\n"
            "  GPTQ is for decoders such as LlamaForCausalLM; choose another format",
        ),
        (
            headers({"model.layers.0.q_proj.weight": (128, 64)}),
            "/nowhere/m: has no linears that can be quantized; of 1 linears none can be: model.layers.0.q_proj: "
            "groups of 128 do not divide 64 inputs; `group_size: 64` would",
        ),
        (
            headers(llama(1), config={}),
            "/nowhere/m: has no config.json, without which nobody can load GPTQ\n  add it",
        ),
        (
            headers(llama(1), config={"quantization_config": {"quant_method": "awq"}}),
            "/nowhere/m: is quantized already, with awq\n  convert the model that it was made from",
        ),
        (
            headers({"model.layers.0.q_proj.qweight": (128, 64)}, "I32"),
            "model.layers.0.q_proj.qweight: holds packed weights (I32): the model is quantized already\n"
            "  convert the model that it was made from",
        ),
        (
            headers(llama(1), "F8_E4M3"),
            "model.layers.0.self_attn.q_proj.weight: is stored as F8_E4M3; GPTQ is made from unquantized weights\n"
            "  convert from the model's 16-bit release",
        ),
    ],
)
def test_refusals(model: ModelInfo, message: str) -> None:
    with pytest.raises(Unsupported) as caught:
        planned(model)
    assert str(caught.value) == message


def test_memory_counts_the_factor_only_where_there_is_one() -> None:
    solved, rounded = (planned(headers(llama(1)), method=m) for m in ("gptq", "rtn"))
    unit, other = (next(u for u in p.units if u.id.endswith("down_proj.weight")) for p in (solved, rounded))
    assert unit.memory["cpu"] - other.memory["cpu"] == 6 * 512 * 512


def test_no_gpu_was_measured() -> None:
    assert plugins().formats["gptq"].devices == ("cpu", "cuda")
    assert planned(headers(llama(1))).measured_on == (), "so `device: auto` stays on the CPU"
