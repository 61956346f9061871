"""The format `imatrix`: an importance matrix in llama.cpp's own layout, held against llama-imatrix's file and plain models."""

from __future__ import annotations

import re
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader

import calibration_kit as kit
import plain_model
from calibrated_targets import go, targets_of
from qconvd.api import Device, ModelInfo, Plan, QconvdError, StatRequest, Unsupported, Whole
from qconvd.calibration.samples import tokens
from qconvd.checkpoints import inspect
from qconvd.engine.manifest import ManifestFile
from qconvd.engine.target import with_kept
from qconvd.errors import ConfigError
from qconvd.plugins import plugins
from qconvd.quality.verify import verify
from qconvd.targets import resolve_list
from qconvd_gguf.imatrix.format import Imatrix, ImatrixOptions

ROUTED = re.compile(r"layers\.(\d+)\..*\bexperts\.(\d+)\.(in|inner)$")
"""What the plain model calls the inputs of an expert's linears."""


def planned(model: ModelInfo, **calibration: object) -> Plan:
    return Imatrix().plan(model, ImatrixOptions.model_validate({"calibration": calibration}))


def tensors(path: Path) -> dict[str, np.ndarray]:
    return {t.name: t.data for t in GGUFReader(path).tensors}


def test_the_file_is_laid_out_as_llama_imatrix_lays_it_out(glass: Path, golden: Path) -> None:
    plan = planned(inspect(glass), samples=3, length=64)
    theirs = GGUFReader(golden / "glass_en.imatrix.gguf")
    assert [(t.name, t.shape[::-1]) for t in plan.tensors] == [(t.name, tuple(map(int, t.shape))) for t in theirs.tensors]
    keys = {name: field.contents() for name, field in theirs.fields.items() if not name.startswith("GGUF.")}
    keys["imatrix.datasets"] = ["default (qconvd: 3 x 64 tokens, seed 0)"]
    assert [(key, value) for key, _, value in plan.container.metadata] == list(keys.items())


def test_every_tensor_is_made_of_what_is_gathered_alone(glass: Path) -> None:
    plan = planned(inspect(glass))
    assert plan.calibration
    assert plan.calibration.linears["blk.1.ffn_down.weight"] == ("model.layers.1.mlp.down_proj.weight",)
    assert plan.calibration.linears.keys() == {u.id for u in plan.units}
    assert all(u.inputs == () and u.rows == Whole() for u in plan.units)
    assert all(u.statistics == (StatRequest(u.id, "square_sums"),) for u in plan.units)
    assert all(r.gathered == StatRequest(r.linear, "mean_square") for u in plan.units for r in u.statistics)
    assert plan.notes == ()


