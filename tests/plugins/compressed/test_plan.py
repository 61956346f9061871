"""Plans from headers: what becomes what, what is left out and why, config.json, readers, refusals."""

from __future__ import annotations

import json
from typing import Any

import pytest

from header_models import headers, llama
from qconvd.api import Device, Plan, RowSplit, Unsupported, Whole
from qconvd.engine.layout import Layout
from qconvd.engine.plan import from_json, to_json
from qconvd_compressed.formats import Fp8, Int4, Int8

UP = "model.layers.0.mlp.up_proj"


def planned(
    fmt: Any, tensors: Any = None, dtype: str = "BF16", config: Any = None, kind: str = "safetensors", **options: Any
) -> Plan:
    plan = fmt.plan(headers(llama(1) if tensors is None else tensors, dtype, config, kind), fmt.Options(**options))
    Layout(plan)
    assert from_json(to_json(plan)) == plan
    assert plan.name == fmt.name_parts(fmt.Options(**options))
    return plan


def tensors_of(plan: Plan, module: str = UP) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {t.name.removeprefix(f"{module}."): (t.dtype, t.shape) for t in plan.tensors if t.name.startswith(f"{module}.")}


def quantization(plan: Plan) -> dict[str, Any]:
    text = next(f.text for f in plan.side_files if f.path == "config.json")
    found: dict[str, Any] = json.loads(text or "")["quantization_config"]
    return found


@pytest.mark.parametrize(
    ("fmt", "options", "tensors"),
    [
        (Int8(), {}, {"weight_packed": ("I32", (512, 64)), "weight_scale": ("BF16", (512, 1)), "weight_shape": ("I64", (2,))}),
        (Int8(), {"scheme": "w8a8"}, {"weight": ("I8", (512, 256)), "weight_scale": ("BF16", (512, 1))}),
        (
            Int8(),
            {"container": "bitsandbytes"},
            {"weight": ("I8", (512, 256)), "SCB": ("F32", (512,)), "weight_format": ("U8", ())},
        ),
        (Int4(), {}, {"weight_packed": ("I32", (512, 32)), "weight_scale": ("BF16", (512, 2)), "weight_shape": ("I64", (2,))}),
        (
            Int4(),
            {"group_size": -1, "sym": False},
            {
                "weight_packed": ("I32", (512, 32)),
                "weight_scale": ("BF16", (512, 1)),
                "weight_zero_point": ("I32", (64, 1)),
                "weight_shape": ("I64", (2,)),
            },
        ),
        (
            Int4(),
            {"container": "bitsandbytes"},
            {
                "weight": ("U8", (65536, 1)),
                "weight.absmax": ("U8", (2048,)),
                "weight.nested_absmax": ("F32", (8,)),
                "weight.nested_quant_map": ("F32", (256,)),
                "weight.quant_map": ("F32", (16,)),
                "weight.quant_state.bitsandbytes__nf4": ("U8", (256,)),
            },
        ),
        (Fp8(), {}, {"weight": ("F8_E4M3", (512, 256)), "weight_scale": ("BF16", (512, 1))}),
        (Fp8(), {"scheme": "block"}, {"weight": ("F8_E4M3", (512, 256)), "weight_scale": ("BF16", (4, 2))}),
    ],
)
def test_the_tensors_of_a_linear(fmt: Any, options: dict[str, Any], tensors: Any) -> None:
    plan = planned(fmt, **options)
    assert tensors_of(plan) == tensors
    assert {t.name: t.dtype for t in plan.tensors if "proj" not in t.name} == {
        name: "BF16" for name in llama(1) if "proj" not in name
    }


def test_rows_are_split_wherever_the_layout_allows() -> None:
    def rows(fmt: Any, tensors: Any = None, **options: Any) -> Any:
        return next(u.rows for u in planned(fmt, tensors, **options).units if u.id == f"{UP}.weight")

    assert rows(Int8()) == rows(Int8(), container="bitsandbytes") == rows(Int4()) == rows(Fp8()) == RowSplit(1, single=True)
    assert rows(Int4(), sym=False) == RowSplit(8)
    assert rows(Fp8(), scheme="block") == RowSplit(128)
    assert rows(Fp8(), {f"{UP}.weight": (200, 128)}, scheme="block") == Whole()
    assert rows(Int4(), container="bitsandbytes") == Whole()
    assert rows(Int4(), container="bitsandbytes", double_quant=False) == RowSplit(1, single=True)
    assert rows(Int4(), {f"{UP}.weight": (256, 48)}, container="bitsandbytes", double_quant=False) == RowSplit(4)
    assert rows(Int4(), {f"{UP}.weight": (255, 341)}, container="bitsandbytes", double_quant=False) == Whole()


