"""The plan and the encoder of fp16: options, names, side files, refusals."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

import gguf_files
from converted import converted
from qconvd.api import Device, FileInfo, ModelInfo, QconvdError, TensorInfo, Unit, Unsupported
from qconvd.checkpoints import inspect
from qconvd.dtypes import ELEMENT_BYTES
from qconvd.engine.plan import from_json, to_json
from qconvd_fp16.format import CastOptions, PlainCast

FORMAT = PlainCast()


def model(
    tensors: Mapping[str, tuple[str, tuple[int, ...]]], config: Mapping[str, Any] | None = None, side: tuple[str, ...] = ()
) -> ModelInfo:
    """A model that exists only as headers."""
    placed, offset = {}, 100
    for name, (dtype, shape) in tensors.items():
        nbytes = int(np.prod(shape)) * ELEMENT_BYTES.get(dtype, 1)
        placed[name] = TensorInfo(name, dtype, shape, "model.safetensors", offset, nbytes)
        offset += nbytes
    files = [FileInfo("model.safetensors", offset, "weights"), *(FileInfo(s, 7, "side") for s in side)]
    given = {"architectures": ["LlamaForCausalLM"], "torch_dtype": "bfloat16"} if config is None else config
    return ModelInfo(Path("/nowhere/m"), "m", "safetensors", placed, files, given)


SMALL = {"lm_head.weight": ("BF16", (4, 8)), "model.layers.10.a": ("F32", (8,)), "model.layers.2.b": ("BF16", (2, 8)),
         "model.layers.2.ids": ("I64", (3,)), "model.embed_tokens.weight": ("BF16", (4, 8))}  # fmt: skip


def config_of(config: Mapping[str, Any], **options: Any) -> dict[str, Any]:
    plan = FORMAT.plan(model(SMALL, config), CastOptions(**options))
    side = next(s for s in plan.side_files if s.path == "config.json")
    assert side.text is not None
    assert side.nbytes == len(side.text.encode())
    changed: dict[str, Any] = json.loads(side.text)
    return changed


@pytest.mark.parametrize(("dtype", "stored"), [("fp16", "F16"), ("bf16", "BF16"), ("f32", "F32")])
def test_floats_are_cast_and_the_rest_is_copied(dtype: Any, stored: str) -> None:
    plan = FORMAT.plan(model(SMALL), CastOptions(dtype=dtype))
    assert {t.name: t.dtype for t in plan.tensors} == {n: stored if d != "I64" else "I64" for n, (d, _) in SMALL.items()}
    assert {t.name: t.shape for t in plan.tensors} == {n: s for n, (_, s) in SMALL.items()}
    assert [(x.tensor, x.became, x.reason) for x in plan.left_out] == [("model.layers.2.ids", "I64", "not a float")]
    assert plan.name.variant == dtype
    assert plan.name == FORMAT.name_parts(CastOptions(dtype=dtype))
    assert from_json(to_json(plan)) == plan


def test_units_come_in_the_order_of_the_layers() -> None:
    plan = FORMAT.plan(model(SMALL), CastOptions())
    assert [(u.id, u.layer) for u in plan.units] == [
        ("model.embed_tokens.weight", None), ("model.layers.2.b", 2), ("model.layers.2.ids", 2), ("model.layers.10.a", 10),
        ("lm_head.weight", None),
    ]  # fmt: skip


def test_config_says_the_type_under_both_keys_and_keeps_everything_else() -> None:
    config = {"b": 1, "torch_dtype": "bfloat16", "a": {"torch_dtype": "kept"}, "rms_norm_eps": 1e-05, "name": "Größe"}
    changed = config_of(config)
    assert changed == {**config, "torch_dtype": "float16", "dtype": "float16"}
    assert list(changed) == ["b", "torch_dtype", "a", "rms_norm_eps", "name", "dtype"]
    assert config_of({"dtype": "float32"}, dtype="bf16") == {"dtype": "bfloat16", "torch_dtype": "bfloat16"}


def test_parts_of_a_multimodal_model_follow() -> None:
    parts = {"text_config": {"dtype": "bfloat16", "n": 1}, "vision_config": {"n": 2}, "audio_config": {"torch_dtype": None}}
    changed = config_of(parts)
    assert changed["text_config"] == {"dtype": "float16", "n": 1}
    assert changed["vision_config"] == {"n": 2}
    assert changed["audio_config"] == {"torch_dtype": None}


def test_side_files_are_carried_but_not_the_models_own_index() -> None:
    side = ("config.json", "tokenizer.json", "model.safetensors.index.json", "sub/README.md")
    plan = FORMAT.plan(model(SMALL, side=side), CastOptions())
    assert [(s.path, s.source) for s in plan.side_files] == [
        ("config.json", None), ("tokenizer.json", "tokenizer.json"), ("sub/README.md", "sub/README.md"),
    ]  # fmt: skip


def test_a_model_without_config_is_converted_with_a_warning() -> None:
    plan = FORMAT.plan(model(SMALL, config={}), CastOptions())
    assert plan.side_files == ()
    assert [r.name for r in plan.loads_with] == ["safetensors"]
    assert plan.notes == (
        "the model has no config.json: the tensors are converted, but transformers and vLLM will not load them",
    )


def test_kept_tensors_keep_their_type() -> None:
    plan = FORMAT.plan(model(SMALL), CastOptions(keep=("*.layers.10.*", "nothing*")))
    assert next(t.dtype for t in plan.tensors if t.name == "model.layers.10.a") == "F32"
    assert ("model.layers.10.a", "F32", "kept by name") in [(x.tensor, x.became, x.reason) for x in plan.left_out]
    assert plan.notes == ("keep: no tensor is called nothing*",)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (
            {"w": ("F8_E4M3", (2, 2))},
            "w: has 8-bit floats (F8_E4M3), whose scales fp16 does not read\n  convert from the model's 16-bit",
        ),
        ({"w": ("Q4_0", (1, 32))}, "w: is packed as Q4_0; fp16 is made from unquantized weights"),
        ({}, "/nowhere/m: the model has no tensors"),
    ],
)
def test_refusals_name_the_tensor(tensors: Any, message: str) -> None:
    with pytest.raises(Unsupported) as caught:
        FORMAT.plan(model(tensors), CastOptions())
    assert str(caught.value).startswith(message)


def test_a_gguf_becomes_the_checkpoint_that_it_was_made_from(glass: Path, tmp_path: Path) -> None:
    """More on this: tests/plugins/gguf/test_backwards.py."""
    source = gguf_files.converted(glass, ["f16"], tmp_path)["f16"]
    plan = PlainCast().plan(inspect(source), CastOptions())
    wanted = {name: t.shape for name, t in inspect(glass).tensors.items()}
    assert {t.name: t.shape for t in plan.tensors} == wanted
    assert {f.path for f in plan.side_files} == {"config.json", "tokenizer.json", "tokenizer.model", "tokenizer_config.json"}


def test_there_is_no_gpu_encoder() -> None:
    with pytest.raises(Unsupported, match="fp16 has no kernels for a GPU"):
        FORMAT.encoder(FORMAT.plan(model(SMALL), CastOptions()), Device("cuda", "GPU-1"))


def test_options() -> None:
    assert CastOptions(max_shard_size="2GiB").max_shard_size == 2 << 30  # type: ignore[arg-type]
    assert CastOptions().max_shard_size == 5_000_000_000
    assert FORMAT.from_text("bf16") == {"dtype": "bf16"}
    with pytest.raises(ValueError, match="fp16 knows no type 'int8', only fp16, bf16, f32"):
        FORMAT.from_text("int8")
    for wrong in ({"dtype": "fp8"}, {"max_shard_size": "much"}, {"max_shard_size": 0}, {"typo": 1}, {"on_overflow": "ignore"}):
        with pytest.raises(ValidationError):
            CastOptions(**wrong)  # type: ignore[arg-type]
    assert {name: CastOptions(**more).dtype for name, more in FORMAT.aliases.items()} == {"bf16": "bf16", "f32": "f32"}


def encode(values: np.ndarray[Any, Any], **options: Any) -> Any:
    plan = FORMAT.plan(model({"model.layers.0.w": ("F32", values.shape)}), CastOptions(**options))
    rows = values.shape[0]
    return FORMAT.encoder(plan, Device()).encode(plan.units[0], (0, rows), [values], {})


def test_overflow_is_reported_clamped_or_refused() -> None:
    values = np.array([[1, 70000], [-1e9, 2]], np.float32)
    assert encode(values).report.overflows == 2
    assert encode(values).data[0].tolist() == [1, np.inf, -np.inf, 2]
    assert encode(values, on_overflow="clamp").data[0].tolist() == [1, 65504, -65504, 2]
    assert encode(values, on_overflow="refuse", dtype="bf16").report.overflows == 0
    with pytest.raises(QconvdError) as caught:
        encode(values, on_overflow="refuse")
    assert str(caught.value) == (
        "model.layers.0.w: 2 weights in rows 0 to 1 are too large for F16, and `on_overflow: refuse` is set\n"
        "  convert to bf16 instead, or set `on_overflow: clamp` or `report`"
    )


def test_nan_is_reported_or_refused() -> None:
    values = np.array([[1, np.nan, np.inf]], np.float32)
    assert encode(values).report[-2:] == (1, 1)
    with pytest.raises(QconvdError) as caught:
        encode(values, non_finite="refuse")
    assert str(caught.value) == (
        "model.layers.0.w: has 1 NaN and 1 infinite weights, and `non_finite: refuse` is set\n"
        "  mend the model, or convert it with `non_finite: report`"
    )


@pytest.mark.parametrize("target", ["fp16", "bf16", "f32"])
@pytest.mark.parametrize("source", ["F32", "F16", "BF16"])
def test_decode_is_within_the_bound_of_what_was_encoded_and_no_further(source: str, target: Any) -> None:
    from qconvd_fp16.casts import cast

    rng = np.random.default_rng(3)
    wide = (rng.standard_normal((64, 96)) * np.exp(rng.uniform(-30, 12, (64, 96)))).astype(np.float32)
    x = cast(wide, "F32", source)[0].reshape(64, 96)
    plan = FORMAT.plan(model({"w": (source, x.shape)}), CastOptions(dtype=target))
    unit: Unit = plan.units[0]
    data = FORMAT.encoder(plan, Device()).encode(unit, (0, 64), [x], {}).data
    (decoded,) = FORMAT.decode(unit, (0, 64), data)
    wanted = cast(x, source, "F32")[0].reshape(64, 96)
    (bound,) = FORMAT.bound(unit, (0, len(wanted)), [wanted], {})
    assert decoded.shape == bound.shape == wanted.shape
    with np.errstate(invalid="ignore"):
        error = np.abs(decoded.astype(np.float64) - wanted)
    assert ((error <= bound) | (decoded == wanted)).all()
    lossless = source == {"fp16": "F16", "bf16": "BF16", "f32": "F32"}[target] or target == "f32"
    assert bound.any() != lossless
    if not lossless:
        finite = np.isfinite(bound) & (bound > 0) & np.isfinite(error)
        assert (error[finite] / bound[finite]).max() > 0.9


def test_integers_go_through_unchanged() -> None:
    plan = FORMAT.plan(model(SMALL), CastOptions())
    unit = next(u for u in plan.units if u.id.endswith("ids"))
    ids = np.array([[1, -(2**60), 3]])
    encoded = FORMAT.encoder(plan, Device()).encode(unit, (0, 1), [ids], {})
    assert FORMAT.decode(unit, (0, 1), encoded.data)[0].tolist() == ids.tolist()
    assert not FORMAT.bound(unit, (0, len(ids)), [ids], {})[0].any()


def test_plan_reads_no_weights_and_sizes_come_true(glass: Path, tmp_path: Path) -> None:
    plan = FORMAT.plan(inspect(glass), CastOptions(max_shard_size="500KB"))
    made = converted(glass, tmp_path, max_shard_size="500KB")
    assert made.plan == plan
    assert {f.path: f.bytes for f in made.manifest.files} == {f.path: f.nbytes for f in (*plan.files, *plan.side_files)}


def test_tied_weights_stay_stored_once(glass: Path) -> None:
    plan = FORMAT.plan(inspect(glass), CastOptions())
    assert not [t.name for t in plan.tensors if t.name.startswith("lm_head")]