def test_it_lies_beside_the_ggufs_and_is_named_like_them() -> None:
    (target,) = resolve_list("imatrix")
    assert target.label == "imatrix"
    assert target.options.calibrated
    for profile, stem in (("default", "Owl-7B-imatrix"), ("bartowski", "Owl-7B-imatrix"), ("thebloke", "owl-7b.imatrix")):
        found = target.names("Owl-7B", profile)
        assert (found.folder, found.stem) == ("Owl-7B-GGUF", stem)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("imatrix: manuals.txt", "imatrix has no short form 'manuals.txt'; what it is gathered from is written imatrix: "
         "{calibration: {text: …}}, and a file that is there is named under gguf: {imatrix: FILE}"),
        ("imatrix: {calibration: {activations: quantized}}", "an importance matrix is of the model's own activations; leave"),
        ("imatrix: {calibration: {text: nowhere.txt}}", "nowhere.txt: there is no calibration text here"),
        ("imatrix: {calibrate: {}}", "did you mean calibration"),
    ],
)  # fmt: skip
def test_mistakes(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        resolve_list(text)


def test_models_that_cannot_be_calibrated(glass: Path) -> None:
    model = inspect(glass)
    with pytest.raises(Unsupported, match="calibration runs the model through transformers, which needs a Hugging Face"):
        planned(replace(model, kind="gguf"))
    with pytest.raises(Unsupported, match="calibration needs a causal language model; this is BertModel"):
        planned(replace(model, config={**model.config, "architectures": ["BertModel"]}))
    with pytest.raises(Unsupported, match=r"imatrix is gathered on the CPU only\n  say `device: auto` or `device: cpu`"):
        Imatrix().encoder(planned(model), Device("cuda"))


def made(model: ModelInfo, text: str, output: Path) -> tuple[Path, Any, Any]:
    """The file of a target, the target, and its manifest."""
    (target,) = targets_of(model, text, output)
    manifest = go(model, [target])[target.id]
    return target.work / "files" / target.plan.files[0].path, target, manifest


@pytest.mark.parametrize("name", ["mixtral", "qwen3moe"])
def test_the_sums_of_experts_are_those_of_the_plain_model(tmp_path: Path, name: str) -> None:
    """And an expert that no token reached has none, as in llama-imatrix's files; the manifest counts them."""
    model = kit.family(tmp_path, name)
    wanted = (
        f"imatrix: {{calibration: {{text: {kit.small_text(tmp_path)}, samples: 1, length: 16, chat: false, dtype: float32}}}}"
    )
    path, target, manifest = made(model, wanted, tmp_path / "out")
    _, fed = plain_model.Plain(model.path).run(tokens(model, target.plan.calibration))
    found, compared, unreached = tensors(path), 0, {}
    for key, rows in ((ROUTED.search(key), rows) for key, rows in fed.items()):
        if key is None:
            continue
        layer, expert, x = key[1], int(key[2]), np.concatenate(rows).astype(np.float64)
        for part in ("gate", "up") if key[3] == "in" else ("down",):
            linear = f"blk.{layer}.ffn_{part}_exps.weight"
            np.testing.assert_allclose(found[f"{linear}.in_sum2"][expert], (x**2).sum(axis=0), rtol=1e-4, atol=1e-6)
            assert found[f"{linear}.counts"][expert] == len(x)
            unreached[linear] = unreached.get(linear, 0) + (len(x) == 0)
            compared += 1
    assert compared == sum(t.shape[0] for n, t in found.items() if "_exps" in n and n.endswith(".counts"))
    assert (sum(unreached.values()) > 0) == (name == "mixtral"), "of the others every expert is reached"
    said = {name: f"no token reached {count} of its experts" for name, count in unreached.items() if count}
    assert manifest.calibration.get("fallbacks", {}) == said
    (weighed,) = targets_of(model, f"gguf: {{types: [iq4_nl], pre: gpt-2, imatrix: {path}}}", tmp_path / "again")
    notes = [n for n in weighed.plan.notes if "saw no token" in n]
    count = f"{sum(unreached.values())} experts in {len(said)} tensors saw no token while {path.name} was made"
    assert [n.partition(";")[0] for n in notes] == ([count] if said else [])


def test_matrices_of_latent_attention_have_the_sums_of_what_they_share(tmp_path: Path) -> None:
    """llama.cpp wants values for every head's matrix, though the checkpoint has one linear for all."""
    model = kit.family(tmp_path, "deepseek2-plain")
    wanted = f"imatrix: {{calibration: {{text: {kit.small_text(tmp_path)}, samples: 2, length: 16, chat: false}}}}"
    path, target, _ = made(model, wanted, tmp_path / "out")
    heads, latent = model.config["num_attention_heads"], model.config["kv_lora_rank"]
    sums = tensors(path)["blk.0.attn_v_b.weight.in_sum2"].reshape(heads, latent)
    assert heads > 1 and (sums == sums[0]).all() and (sums > 0).all()
    assert "blk.0.attn_k_b.weight.in_sum2" not in tensors(path)
    (note,) = [n for n in target.plan.notes if n.startswith("nothing can be gathered for")]
    assert "blk.0.attn_k_b.weight" in note
    auto, named = (
        targets_of(model, f"gguf: {{types: [iq4_nl], pre: gpt-2, {options}}}", tmp_path / str(i))[0]
        for i, options in enumerate((wanted.removesuffix("}").replace("imatrix: {", "imatrix: auto, "), f"imatrix: {path}"))
    )
    go(model, [auto])
    go(model, [named])
    first, second = (tensors(t.work / "files" / t.plan.files[0].path) for t in (auto, named))
    assert {n: d.tobytes() for n, d in first.items()} == {n: d.tobytes() for n, d in second.items()}


@pytest.fixture(scope="module")
def glass_matrix(glass: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Any]:
    return made(inspect(glass), "imatrix: {calibration: {samples: 2, length: 32}}", tmp_path_factory.mktemp("matrix"))


def test_what_is_verified_is_what_was_gathered(glass: Path, glass_matrix: tuple[Path, Any, Any], tmp_path: Path) -> None:
    path, target, manifest = glass_matrix
    (tmp_path / path.name).write_bytes(path.read_bytes())
    checked = {"plan": with_kept(target.plan, target.work), "model": inspect(glass), "formats": plugins().formats}
    report = verify(tmp_path, manifest, **checked)
    assert (report.rows, report.max_error, report.not_checked) == (len(target.plan.units), 0.0, ())
    for name, column in (("blk.2.attn_q.weight.in_sum2", 3), ("blk.2.attn_q.weight.counts", 0)):
        placed = next(p for p in target.plan.files[0].tensors if p.tensor == name)
        data = bytearray(path.read_bytes())
        at = placed.offset + 4 * column
        data[at : at + 4] = np.float32(77).tobytes()
        (tmp_path / path.name).write_bytes(data)
        files = (ManifestFile(path.name, len(data), sha256(data).hexdigest()),)
        wrong = column if name.endswith("sum2") else 128
        said = rf"row 0, column {wrong} holds 77, calibration gathered .*: imatrix may differ by 0 there"
        with pytest.raises(QconvdError, match=said):
            verify(tmp_path, replace(manifest, files=files), **checked)


def test_heads_that_differ_are_no_right_file() -> None:
    plan_unit = replace(planned_unit(), options={"matrices": 2})
    sums, counts = np.array([1, 2, 1, 3], "<f4"), np.array([5], "<f4")
    (found,) = Imatrix().decode(plan_unit, (0, 1), [sums.tobytes(), counts.tobytes()])
    assert found.tolist() == [[1, 2, 1, 3, 5]], "of another shape than what was gathered"
    (found,) = Imatrix().decode(plan_unit, (0, 1), [np.array([1, 2, 1, 2], "<f4").tobytes(), counts.tobytes()])
    assert found.tolist() == [[1, 2, 5]]


def planned_unit() -> Any:
    from qconvd.api import Unit, imatrix_tensors

    return Unit("x", 0, (), imatrix_tensors("x", 1, 4), Whole(), (StatRequest("x", "square_sums"),))
