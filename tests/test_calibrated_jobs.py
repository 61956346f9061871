"""Calibrated targets end to end: real text through a real model, GPTQ and an importance matrix of one calibration."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader

import calibration_kit as kit
import crash
import gptq_unpacked
import plain_model
from calibrated_targets import go, targets_of
from command_line import Qconvd, called_in
from qconvd import checkpoints
from qconvd.api import ModelInfo
from qconvd.calibration.samples import tokens
from qconvd.engine.manifest import manifests_in, read_manifest
from qconvd.engine.target import with_kept
from qconvd.executors.base import environment
from qconvd.statistics import open_imatrix
from qconvd.statistics.imatrix_write import MeanSquares, write_imatrix
from qconvd.tasks import LimitsSpec, write_spec
from worker_kit import Shop

CALIBRATION = "calibration: {samples: 4, length: 64}"
GPTQ = f"gptq: {{bits: 4, group_size: 32, {CALIBRATION}}}"
AUTO = f"gguf: {{types: [iq4_nl], imatrix: auto, {CALIBRATION}}}"
MATRIX = f"imatrix: {{{CALIBRATION}}}"


def files(work: Path) -> dict[str, bytes]:
    return {str(p.relative_to(work)): p.read_bytes() for p in sorted((work / "files").rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def model(glass: Path) -> ModelInfo:
    return checkpoints.inspect(glass)


def test_a_gathered_matrix_makes_the_file_that_it_makes_when_it_is_named(model: ModelInfo, tmp_path: Path) -> None:
    (auto,) = targets_of(model, AUTO, tmp_path)
    go(model, [auto])
    entries = {}
    for kept in with_kept(auto.plan, auto.work).statistics:
        file = open_imatrix(Path(kept.path))
        origin = {"dataset": file.datasets[0], "samples": file.chunks, "length": 64}
        entries |= {name: MeanSquares(file.mean_square(name), [4 * 64]) for name in file.entries}
        file.close()
    matrix = tmp_path / "glass_en-imatrix.gguf"
    write_imatrix(matrix, entries, **origin)
    (named,) = targets_of(model, f"gguf: {{types: [iq4_nl], imatrix: {matrix}}}", tmp_path / "named")
    go(model, [named])
    (name,) = (f.path for f in auto.plan.files)
    assert (auto.work / "files" / name).read_bytes() == (named.work / "files" / name).read_bytes()


def test_a_matrix_that_is_kept_makes_the_weights_that_auto_makes(model: ModelInfo, tmp_path: Path) -> None:
    """And both come of one calibration."""
    auto, kept = targets_of(model, f"{AUTO}, {MATRIX}", tmp_path)
    assert auto.calibration == kept.calibration
    go(model, [auto, kept])
    matrix = kept.work / "files" / kept.plan.files[0].path
    (named,) = targets_of(model, f"gguf: {{types: [iq4_nl], imatrix: {matrix}}}", tmp_path / "named")
    go(model, [named])
    made = [GGUFReader(t.work / "files" / t.plan.files[0].path) for t in (auto, named)]
    first, second = ({t.name: (t.tensor_type, t.data.tobytes()) for t in reader.tensors} for reader in made)
    assert first == second
    assert made[1].fields["quantize.imatrix.dataset"].contents() == "default (qconvd: 4 x 64 tokens, seed 0)"
    # The matrix has what is no multiple of a block, too; that it comes alone changes nothing.
    assert made[1].fields["quantize.imatrix.entries_count"].contents() == len(kept.plan.units)
    (alone,) = targets_of(model, MATRIX, tmp_path / "alone")
    go(model, [alone])
    assert files(alone.work) == files(kept.work)


@pytest.mark.parametrize("activations", ["original", "quantized"])
def test_a_resumed_run_ends_in_the_same_bytes(model: ModelInfo, tmp_path: Path, activations: str) -> None:
    text = GPTQ.replace("length: 64", f"length: 64, activations: {activations}")
    (one,) = targets_of(model, text, tmp_path)
    manifest = go(model, [one])[one.id]
    expected = files(one.work)
    assert manifest.calibration["activations"] == activations
    (one.work / "files" / "qconvd.json").unlink()
    journal = one.work / "journal.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    # As if it had been killed in the middle of the third layer.
    last = next(i for i, line in enumerate(lines[1:], 1) if b'"u":"model.layers.2.self_attn.v_proj' in line)
    journal.write_bytes(b"".join(lines[:last]))
    if activations == "quantized":
        shutil.rmtree(one.calibration)
    (again,) = targets_of(model, text, tmp_path)
    go(model, [again])
    assert files(one.work) == expected


def test_what_a_layer_is_fed_makes_a_difference(model: ModelInfo, tmp_path: Path) -> None:
    original = targets_of(model, GPTQ, tmp_path)
    quantized = targets_of(model, GPTQ.replace("length: 64", "length: 64, activations: quantized"), tmp_path / "q")
    go(model, [*original, *(replace(t, id="q") for t in quantized)])
    first, second = (read_manifest(t.work / "files" / "qconvd.json").calibration["linears"] for t in (*original, *quantized))
    assert first["model.layers.0.self_attn.q_proj.weight"] == second["model.layers.0.self_attn.q_proj.weight"]
    assert first["model.layers.3.self_attn.o_proj.weight"] != second["model.layers.3.self_attn.o_proj.weight"]


def test_quantized_activations_are_those_of_a_model_whose_first_layer_is_quantized(tmp_path: Path) -> None:
    """With GPT-2, whose weights lie turned."""
    model = kit.gpt2(tmp_path / "gpt2")
    mine = f"{{text: {kit.small_text(tmp_path)}, samples: 8, length: 32"
    text = f"gptq: {{bits: 2, group_size: 32, calibration: {mine}, activations: quantized}}}}"
    (target,) = targets_of(model, text, tmp_path / "q")
    go(model, [target])
    made = dict(gptq_unpacked.linears(target.work / "files"))
    first = {name: w.T for name, w in made.items() if ".h.0." in name}
    assert len(first) == 4
    half = kit.rewritten(model, tmp_path / "half", first)
    (plain,) = targets_of(half, text.replace("quantized}", "original}"), tmp_path / "o")
    go(half, [plain])
    second = {name: w for name, w in gptq_unpacked.linears(plain.work / "files") if ".h.1." in name}
    assert len(second) == 4
    for name, w in second.items():
        np.testing.assert_array_equal(made[name], w, name)


@pytest.mark.parametrize("name", ["mixtral", "qwen3moe"])
def test_experts_that_the_text_hardly_reached_are_rounded_and_named(tmp_path: Path, name: str) -> None:
    """All others are solved. Which those are says the plain model: what its router sends to each expert."""
    model = kit.family(tmp_path, name)
    text = kit.small_text(tmp_path)
    wanted = f"gptq: {{group_size: 32, calibration: {{text: {text}, samples: 4, length: 16, chat: false}}}}"
    (target,) = targets_of(model, wanted, tmp_path / "out")
    said = go(model, [target])[target.id].calibration
    spec = target.plan.calibration
    assert spec is not None
    _, fed = plain_model.Plain(model.path).run(tokens(model, spec))
    counts = {expert(name): sum(map(len, rows)) for name, rows in fed.items() if expert(name)}
    experts = {u.id for u in target.plan.units if "bits" in u.options and expert(u.id)}
    few = {name for name in experts if counts[expert(name)] < 16}
    assert 0 < len(few) < len(experts)
    assert said["fallbacks"] == dict.fromkeys(few, "rounded to nearest: hardly any token of the calibration text reached it")
    assert experts - few <= said["linears"].keys() and not few & said["linears"].keys()


def expert(name: str) -> tuple[str, ...]:
    """Layer and number, in names of the checkpoint and of the plain model; empty for what is no expert's."""
    found = re.search(r"layers\.(\d+)\..*\bexperts\.(\d+)\.", name)
    return found.groups() if found else ()


