"""Whole checkpoints by the real engine: made, verified, resumed, and read by code that knows only the layout."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from converted import LIMITS, converted
from gptq_linears import hessian, read, weights
from qconvd.api import Device, Hessian, QconvdError, Unit
from qconvd.checkpoints import inspect
from qconvd.engine.run import Cancelled, convert
from qconvd.engine.target import ConvertTarget
from qconvd.plugins import plugins
from qconvd_gptq.encoder import GptqEncoder
from qconvd_gptq.options import GptqOptions
from qconvd_gptq.solve import Grid, Weights, nearest

CONFIG = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "float16"}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers in float16, with one linear that 128 does not divide."""
    folder = tmp_path_factory.mktemp("gptq") / "small"
    folder.mkdir()
    tensors = {"model.embed_tokens.weight": weights(64, 128, 9), "model.norm.weight": weights(1, 128, 8)[0]}
    for i in range(2):
        tensors[f"model.layers.{i}.mlp.up_proj.weight"] = weights(192, 128, i)
        tensors[f"model.layers.{i}.mlp.down_proj.weight"] = weights(128, 192, i + 5)
    save_file({k: v.astype(np.float16) for k, v in tensors.items()}, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "tokenizer.json").write_text("{}")
    return folder


@pytest.mark.parametrize("options", [{}, {"bits": [3], "group_size": [64]}, {"sym": False, "bits": [2]}, {"mse": 2.0}])
def test_it_is_made_and_verified(small: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    made = converted(small, tmp_path, "gptq", method="rtn", **options)
    report = made.verify()
    assert report.rows > 0
    assert 0 < report.worst <= 1
    stored = load_file(made.folder / "model.safetensors")
    source = load_file(small / "model.safetensors")
    chosen = GptqOptions.model_validate({"method": "rtn", **options})
    module, group = "model.layers.1.mlp.up_proj", chosen.group_size[0]
    tensors = [stored[f"{module}.{k}"] for k in ("qweight", "qzeros", "scales", "g_idx")]
    grid = Grid(chosen.bits[0], group, chosen.sym, 1 if chosen.stored_as == "gptq" else 0, chosen.mse)
    w = source[f"{module}.weight"]
    assert np.array_equal(read(tensors, grid.bits, chosen.stored_as), nearest(Weights(w, "F16"), grid).dequantized())
    assert np.array_equal(stored["model.embed_tokens.weight"], source["model.embed_tokens.weight"])
    with safe_open(made.folder / "model.safetensors", "numpy") as opened:
        assert opened.metadata() == {"format": "pt"}
    assert made.manifest.errors["weights"] == sum(v.size for v in source.values())


def test_what_group_sizes_do_not_divide_is_as_it_was(small: Path, tmp_path: Path) -> None:
    made = converted(small, tmp_path, "gptq", method="rtn")
    assert [x["tensor"] for x in made.manifest.left_out] == [f"model.layers.{i}.mlp.down_proj.weight" for i in (0, 1)]
    name = "model.layers.0.mlp.down_proj.weight"
    assert np.array_equal(load_file(made.folder / "model.safetensors")[name], load_file(small / "model.safetensors")[name])


def test_a_damaged_word_is_found(small: Path, tmp_path: Path) -> None:
    made = converted(small, tmp_path, "gptq", method="rtn")
    path = made.folder / "model.safetensors"
    stored = load_file(path)
    stored["model.layers.1.mlp.up_proj.qweight"][3, 5] ^= 0x70
    save_file(dict(stored), tmp_path / "other.safetensors")
    unit = next(u for u in made.plan.units if u.id == "model.layers.1.mlp.up_proj.weight")
    data = [stored[t.name].tobytes() for t in unit.outputs]
    (decoded,) = made.format.decode(unit, (0, 192), data)
    w = load_file(small / "model.safetensors")[unit.id].astype(np.float32)
    (bound,) = made.format.bound(unit, (0, 192), [w], {})
    assert ((np.abs(decoded - w) > bound).sum()) == 1


class Watched(GptqEncoder):
    """Notes what it encoded. With `stop`, it waits at the second layer until the run is told to stop."""

    def __init__(self, stop: bool) -> None:
        self.seen: list[str] = []
        self.stop = stop
        self.reached, self.told = threading.Event(), threading.Event()

    def encode(self, unit: Unit, *rest: Any) -> Any:
        if self.stop and unit.layer == 1:
            self.reached.set()
            self.told.wait(60)
        else:
            self.seen.append(unit.id)
        return super().encode(unit, *rest)

    def cancelled(self) -> bool:
        if self.reached.is_set():
            self.told.set()
        return self.told.is_set()


def test_it_resumes_in_the_same_bytes(small: Path, tmp_path: Path) -> None:
    first = converted(small, tmp_path / "a", "gptq", method="rtn")

    def run(encoder: Watched) -> Any:
        target = ConvertTarget("t1", first.plan, encoder, tmp_path / "b", {"artifact": "small", "format": "gptq"})
        return convert(
            first.model, [target], LIMITS, operations={}, on_event=lambda _: None, cancelled=encoder.cancelled
        )["t1"]  # fmt: skip

    before, after = Watched(stop=True), Watched(stop=False)
    with pytest.raises(Cancelled):
        run(before)
    assert run(after).files == first.manifest.files
    assert "model.layers.0.mlp.up_proj.weight" in before.seen
    assert not set(before.seen) & set(after.seen)
    assert "model.norm.weight" in after.seen


@pytest.mark.parametrize("order", ["none", "static", "desc_act"])
def test_the_encoder_solves_with_the_statistics_that_it_is_given(small: Path, order: str) -> None:
    options = GptqOptions.model_validate({"group_size": 32, "act_order": order})
    form = plugins().formats["gptq"]
    plan = form.plan(inspect(small), options)
    unit = next(u for u in plan.units if u.id == "model.layers.0.mlp.up_proj.weight")
    w = load_file(small / "model.safetensors")[unit.id]
    h = hessian(128)
    encoded = form.encoder(plan, Device()).encode(unit, (0, 192), [w], {unit.statistics[0].key: h})
    (decoded,) = form.decode(unit, (0, 192), [np.ascontiguousarray(d).tobytes() for d in encoded.data])
    (bound,) = form.bound(unit, (0, 192), [w.astype(np.float32)], {})
    assert (np.abs(decoded - w) <= bound).all()
    assert encoded.figures["output_error"] > 0
    assert encoded.report.weights == w.size
    assert encoded.report.square_error == pytest.approx(((decoded - w.astype(np.float64)) ** 2).sum(), rel=1e-3)


def test_an_expert_that_no_token_reached_is_rounded_to_nearest(small: Path) -> None:
    form = plugins().formats["gptq"]
    solved, rounded = (form.plan(inspect(small), GptqOptions.model_validate({"method": m})) for m in ("gptq", "rtn"))
    unit, other = (next(u for u in p.units if u.id == "model.layers.0.mlp.up_proj.weight") for p in (solved, rounded))
    w = load_file(small / "model.safetensors")[unit.id]
    unreached = {unit.statistics[0].key: Hessian(np.zeros((128, 128), np.float32), 0)}
    encoder = form.encoder(solved, Device())
    found, expected = (encoder.encode(u, (0, 192), [w], stats) for u, stats in ((unit, unreached), (other, {})))
    assert all(np.array_equal(a, b) for a, b in zip(found.data, expected.data, strict=True))
    assert found.fallback == "rounded to nearest: hardly any token of the calibration text reached it"
    assert not found.figures


def test_weights_that_are_not_finite_are_refused_where_that_is_wanted(small: Path) -> None:
    form = plugins().formats["gptq"]
    plan = form.plan(inspect(small), GptqOptions.model_validate({"method": "rtn", "non_finite": "refuse"}))
    unit = next(u for u in plan.units if u.id == "model.layers.0.mlp.up_proj.weight")
    w = load_file(small / "model.safetensors")[unit.id]
    w[3, 3] = np.nan
    with pytest.raises(QconvdError) as caught:
        form.encoder(plan, Device()).encode(unit, (0, 192), [w], {})
    assert str(caught.value).startswith("model.layers.0.mlp.up_proj.qweight: has 1 NaN and 0 infinite weights")


def test_a_real_model_without_calibration(glass: Path, tmp_path: Path) -> None:
    made = converted(glass, tmp_path, "gptq", method="rtn", group_size=[32])
    assert made.verify().worst <= 1
    kept = {x["tensor"].split(".")[-2] for x in made.manifest.left_out}
    assert kept == {"gate_proj", "up_proj", "down_proj"}