def test_a_model_in_float32_becomes_float16_and_one_in_bfloat16_keeps_a_float32_norm() -> None:
    plan = planned(Int4(), dtype="F32")
    assert {t.dtype for t in plan.tensors} == {"I32", "I64", "F16"}
    config = json.loads(next(f.text for f in plan.side_files if f.path == "config.json") or "")
    assert config["torch_dtype"] == "float16"
    assert plan.notes[-1] == "the model is in float32; what of that is not quantized becomes float16"


def test_what_is_left_out_is_told_and_stands_in_the_config() -> None:
    shapes = llama(1) | {"model.layers.0.mlp.gate.weight": (8, 256), "model.layers.0.experts": (4, 64, 64)}
    shapes |= {"model.layers.0.mlp.down_proj.weight": (256, 341)}
    plan = planned(Int4(), shapes, modules={"v_proj": "skip", "nothing": "skip"})
    assert [(x.tensor, x.became, x.reason) for x in plan.left_out] == [
        ("model.layers.0.self_attn.v_proj.weight", "BF16", "left out by `modules`"),
        ("model.layers.0.mlp.down_proj.weight", "BF16", "341 inputs do not fill words of 8 values"),
        ("model.layers.0.experts", "BF16", "a stack of matrices, which no int4 reader knows"),
    ]
    assert quantization(plan)["ignore"] == [
        "model.layers.0.self_attn.v_proj", "model.layers.0.mlp.down_proj", "lm_head", "model.layers.0.mlp.gate",
        "model.layers.0.experts",
    ]  # fmt: skip
    assert "`modules`: 'nothing' is found in no linear's name, so it changes nothing" in plan.notes


def test_a_smaller_group_size_is_proposed_where_one_takes_all() -> None:
    plan = planned(Int4(), llama(1, width=192))
    assert "the group size 128 leaves out 6 of 7 linears (inputs: 192); group_size: 64 takes them all" in plan.notes
    assert {x.reason for x in plan.left_out} == {"the group size 128 does not divide 192 inputs"}
    assert not planned(Int4(), llama(1, width=192), group_size=64).left_out
    odd = planned(Fp8(), llama(1, width=192), scheme="block").left_out
    assert {x.reason for x in odd} == {"blocks of 128 do not divide 192 inputs"}
    odd = planned(Int4(), llama(1, key=100), sym=False).left_out
    assert {x.reason for x in odd} == {"the zero points of 100 outputs do not fill words of 8"}


def test_the_config_says_how_weights_and_activations_are_stored() -> None:
    def group(plan: Plan) -> dict[str, Any]:
        found: dict[str, Any] = quantization(plan)["config_groups"]["group_0"]
        return found

    w8a8 = group(planned(Int8(), scheme="w8a8"))
    assert (w8a8["format"], w8a8["weights"]["strategy"], w8a8["weights"]["num_bits"]) == ("int-quantized", "channel", 8)
    assert (w8a8["input_activations"]["strategy"], w8a8["input_activations"]["dynamic"]) == ("token", True)
    w8a16 = group(planned(Int8()))
    assert (w8a16["format"], w8a16["input_activations"]) == ("pack-quantized", None)
    w4 = group(planned(Int4(), sym=False, mse=True))["weights"]
    assert (w4["group_size"], w4["strategy"], w4["symmetric"], w4["observer"]) == (128, "group", False, "memoryless_mse")
    block = group(planned(Fp8(), scheme="block"))
    assert (block["weights"]["block_structure"], block["input_activations"]["group_size"]) == ([128, 128], 128)
    nf4 = quantization(planned(Int4(), container="bitsandbytes"))
    assert (nf4["load_in_4bit"], nf4["load_in_8bit"], nf4["bnb_4bit_quant_type"]) == (True, False, "nf4")
    assert (nf4["bnb_4bit_compute_dtype"], nf4["llm_int8_skip_modules"]) == ("bfloat16", ["lm_head"])
    assert quantization(planned(Int8(), container="bitsandbytes", llm_int8_threshold=4))["llm_int8_threshold"] == 4


