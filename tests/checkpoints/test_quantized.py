"""Quantized checkpoints as sources: every weight is what its parts say, in any rows, and formats see the plain model."""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from command_line import called_in
from converted import converted
from qconvd.checkpoints import inspect
from qconvd.engine.evaluate import rows
from qconvd.engine.expr import Read
from qconvd.engine.regions import needs
from qconvd.engine.source import Source
from qconvd.errors import BadCheckpoint, QconvdError, Unsupported
from qconvd.formats import planned
from qconvd.plugins import plugins
from quantized_models import Quantizer, awq, compressed, config_of, fp8, gptq, write_quantized

G = {"quant_method": "gptq", "desc_act": False, "sym": False, "lm_head": False, "true_sequential": True}
A = {"quant_method": "awq", "zero_point": True}
F8 = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic"}
PACKED = "compressed-tensors pack-quantized"
CASES: dict[str, tuple[Quantizer, dict[str, Any], str]] = {
    "gptq 2 bits": (gptq(2, 32), G | {"bits": 2, "group_size": 32}, "GPTQ, 2 bits, group size 32"),
    "gptq 3 bits": (gptq(3, 32), G | {"bits": 3, "group_size": 32}, "GPTQ, 3 bits, group size 32"),
    "gptq 4 bits": (gptq(4, 32), G | {"bits": 4, "group_size": 32}, "GPTQ, 4 bits, group size 32"),
    "gptq 8 bits": (gptq(8, 32), G | {"bits": 8, "group_size": 32}, "GPTQ, 8 bits, group size 32"),
    "gptq v2": (gptq(4, 16, version=2), G | {"bits": 4, "checkpoint_format": "gptq_v2"}, "GPTQ, 4 bits"),
    "gptq by activation": (gptq(4, 32, act_order=True), G | {"bits": 4, "group_size": 32}, "GPTQ, 4 bits, group size 32"),
    "gptq one group": (gptq(4, -1), G | {"bits": 4, "group_size": -1}, "GPTQ, 4 bits"),
    "gptq short last group": (gptq(4, 40), G | {"bits": 4, "group_size": 40}, "GPTQ, 4 bits, group size 40"),
    "gptq without g_idx": (gptq(8, 32, index=False), G | {"bits": 8, "group_size": 32}, "GPTQ, 8 bits, group size 32"),
    "gptq with other bits for some": (gptq(8, 32), G | {"bits": 4, "group_size": 32}, "GPTQ, 4 bits, group size 32"),
    "awq": (awq(32), A | {"bits": 4, "group_size": 32, "version": "gemm"}, "AWQ, 4 bits, group size 32"),
    "ct 4 bits": (compressed(4, 32), config_of("pack-quantized", 4, 32), f"{PACKED}, 4 bits, group size 32"),
    "ct 4 bits asymmetric": (
        compressed(4, 32, asymmetric=True), config_of("pack-quantized", 4, 32, symmetric=False),
        f"{PACKED}, 4 bits, group size 32",
    ),
    "ct 4 bits by row": (compressed(4, 0), config_of("pack-quantized", 4, 0), f"{PACKED}, 4 bits"),
    "ct 8 bits": (compressed(8, 16, asymmetric=True), config_of("pack-quantized", 8, 16), f"{PACKED}, 8 bits, group size 16"),
    "ct 2 bits": (compressed(2, 32, asymmetric=True), config_of("pack-quantized", 2, 32), f"{PACKED}, 2 bits, group size 32"),
    "ct by activation": (
        compressed(4, 32, act_order=True), config_of("pack-quantized", 4, 32), f"{PACKED}, 4 bits, group size 32"
    ),
    "ct int8": (compressed(8, 0, kind="int8"), config_of("int-quantized", 8, 0), "compressed-tensors int-quantized, 8 bits"),
    "ct int8 asymmetric": (
        compressed(8, 0, kind="int8", asymmetric=True), config_of("int-quantized", 8, 0, symmetric=False),
        "compressed-tensors int-quantized, 8 bits",
    ),
    "ct int8 by activation": (
        compressed(8, 32, kind="int8", act_order=True), config_of("int-quantized", 8, 32),
        "compressed-tensors int-quantized, 8 bits, group size 32",
    ),
    "ct int8, one scale": (
        compressed(8, -1, kind="int8"), config_of("naive-quantized", 8, -1), "compressed-tensors naive-quantized, 8 bits"
    ),
    "ct float8": (
        compressed(8, 0, kind="float8"), config_of("float-quantized", 8, 0), "compressed-tensors float-quantized, 8 bits"
    ),
    "ct float8, one scale": (
        compressed(8, -1, kind="float8"), config_of("float-quantized", 8, -1), "compressed-tensors float-quantized, 8 bits"
    ),
    "ct float8 in blocks": (
        compressed(8, -2, kind="float8"), config_of("float-quantized", 8, -2, strategy="block", block_structure=[48, 40]),
        "compressed-tensors float-quantized, 8 bits",
    ),
    "fp8 in blocks": (fp8(48, 40), F8 | {"weight_block_size": [48, 40]}, "FP8"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_every_weight_is_what_its_parts_say(tmp_path: Path, case: str) -> None:
    quantizer, config, label = CASES[case]
    meant = write_quantized(tmp_path / "Toy", quantizer, config)
    made = converted(tmp_path / "Toy", tmp_path / "out", "fp16", dtype="f32")
    found = load_file(made.folder / "model.safetensors")
    assert found.keys() == meant.keys()
    for name, values in meant.items():
        np.testing.assert_array_equal(found[name], values.astype(np.float32), err_msg=name)
    assert made.model.quantization == label
    assert "quantization_config" not in json.loads((made.folder / "config.json").read_text())
    assert made.plan.notes == (f"the model was quantized before ({label}): its weights are what that left of them",)
    assert made.verify().sha256


def toy(folder: Path, case: str = "gptq 4 bits", **more: Any) -> Path:
    quantizer, config, _ = CASES[case]
    write_quantized(folder, quantizer, config | more)
    return folder


@pytest.mark.parametrize("case", ["gptq 3 bits", "gptq by activation", "awq", "ct 4 bits asymmetric", "fp8 in blocks"])
def test_any_rows_are_the_rows_of_the_whole_and_read_no_more_than_they_need(tmp_path: Path, case: str) -> None:
    model = inspect(toy(tmp_path / "Toy", case))
    known = plugins().operations
    for name in ("model.layers.0.mlp.gate_proj.weight", "model.layers.1.self_attn.k_proj.weight"):
        expr = Read.of(model.tensors[name])
        total = model.tensors[name].shape[0]
        with Source(model) as source:
            whole = rows(expr, 0, total, source, known)
            for start, stop in ((0, 1), (total - 1, total), (3, 5), (7, 19), (30, 32), (5, total)):
                before = source.bytes_read
                with_window = source.window(needs(expr, start, stop, known))
                asked = source.bytes_read - before
                np.testing.assert_array_equal(rows(expr, start, stop, with_window, known), whole[start:stop])
                assert source.bytes_read - before == asked  # the window held it all
                with_window.close()
            everything = sum(n.nbytes for n in needs(expr, 0, total, known))
            assert sum(n.nbytes for n in needs(expr, 8, 16, known)) < everything / 1.9


def test_a_quantized_model_becomes_gguf_and_halves(tmp_path: Path, glass: Path) -> None:
    """The same GGUF as from the weights that the quantized ones stand for."""
    quantizer, config, _ = CASES["gptq by activation"]
    meant = write_quantized(tmp_path / "Toy", quantizer, config, tokenizer=glass)
    plain = tmp_path / "plain" / "Toy"
    write_quantized(plain, quantizer, config, tokenizer=glass)
    said = json.loads((plain / "config.json").read_text())
    (plain / "config.json").write_text(json.dumps({k: v for k, v in said.items() if k != "quantization_config"}))
    save_file({name: values.astype(np.float32) for name, values in meant.items()}, plain / "model.safetensors")
    for type_ in ("F16", "BF16"):
        packed = converted(tmp_path / "Toy", tmp_path / f"packed-{type_}", "gguf", types=[type_])
        other = converted(plain, tmp_path / f"plain-{type_}", "gguf", types=[type_])
        (one,), (two,) = packed.folder.glob("*.gguf"), other.folder.glob("*.gguf")
        assert one.read_bytes() == two.read_bytes()
        assert packed.verify().sha256
    halves = converted(tmp_path / "Toy", tmp_path / "halves", "fp16")
    with safe_open(halves.folder / "model.safetensors", "np") as file:
        for name, values in meant.items():
            np.testing.assert_array_equal(file.get_tensor(name), values.astype(np.float32).astype(np.float16))


def test_quantizing_again_has_to_be_asked_for(tmp_path: Path, glass: Path) -> None:
    quantizer, config, label = CASES["awq"]
    write_quantized(tmp_path / "Toy", quantizer, config, tokenizer=glass)
    with pytest.raises(Unsupported) as caught:
        converted(tmp_path / "Toy", tmp_path / "no", "gguf", types=["Q8_0"])
    assert caught.value.what == f"is quantized already ({label}), and Q8_0 made from it is worse than from the original"
    assert caught.value.fix == "start from the model that it was made from, or say `allow_requantize: true` under gguf"
    assert converted(tmp_path / "Toy", tmp_path / "yes", "gguf", types=["Q8_0"], allow_requantize=True).verify().sha256


def test_a_format_that_cannot_be_asked_refuses(tmp_path: Path) -> None:
    import sys

    sys.path.insert(0, str(Path(__file__).parent.parent / "thirdparty" / "qconvd-tiny"))
    try:
        from qconvd_tiny.int8rows import Int8Rows
    finally:
        sys.path.pop(0)
    with pytest.raises(Unsupported) as caught:
        converted(toy(tmp_path / "Toy"), tmp_path / "out", Int8Rows())
    assert caught.value.what.endswith(f", and {Int8Rows.name} made from it is worse than from the original")
    assert caught.value.fix == "start from the model that it was made from, or make fp16 or bf16 of this one"


def test_what_users_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    qconvd = called_in(tmp_path, monkeypatch, capsys)
    model = toy(tmp_path / "Toy-GPTQ")
    shown = qconvd("inspect", model).out
    assert "quantization       GPTQ, 4 bits, group size 32\n" in shown
    assert "(quantized 93.3 %, F16 6.71 %)" in shown
    note = "the model was quantized before (GPTQ, 4 bits, group size 32): its weights are what that left of them"
    assert note in " ".join(shown.split())
    assert note in " ".join(qconvd("plan", model, "--to", "fp16").out.split())
    assert qconvd("inspect", model, "--json").json["quantization"] == "GPTQ, 4 bits, group size 32"


@pytest.mark.parametrize(("file", "case"), [("quantize_config.json", "gptq 4 bits"), ("quant_config.json", "awq")])
def test_older_checkpoints_say_it_beside_their_config(tmp_path: Path, file: str, case: str) -> None:
    quantizer, config, label = CASES[case]
    said = {k: v for k, v in config.items() if k != "quant_method"}
    if case == "awq":
        said = {"zero_point": True, "q_group_size": 32, "w_bit": 4, "version": "GEMM"}
    write_quantized(tmp_path / "Toy", quantizer, said, file)
    model = inspect(tmp_path / "Toy")
    assert (model.quantization, "model.layers.0.mlp.up_proj.weight" in model.tensors) == (label, True)


@pytest.mark.parametrize(
    ("config", "label", "read"),
    [
        (G | {"bits": 4, "checkpoint_format": "marlin"}, "GPTQ, 4 bits, marlin",
         "GPTQ is read in the formats gptq and gptq_v2"),
        (G | {"bits": 4, "is_marlin_format": True}, "GPTQ, 4 bits, marlin", "GPTQ is read in the formats gptq and gptq_v2"),
        (G | {"bits": 5}, "GPTQ, 5 bits", "GPTQ is read with 2, 3, 4 and 8 bits in words of int32"),
        (A | {"bits": 4, "group_size": 32, "version": "gemv"}, "AWQ, 4 bits, group size 32, gemv",
         "AWQ is read in the layout gemm, with 4 bits"),
        (config_of("nvfp4-pack-quantized", 4, 16), "compressed-tensors nvfp4-pack-quantized, 4 bits, group size 16, "
         "nvfp4-pack-quantized",
         "compressed-tensors is read as pack-quantized, int-quantized, float-quantized and naive-quantized"),
        (config_of("pack-quantized", 4, 32) | {"sparsity_config": {"format": "sparse-24-bitmask"}},
         f"{PACKED}, 4 bits, group size 32, sparse", "compressed-tensors is read where it is not sparse"),
        (config_of("pack-quantized", 4, 32) | {"transform_config": {"config_groups": {"R1": {}}}},
         f"{PACKED}, 4 bits, group size 32, with rotations", "compressed-tensors is read without a transform_config"),
        (F8, "FP8", "FP8 is read as E4M3 in blocks, with weight_block_size in the config"),
        (F8 | {"weight_block_size": [128, 128], "fmt": "e5m2"}, "FP8",
         "FP8 is read as E4M3 in blocks, with weight_block_size in the config"),
    ],
    ids=["marlin", "old marlin", "5 bits", "gemv", "nvfp4", "sparse", "rotations", "fp8", "e5m2"],
)  # fmt: skip
def test_variants_that_are_not_read(tmp_path: Path, config: dict[str, Any], label: str, read: str) -> None:
    write_quantized(tmp_path / "Toy", gptq(4, 32), config)
    with pytest.raises(Unsupported) as caught:
        inspect(tmp_path / "Toy")
    assert caught.value.what == f"is already quantized ({label})"
    assert caught.value.fix == f"{read}; give qconvd the model that it was made from, in 16 or 32 bits"


Q = "model.layers.0.self_attn.q_proj"


def spoilt(folder: Path, case: str, **changes: Any) -> QconvdError:
    """What is said of a model some of whose parts are others, or missing."""
    toy(folder, case)
    tensors = load_file(folder / "model.safetensors")
    for ending, value in changes.items():
        tensors.pop(f"{Q}.{ending}", None)
        if value is not None:
            tensors[f"{Q}.{ending}"] = value
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(BadCheckpoint) as caught:
        converted(folder, folder.with_name("out"), "fp16")
    return caught.value


def test_groups_that_do_not_divide_an_awq_linear(tmp_path: Path) -> None:
    toy(tmp_path / "m", "awq")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    config["quantization_config"]["group_size"] = 33
    (tmp_path / "m" / "config.json").write_text(json.dumps(config))
    with pytest.raises(BadCheckpoint) as caught:
        converted(tmp_path / "m", tmp_path / "out", "fp16")
    assert caught.value.what == "has 96 inputs, which groups of 33 do not divide"


def test_zero_points_that_are_due_and_missing(tmp_path: Path) -> None:
    for number, case in enumerate(("ct 4 bits asymmetric", "ct int8 asymmetric")):
        lacks = spoilt(tmp_path / str(number) / "m", case, weight_zero_point=None)
        assert lacks.what == f"the model lacks '{Q}.weight_zero_point'"


def test_parts_that_do_not_fit(tmp_path: Path) -> None:
    half, whole = np.float16, np.int32
    lacks = spoilt(tmp_path / "a" / "m", "gptq 4 bits", scales=None)
    assert lacks.what == f"the model lacks '{Q}.scales'"
    zeros = spoilt(tmp_path / "b" / "m", "gptq 4 bits", qzeros=np.ones((2, 7), whole))
    assert zeros.what == "is I32 [2, 7], where I32 [2, 8] is due"
    assert zeros.where.endswith(f"model.safetensors, tensor {Q}.qzeros")
    index = spoilt(tmp_path / "c" / "m", "gptq 4 bits", g_idx=np.zeros(60, whole))
    assert index.what == "has 8 rows of words, which do not hold 60 rows of 2, 3, 4 or 8 bits"
    beyond = spoilt(tmp_path / "d" / "m", "gptq 4 bits", g_idx=np.arange(64, dtype=whole) % 3)
    assert beyond.what == "a group index names the group 2 of 2, the first being 0"
    finer = spoilt(tmp_path / "i" / "m", "gptq 4 bits", g_idx=np.arange(64, dtype=whole) // 8)
    assert str(finer) == (f"{Q}.weight: a group index names the group 7 of 2, the first being 0\n  download the model again")
    below = spoilt(tmp_path / "j" / "m", "ct by activation", weight_g_idx=np.arange(64, dtype=whole) // 32 - 1)
    assert below.what == "a group index names the group -1 of 2, the first being 0"
    flat = spoilt(tmp_path / "k" / "m", "gptq 4 bits", scales=np.ones(64, half))
    assert flat.what == "has the shape [64], where a row of 64 for each group is due"
    wide = spoilt(tmp_path / "l" / "m", "gptq 4 bits", scales=np.ones((2, 64)))
    assert wide.what == "is F64 [2, 64], where F16 or BF16 or F32 is due"
    both = spoilt(tmp_path / "e" / "m", "gptq 4 bits", weight=np.ones((64, 64), half))
    assert both.what == f"is packed, and '{Q}.weight' is there as well"
    groups = spoilt(tmp_path / "f" / "m", "gptq without g_idx", scales=np.ones((3, 64), half), qzeros=np.ones((3, 16), whole))
    assert groups.what == "has 3 groups for 64 rows, where groups are of 32"
    scale = spoilt(tmp_path / "g" / "m", "ct int8", weight_scale=np.ones((9, 1), half))
    assert scale.what == "has the shape [9, 1], which fits none of the config's groups for 64 x 64 weights"
    shape = spoilt(tmp_path / "h" / "m", "ct 4 bits", weight_shape=np.array([64, 99]))
    assert shape.what == "has 64 rows of 8 words, which hold no weights of [64, 99] in 4 bits"


def test_fp8_whose_blocks_are_others_than_the_config_says(tmp_path: Path) -> None:
    write_quantized(tmp_path / "m", fp8(64, 64), F8 | {"weight_block_size": [48, 40]})
    with pytest.raises(BadCheckpoint) as caught:
        inspect(tmp_path / "m")
    assert caught.value.what == "is F32 [1, 2], where F16 or BF16 or F32 [2, 3] is due"
    assert caught.value.where.endswith("tensor model.layers.0.mlp.down_proj.weight_scale_inv")


def test_a_config_that_speaks_of_packing_where_none_is(tmp_path: Path) -> None:
    model = toy(tmp_path / "Toy")
    save_file({"model.norm.weight": np.ones(4, np.float16)}, model / "model.safetensors")
    with pytest.raises(BadCheckpoint) as caught:
        inspect(model)
    assert caught.value.what == "is said to be quantized (GPTQ, 4 bits, group size 32), but none of its tensors is packed"


def test_a_shape_that_was_not_written_yet_is_taken_from_the_words(tmp_path: Path) -> None:
    """As in the folder of headers that stands for a model on the Hub."""
    model = toy(tmp_path / "Toy", "ct 4 bits")
    tensors = load_file(model / "model.safetensors")
    for name in tensors:
        if name.endswith("weight_shape"):
            tensors[name] = np.zeros(2, np.int64)
    save_file(tensors, model / "model.safetensors")
    assert inspect(model).tensors[f"{Q}.weight"].shape == (64, 64)


@pytest.mark.parametrize("case", ["gptq 3 bits", "awq", "ct 4 bits asymmetric", "ct int8 asymmetric"])
def test_hostile_headers_and_configs(tmp_path: Path, case: str) -> None:
    """Whatever shapes, types and settings are claimed, inspecting and planning end with a plan or a QconvdError."""
    model = toy(tmp_path / "Toy", case)
    whole = (model / "model.safetensors").read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header, body = json.loads(whole[8 : 8 + length]), whole[8 + length :]
    config = json.loads((model / "config.json").read_text())
    dice = random.Random(6)
    values = [None, True, 0, -1, 1, 3, 4, 7, 2**40, 0.5, "", "4", "gptq", [], [4], {}, {"a": {}}]
    fp16 = plugins().formats["fp16"]
    count = 0
    for _ in range(400):
        said = copy.deepcopy(config["quantization_config"])
        places = [said, *said.get("config_groups", {}).values()]
        places += [g["weights"] for g in places[1:]]
        for _ in range(dice.randint(0, 2)):
            place = dice.choice(places)
            place[dice.choice([*place, "group_size", "bits", "strategy", "block_structure"])] = dice.choice(values)
        changed = copy.deepcopy(header)
        for _ in range(dice.randint(0, 2)):
            entry = changed[dice.choice([name for name in changed if Q in name])]
            shape = list(entry["shape"])
            dice.shuffle(shape)
            size = entry["data_offsets"][1] - entry["data_offsets"][0]
            entry["shape"] = dice.choice([shape, [size // 4], [1, size // 4], [size // 4, 1], entry["shape"][:1], []])
            entry["dtype"] = dice.choice([entry["dtype"], "I32", "F32", "U32", "F8_E4M3"])
            entry["data_offsets"] = dice.choice([entry["data_offsets"], [0, 0]])
        text = json.dumps(changed).encode()
        (model / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + body)
        (model / "config.json").write_text(json.dumps(config | {"quantization_config": said}))
        try:
            planned(fp16, inspect(model), fp16.Options())
        except QconvdError as error:
            count += 1
            assert error.what
    assert 100 < count < 400


def test_a_refusal_names_what_was_wanted_and_not_how_it_is_stored(tmp_path: Path, glass: Path) -> None:
    quantizer, config, label = CASES["awq"]
    write_quantized(tmp_path / "Toy", quantizer, config, tokenizer=glass)
    with pytest.raises(Unsupported, match=r"and 4bit-32g-rtn made from it is worse than from the original") as caught:
        converted(tmp_path / "Toy", tmp_path / "no", "gptq", group_size=32, method="rtn")
    assert label in caught.value.what
