"""Models that a 16-bit type or a layout does not hold: what is reported, and whose fault it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from converted import converted
from qconvd.errors import QconvdError

UP = "model.layers.0.mlp.up_proj.weight"
NORM = "model.norm.weight"
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 128, "intermediate_size": 256,
    "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 64,
}  # fmt: skip


def model(folder: Path, **changes: NDArray[Any]) -> Path:
    """In float32; `changes` by the last words of names."""
    random = np.random.default_rng(4)
    shapes = {
        "model.embed_tokens.weight": (64, 128), NORM: (128,), UP: (256, 128), "model.layers.0.mlp.gate_proj.weight": (256, 128),
        "model.layers.0.mlp.down_proj.weight": (128, 256),
    }  # fmt: skip
    tensors = {name: random.standard_normal(shape).astype("f4") * np.float32(0.02) for name, shape in shapes.items()}
    for ending, values in changes.items():
        tensors[next(n for n in tensors if n.removesuffix(".weight").endswith(ending))] = values
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({**CONFIG, "torch_dtype": "float32"}))
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def stored(folder: Path, name: str) -> NDArray[Any]:
    with safe_open(folder / "model.safetensors", "np") as file:
        return file.get_tensor(name)


@pytest.mark.parametrize(("format", "options"), [("int8", {}), ("int4", {"container": "bitsandbytes"}), ("fp8", {})])
def test_what_float16_cannot_hold_is_no_infinity_of_the_model(tmp_path: Path, format: str, options: dict[str, Any]) -> None:
    up, norm = np.full((256, 128), 0.01, "f4"), np.ones(128, "f4")
    up[3, 5], up[7, 9], norm[2] = 1e30, np.inf, -1e10
    source = model(tmp_path / "m", up_proj=up, norm=norm)
    made = converted(source, tmp_path / "out", format, **options)
    said = {
        name: {k: v for k, v in counts.items() if k in ("inf", "overflows")} for name, counts in made.manifest.tensors.items()
    }
    assert said[NORM] == {"overflows": 1}
    assert said[UP] == {"overflows": 1, "inf": 1}
    assert np.isneginf(stored(made.folder, NORM)).sum() == 1
    assert made.verify().sha256
    with pytest.raises(QconvdError) as caught:
        converted(source, tmp_path / "strict", format, **options, non_finite="refuse")
    assert "infinite weights (or too large for F16), and `non_finite: refuse` is set" in caught.value.what


@pytest.mark.parametrize(
    ("format", "options"),
    [("int8", {}), ("int8", {"container": "bitsandbytes"}), ("int4", {}), ("int4", {"container": "bitsandbytes"}), ("fp8", {})],
)
def test_a_linear_without_weights_is_left_as_it_is(tmp_path: Path, format: str, options: dict[str, Any]) -> None:
    made = converted(model(tmp_path / "m", up_proj=np.empty((0, 128), "f4")), tmp_path / "out", format, **options)
    assert [(x.tensor, x.reason) for x in made.plan.left_out] == [(UP, "there is nothing in it")]
    assert stored(made.folder, UP).shape == (0, 128)
    assert made.verify().sha256


def test_a_config_that_names_another_type_gets_the_one_that_is_there(tmp_path: Path) -> None:
    source = model(tmp_path / "m")
    tensors = {name: x.astype(np.float16) for name, x in load_file(source / "model.safetensors").items()}
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    for said, wanted in (("bfloat16", "float16"), ("float16", "float16"), (None, None)):
        config = {**CONFIG, **({"torch_dtype": said} if said else {})}
        (source / "config.json").write_text(json.dumps(config))
        made = converted(source, tmp_path / f"out-{said}", "int8")
        assert json.loads((made.folder / "config.json").read_text()).get("torch_dtype") == wanted


def test_a_config_of_a_model_in_several_types_is_left_alone(tmp_path: Path) -> None:
    source = model(tmp_path / "m", up_proj=np.ones((256, 128), np.float16))
    (source / "config.json").write_text(json.dumps({**CONFIG, "torch_dtype": "bfloat16"}))
    made = converted(source, tmp_path / "out", "int8")
    assert json.loads((made.folder / "config.json").read_text())["torch_dtype"] == "bfloat16"


def test_blocks_that_leave_most_out_say_so_first(tmp_path: Path) -> None:
    source = model(tmp_path / "m", up_proj=np.ones((256, 96), "f4"), gate_proj=np.ones((256, 96), "f4"))
    made = converted(source, tmp_path / "out", "fp8", scheme="block")
    assert "blocks leave out 2 of 3 linears (inputs: 96); `fp8` takes them all" in made.plan.notes