def test_a_killed_job_goes_on_and_ends_in_the_same_bytes(tmp_path: Path, glass: Path) -> None:
    """All targets share a calibration; the worker is killed when it journals, and when it keeps a layer's states."""
    shop = Shop(tmp_path, glass, f"{GPTQ}, {AUTO}, {MATRIX}")
    for result in shop.step().targets.values():
        assert result.data["calibration"]["waves"] == 4
        assert "which go through 4 layers once" in result.data["notes"][0]
    shop.claim()

    def run(output: Path, crash_at: int | None) -> tuple[int, dict[str, bytes]]:
        log = tmp_path / "log"
        log.unlink(missing_ok=True)
        shop.output = output
        mine = shop.spec(shop.task).model_copy(update={"limits": LimitsSpec(memory=1 << 30, threads=2)})
        command = [sys.executable, "-P", "-m", "qconvd.worker", str(write_spec(mine))]
        env = {**environment("cpu", "", 2), **crash.environment(crash_at, log)}
        done = subprocess.run(command, capture_output=True, env=env, check=False)
        assert done.returncode in (0, -9), done.stderr.decode()
        return done.returncode, {f"{t.id}/{p}": d for t in mine.targets for p, d in files(t.work).items()}

    code, expected = run(tmp_path / "whole", None)
    assert code == 0
    assert len(list((tmp_path / "whole/.qconvd/work").glob("calibration-*"))) == 1
    log = [line.split()[1:] for line in (tmp_path / "log").read_text().splitlines()]
    states = [i for i, (name, *files) in enumerate(log) if name == "replace" and "hidden-0002" in files[-1]]
    journalled = [i for i, call in enumerate(log) if call == ["write", "journal.jsonl"]]
    for number, point in enumerate((states[0], journalled[len(journalled) // 2])):
        output = tmp_path / f"killed-{number}"
        assert run(output, point)[0] == -9
        assert run(output, None) == (0, expected)


def test_a_job_leaves_nothing_but_its_artifacts(
    tmp_path: Path, glass: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    qconvd: Qconvd = called_in(tmp_path, monkeypatch, capsys)
    said = qconvd("convert", glass, "--to", f"{GPTQ}, {AUTO}, {MATRIX}", "--out", "out")
    assert said.code == 0, said.err
    assert "calibrating layer 4 of 4" in said.err
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["glass_en-4bit-32g", "glass_en-GGUF"]
    ggufs = sorted(p.name for p in (tmp_path / "out" / "glass_en-GGUF").glob("*.gguf"))
    assert ggufs == ["glass_en-IQ4_NL.gguf", "glass_en-imatrix.gguf"]
    manifests = [m for p in (tmp_path / "out").iterdir() for m in manifests_in(p)]
    assert all(m.verification and m.calibration["samples"] == 4 for m in manifests)
    gptq = next(m for m in manifests if m.format == "gptq")
    assert {"torch", "transformers"} == gptq.calibration["versions"].keys()
    assert gptq.calibration["linears"]
    assert qconvd("verify", "out/glass_en-GGUF").code == 0


def test_the_plan_of_a_matrix(
    glass: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    qconvd: Qconvd = called_in(tmp_path, monkeypatch, capsys)
    said = qconvd("plan", glass, "--to", MATRIX)
    assert said.code == 0, said.err
    line = next(line.split() for line in said.out.splitlines() if line.startswith("imatrix  "))
    assert len(line) == 6, "no bits per weight"
    assert "glass_en-GGUF/glass_en-imatrix.gguf" in said.out
    assert "calibrated on 4 x 64 tokens" in said.out