def test_side_files_go_along_and_the_models_own_index_does_not() -> None:
    paths = [f.path for f in planned(Int4()).side_files]
    assert paths == ["config.json", "tokenizer.json", "generation_config.json"]
    sharded = planned(Int4(), max_shard_size="100KB")
    assert sharded.side_files[-1].path == "model.safetensors.index.json"
    assert len(sharded.files) > 2


def test_who_loads_it_and_who_does_not() -> None:
    plan = planned(Int4(), modules={"v_proj": "skip"})
    assert [r.name for r in plan.loads_with] == ["transformers"]
    assert plan.notes == (
        "loads with transformers (with compressed-tensors)",
        "does not load with vLLM: it joins q_proj and k_proj and v_proj, which are not all quantized",
    )
    with pytest.raises(Unsupported) as caught:
        planned(Int4(), modules={"v_proj": "skip"}, **{"for": "vllm"})
    assert str(caught.value) == (
        "vLLM would not load it: it joins q_proj and k_proj and v_proj, which are not all quantized\n"
        "  change that, or leave vllm out of `for`"
    )
    block = planned(Fp8(), llama(1, key=64), scheme="block")
    assert "it joins linears by whole blocks of 128 outputs, and model.layers.0.self_attn.k_proj has 64" in block.notes[-1]
    experts = planned(Int4(), {"model.layers.0.mlp.experts.0.w1.weight": (128, 128)})
    assert [r.name for r in experts.loads_with] == ["vLLM"]
    assert "it keeps the experts of a layer as one tensor" in experts.notes[-1]
    asymmetric = planned(Int4(), sym=False).loads_with
    assert asymmetric[0].note == "with compressed-tensors and CompressedTensorsConfig(dequantize=True)"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"kind": "gguf"},
            "/nowhere/m: a GGUF's tensors are named and ordered for its readers; int4 is made from the checkpoint\n"
            "  convert that one; if there is none, make it of this file first (`--to bf16`)",
        ),
        (
            {"kind": "ggml"},
            "/nowhere/m: a GGML file's tensors are named and ordered for its readers; int4 is made from the checkpoint\n"
            "  convert that one; if there is none, make it of this file first (`--to bf16`)",
        ),
        ({"config": {}}, "/nowhere/m: has no config.json, without which nobody can load int4\n  add it"),
        (
            {"config": {"quantization_config": {"quant_method": "awq"}}},
            "/nowhere/m: is quantized already, with awq\n  convert the model that it was made from",
        ),
        (
            {"tensors": {"model.layers.0.mlp.up_proj.qweight": (8, 8)}},
            "model.layers.0.mlp.up_proj.qweight: holds packed weights (BF16): the model is quantized already\n"
            "  convert the model that it was made from",
        ),
        (
            {"tensors": {f"{UP}.weight": (8, 8)}, "dtype": "I8"},
            f"{UP}.weight: is stored as I8; int4 is made from unquantized weights\n  convert from the model's 16-bit release",
        ),
        ({"tensors": {"wte.weight": (8, 8)}}, "/nowhere/m: has no linears that can be quantized"),
        (
            {"tensors": {"h.0.attn.c_attn.weight": (128, 384)}, "config": {"model_type": "gpt2"}},
            "/nowhere/m: has no linears that can be quantized; of 1 linears none can be: h.0.attn.c_attn: GPT-2's Conv1D, "
            "which compressed-tensors does not know",
        ),
    ],
)
def test_refusals(given: dict[str, Any], message: str) -> None:
    with pytest.raises(Unsupported) as caught:
        planned(Int4(), **given)
    assert str(caught.value) == message


def test_bitsandbytes_takes_gpt2_whose_linears_are_stored_the_other_way_round() -> None:
    shapes = {"h.0.attn.c_attn.weight": (128, 384), "h.0.attn.c_attn.bias": (384,)}
    plan = planned(Int8(), shapes, config={"model_type": "gpt2"}, container="bitsandbytes")
    assert tensors_of(plan, "h.0.attn.c_attn")["weight"] == ("I8", (384, 128))
    assert tensors_of(plan, "h.0.attn.c_attn")["bias"] == ("BF16", (384,))


def test_there_is_no_gpu_encoder() -> None:
    with pytest.raises(Unsupported, match="int8 has no kernels for a GPU"):
        Int8().encoder(planned(Int8()), Device("cuda", "GPU-1"))
