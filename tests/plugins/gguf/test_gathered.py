"""`imatrix: auto`: which weights of the checkpoint feed which tensor of the file, and what a plan says of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from qconvd.api import (
    Affine,
    CalibrationOptions,
    Cast,
    Concat,
    Constant,
    Expr,
    Permute,
    Plan,
    Read,
    Repeat,
    Reshape,
    Slice,
    Stack,
    StatRequest,
    Transpose,
    Unsupported,
)  # fmt: skip
from qconvd.checkpoints import inspect
from qconvd.errors import ConfigError
from qconvd.targets import resolve_list
from qconvd_gguf.format import Gguf
from qconvd_gguf.gathered import linears_of
from qconvd_gguf.mixes import Choice, check_imatrix
from qconvd_gguf.options import GgufOptions
from qconvd_gguf.units import wish_of
from quantized_models import Quantizer, awq, compressed, config_of, gptq, write_quantized

W = Read("w", "BF16", (8, 6))
V = Read("v", "BF16", (4, 6))
FUSED = Read("f", "BF16", (3, 8, 6))


@pytest.mark.parametrize(
    ("expr", "linears"),
    [
        (W, ("w",)),
        (Affine(Cast(W, "F32"), 2.0), ("w",)),
        (Slice(W, 0, 2, 4), ("w",)),
        (Slice(W, 1, 2, 4), ()),
        (Concat((W, V), 0), ("w",)),
        (Concat((W, W), 1), ()),
        (Reshape(Permute(Reshape(W, (2, 2, 2, 6)), (0, 2, 1, 3)), (8, 6)), ("w",)),
        (Permute(W, (1, 0)), ()),
        (Reshape(W, (6, 8)), ()),
        (Stack((W, Read("x", "BF16", (8, 6)))), ("w", "x")),
        (Stack((FUSED, FUSED)), ("f", "f")),
        (FUSED, ("f",)),
        (Slice(FUSED, 1, 0, 4), ("f",)),
        (Transpose(W), ("w",)),
        (Transpose(Slice(W, 0, 0, 4)), ()),
        (Transpose(FUSED), ()),
        (Repeat(W, 0, 2), ()),
        (Read("norm", "F32", (6,)), ()),
        (Constant.of("F32", (2, 2), bytes(16)), ()),
    ],
)
def test_the_weights_behind_a_tensor(expr: Expr, linears: tuple[str, ...]) -> None:
    assert linears_of(expr) == linears


def planned(model: Path, **options: object) -> Plan:
    made = GgufOptions.model_validate({"types": ["iq4_nl"], "imatrix": "auto", **options})
    return Gguf().plan(inspect(model), made.of(made.types[0]))


@pytest.fixture
def text(tmp_path: Path) -> str:
    path = tmp_path / "some text.txt"
    path.write_text("It was the best of times, it was the worst of times. " * 200)
    return str(path)


def test_every_tensor_that_looks_at_importance_asks_for_it(glass: Path, text: str) -> None:
    plan = planned(glass, calibration={"text": text, "samples": 4, "length": 32})
    asking = [u for u in plan.units if u.statistics]
    assert {u.outputs[0].dtype for u in asking} == {"IQ4_NL"}
    assert all(u.statistics == (StatRequest(u.id, "mean_square"),) for u in asking)
    spec = plan.calibration
    assert spec
    assert spec.linears.keys() == {u.id for u in asking}
    assert spec.linears["blk.1.attn_q.weight"] == ("model.layers.1.self_attn.q_proj.weight",)
    assert not any("embed" in t for tensors in spec.linears.values() for t in tensors)
    keys = {key: value for key, _, value in plan.container.metadata}
    assert keys["quantize.imatrix.file"] == "glass_en-imatrix.gguf"
    assert keys["quantize.imatrix.dataset"] == "some text.txt (qconvd: 4 x 32 tokens, seed 0)"
    assert (keys["quantize.imatrix.entries_count"], keys["quantize.imatrix.chunks_count"]) == (len(asking), 4)


@pytest.mark.parametrize(
    ("quantizer", "config"),
    [
        (gptq(4, 32), {"quant_method": "gptq", "bits": 4, "group_size": 32}),
        (awq(32), {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm"}),
        (compressed(4, 32), config_of("pack-quantized", 4, 32)),
    ],
    ids=["gptq", "awq", "compressed"],
)
def test_the_packed_weights_of_a_quantized_model_ask_for_it_too(
    quantizer: Quantizer, config: dict[str, object], glass: Path, text: str, tmp_path: Path
) -> None:
    meant = write_quantized(tmp_path / "m", quantizer, config, tokenizer=glass)
    plan = planned(tmp_path / "m", calibration={"text": text, "samples": 4, "length": 32}, allow_requantize=True)
    assert plan.calibration
    behind = {tensor for tensors in plan.calibration.linears.values() for tensor in tensors}
    assert behind == {name for name in meant if name.endswith("_proj.weight")}
    assert not any("without importance" in note for note in plan.notes)


def test_types_that_need_a_matrix_may_gather_it(glass: Path, text: str) -> None:
    assert planned(glass, types=["iq2_xxs"], calibration={"text": text}).calibration
    options = GgufOptions.model_validate({"types": ["iq2_xxs"], "imatrix": "auto"})
    needing = {"blk.1.ffn_up.weight": Choice("IQ2_XXS")}
    check_imatrix(needing, wish_of(options))
    with pytest.raises(Unsupported, match="imatrix"):
        check_imatrix(needing, wish_of(options.model_copy(update={"imatrix": None})))


def test_a_file_of_types_that_do_not_look_gathers_nothing(glass: Path) -> None:
    assert planned(glass, types=["q8_0"]).calibration is None
    assert GgufOptions.model_validate({"types": ["f16"], "imatrix": "auto"}).of("F16").imatrix is None


def test_long_names_of_texts_are_cut_as_llama_quantize_cuts_them() -> None:
    from qconvd.api import CalibrationSpec

    spec = CalibrationSpec(f"/x/{'ü' * 100}.txt", "", samples=1, length=16)
    assert len(spec.dataset.encode()) <= 127
    assert spec.dataset.endswith("ü (qconvd: 1 x 16 tokens, seed 0)")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("calibration: {samples: 4}", "calibration is what `imatrix: auto` is gathered from; without it there is nothing to"),
        ("imatrix: auto, calibration: {activations: quantized}", "an importance matrix is of the model's own activations"),
        ("imatrix: nowhere.gguf", "nowhere.gguf: is not there"),
        ("imatrix: 7", "7 is not a path"),
    ],
)
def test_mistakes(options: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve_list(f"gguf: {{types: [q4_k_m], {options}}}")


def test_options_that_say_the_same_are_the_same() -> None:
    plain, auto, spelled = (
        resolve_list(f"gguf: {{types: [q4_k_m]{more}}}")[0].spec["options"]
        for more in ("", ", imatrix: auto", f", imatrix: auto, calibration: {{samples: {CalibrationOptions().samples}}}")
    )
    assert "calibration" not in plain
    assert auto == spelled == {**plain, "imatrix": "auto"}
