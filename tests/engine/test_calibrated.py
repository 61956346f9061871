"""Units that wait for statistics of activations: layer by layer, shared, resumed, and failing alone."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import crash
from numpy_calibration import NumpyCalibration
from qconvd.api import (
    CalibrationSpec,
    Encoded,
    ModelInfo,
    OutputTensor,
    Plan,
    QconvdError,
    Read,
    StatRequest,
    Unit,
    UnitReport,
    Whole,
)
from qconvd.calibration import run as calibration_run
from qconvd.calibration_folders import folder_name
from qconvd.engine import graph as graph_module
from qconvd.engine.gathering import STATES
from qconvd.engine.manifest import Manifest
from qconvd.engine.plan import from_json, to_json
from qconvd.engine.run import Cancelled, ConvertTarget, Limits, convert
from qconvd.engine.target import with_kept
from qconvd.errors import OutOfSpace, TakenAway
from qconvd.statistics import open_imatrix
from tiny import copies, layer_of, llama, plan, raw_model, target, tree, unit

SPEC = CalibrationSpec("/home/somebody/text.txt", "0" * 64, samples=8, length=16)
LIMITS = Limits(4 << 20, 2)
LAYERS = 3


@dataclass
class Weighing:
    """Each weight less 1/8 of itself times how much its column counts: needs the statistics, and is exact to decode."""

    calls: list[tuple[str, tuple[int, int]]] = field(default_factory=list)
    fail_on: str = ""

    def encode(self, unit: Unit, rows: tuple[int, int], x: Sequence[Any], stats: Mapping[str, Any]) -> Encoded:
        if not unit.statistics:
            return Encoded([x[0]], UnitReport(weights=x[0].size))
        self.calls.append((unit.id, rows))
        if not unit.inputs:
            return Encoded([stats[unit.statistics[0].key]])
        if unit.id == self.fail_on:
            raise ValueError(f"cannot encode {unit.id}")
        assert stats.keys() == {r.key for r in unit.statistics}
        (found,) = stats.values()
        counts = found if unit.statistics[0].kind == "mean_square" else np.diagonal(found.array)
        weights = (x[0].astype("<u4") << 16).view("<f4")
        made = (weights * (1 - counts / counts.max() / 8 if counts.any() else 1)).astype("<f4")
        error = float(np.sum((made - weights) ** 2 * counts))
        fallback = "" if unit.statistics[0].kind == "mean_square" or found.tokens else "no token reached it"
        return Encoded([made], UnitReport(made.size), figures={"error": error}, fallback=fallback)


def decode(unit: Unit, rows: tuple[int, int], data: Sequence[Any]) -> Sequence[Any]:
    return [np.frombuffer(data[0], "<f4").reshape(rows[1] - rows[0], -1)]


@pytest.fixture(autouse=True)
def by_hand(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(calibration_run, "Calibration", NumpyCalibration)
    monkeypatch.setattr(graph_module, "CHUNK_BYTES", 4096)
    yield
    NumpyCalibration.made.clear()


@pytest.fixture
def model(tmp_path: Path) -> ModelInfo:
    return raw_model(tmp_path / "m", {"one.bin": llama(LAYERS)})


def calibrated(model: ModelInfo, kind: Any = "hessian", spec: CalibrationSpec = SPEC, rows: Any = None) -> Plan:
    """Every linear of a layer weighed, all else as it is."""
    units = []
    for t in model.tensors.values():
        if "_proj" in t.name and kind == "square_sums":
            sums = OutputTensor(t.name, "F32", (1, t.columns + 1), 4 * (t.columns + 1))
            units.append(Unit(t.name, layer_of(t.name), (), (sums,), Whole(), (StatRequest(t.name, kind),)))
        elif "_proj" in t.name:
            more: dict[str, Any] = {"rows": Whole()} if kind == "hessian" else {}
            asks = (StatRequest(t.name, kind),)
            units.append(unit(t.name, Read.of(t), dtype="F32", layer=layer_of(t.name), statistics=asks, **more))
        else:
            units.append(unit(t.name, Read.of(t), dtype=t.dtype, layer=layer_of(t.name)))
    return from_json(to_json(replace(plan(units), calibration=spec)))


def wanted(name: str, plan: Plan, output: Path, encoder: Any = None) -> ConvertTarget:
    made = target(name, plan, output, encoder or Weighing())
    assert plan.calibration
    folder = made.work.parent / folder_name(plan.calibration, "identity", target=name)
    return replace(made, calibration=folder, decode=decode)


def go(model: ModelInfo, *targets: ConvertTarget, limits: Limits = LIMITS, cancelled: Any = None, events: Any = None) -> Any:
    return convert(
        model, targets, limits, operations={}, on_event=(lambda e: events.append(dict(e))) if events is not None else print,
        cancelled=cancelled or (lambda: False),
    )  # fmt: skip


def artifacts(output: Path) -> dict[str, bytes]:
    return {p: d for p, d in tree(output).items() if "/files/" in p}


def test_units_are_encoded_with_their_layers_statistics(model: ModelInfo, tmp_path: Path) -> None:
    encoder, events = Weighing(), []
    manifest = go(model, wanted("a", calibrated(model), tmp_path, encoder), events=events)["a"]
    assert isinstance(manifest, Manifest)
    (made,) = NumpyCalibration.made
    assert made.calls == [("waves", 0), ("finish", 0), ("waves", 1), ("finish", 1), ("waves", 2), ("close", -1)]
    order = [layer_of(name) for name, _ in encoder.calls]
    assert order == sorted(order)
    assert len(order) == 3 * LAYERS
    # What stands in the file is what the statistics of that layer make of it.
    states = np.random.default_rng(0).standard_normal((8, 64)).astype(np.float32)
    counts = np.diagonal(states.T @ states)
    name = "model.layers.0.self_attn.q_proj.weight"
    weights = made._read(model.tensors[name])
    expected = (weights * (1 - counts / counts.max() / 8)).astype("<f4")
    assert expected.tobytes() in (tmp_path / ".qconvd/work/a/files/model.tiny").read_bytes()
    said = [e["doing"] for e in events if e["event"] == "progress" and "doing" in e]
    assert list(dict.fromkeys(said)) == [f"calibrating layer {i} of 3, wave 2 of 2, 50 %" for i in (1, 2, 3)]


def test_the_manifest_says_what_was_gathered_from_what(model: ModelInfo, tmp_path: Path) -> None:
    said = go(model, wanted("a", calibrated(model), tmp_path))["a"].calibration
    linears = said.pop("linears")
    assert said == {
        "text": "text.txt", "sha256": "0" * 64, "samples": 8, "length": 16, "seed": 0, "chat": "auto",
        "activations": "original", "device": "cpu", "threads": 2, "batch": [1, 16], "versions": {"numpy": "any"},
    }  # fmt: skip
    assert len(linears) == 3 * LAYERS
    assert all(figures["error"] > 0 for figures in linears.values())
    assert b"somebody" not in (tmp_path / ".qconvd/work/a/files/qconvd.json").read_bytes()


def test_targets_share_a_calibration(model: ModelInfo, tmp_path: Path) -> None:
    """Hessians, mean squares under other names, and a plain copy, in one job: one stream, and the same as each alone."""
    other = {"up": ("model.layers.1.mlp.up_proj.weight",)}
    means = calibrated(model, "mean_square", replace(SPEC, linears=other, text="/elsewhere/text.txt"))
    up = next(u for u in means.units if u.id == other["up"][0])
    named = replace(up, statistics=(StatRequest("up", "mean_square"),))
    means = replace(means, units=tuple(named if u is up else u for u in means.units))
    targets = [wanted("a", calibrated(model), tmp_path), wanted("b", means, tmp_path)]
    plain = target("c", copies(model), tmp_path)
    assert all(isinstance(m, Manifest) for m in go(model, *targets, plain).values())
    assert len(NumpyCalibration.made) == 1
    for i, one in enumerate((calibrated(model), means)):
        alone = wanted("ab"[i], one, tmp_path / "alone")
        go(model, alone)
        assert artifacts(alone.work) == artifacts(targets[i].work)
    assert (targets[0].calibration / STATES).is_dir()


def test_mean_squares_stay_for_whoever_verifies(model: ModelInfo, tmp_path: Path) -> None:
    one = wanted("a", calibrated(model, "mean_square"), tmp_path)
    go(model, one)
    files = with_kept(one.plan, one.work).statistics
    assert len(files) == LAYERS
    file = open_imatrix(Path(files[1].path))
    assert (file.datasets, file.chunks) == (("text.txt (qconvd: 8 x 16 tokens, seed 0)",), 8)
    assert set(file.entries) == {n for n in model.tensors if ".1." in n and "_proj" in n}
    file.close()


def test_units_of_statistics_alone_are_what_mean_squares_are_made_of(model: ModelInfo, tmp_path: Path) -> None:
    """Both kinds in one job: gathered once, kept once, and the sums over their counts are the means to the last bit."""
    encoder = Weighing()
    sums = wanted("a", calibrated(model, "square_sums"), tmp_path, encoder)
    means = wanted("b", calibrated(model, "mean_square"), tmp_path)
    made = go(model, sums, means)
    assert all(isinstance(m, Manifest) for m in made.values()), made
    (only,) = NumpyCalibration.made
    assert {r.kind for r in only.requests} == {"mean_square"}
    assert [c for c in only.calls if c[0] == "waves"] == [("waves", i) for i in range(LAYERS)]
    assert all(rows == (0, 1) for _, rows in encoder.calls) and len(encoder.calls) == 3 * LAYERS
    data = (sums.work / "files" / "model.tiny").read_bytes()
    for kept in with_kept(means.plan, means.work).statistics:
        file = open_imatrix(Path(kept.path))
        for name in file.entries:
            (placed,) = (p for p in sums.plan.files[0].tensors if p.tensor == name)
            found = np.frombuffer(data, "<f4", placed.nbytes // 4, placed.offset)
            assert found[-1] == 8
            np.testing.assert_array_equal(found[:-1] / found[-1], file.mean_square(name))
        file.close()
    assert made["a"].errors["weights"] < made["b"].errors["weights"]


@pytest.mark.parametrize(
    ("kind", "stream"),
    [("hessian", "original"), ("hessian", "quantized"), ("mean_square", "original"), ("square_sums", "original")],
)
def test_a_crash_at_any_call_is_mended_by_running_again(model: ModelInfo, tmp_path: Path, kind: str, stream: Any) -> None:
    spec = replace(SPEC, stream=stream)

    def make(output: Path) -> None:
        made = go(model, wanted("a", calibrated(model, kind, spec), output), wanted("b", calibrated(model, kind, spec), output))
        assert all(isinstance(m, Manifest) for m in made.values()), made

    make(tmp_path / "whole")
    expected = artifacts(tmp_path / "whole")
    total = crash.count(lambda: make(tmp_path / "count"))
    for n in crash.some(range(total)):
        output = tmp_path / str(n)
        crash.crashed(lambda output=output: make(output), n)
        make(output)
        assert artifacts(output) == expected, f"after a crash at call {n}"


def test_what_is_journalled_is_not_gathered_again(model: ModelInfo, tmp_path: Path) -> None:
    go(model, wanted("a", calibrated(model), tmp_path))
    journal = tmp_path / ".qconvd/work/a/journal.jsonl"
    (tmp_path / ".qconvd/work/a/files/qconvd.json").unlink()
    lines = journal.read_bytes().splitlines(keepends=True)
    kept = [line for line in lines if line is lines[0] or b"layers.2.mlp" not in line]
    journal.write_bytes(b"".join(kept))
    encoder = Weighing()
    NumpyCalibration.made.clear()
    go(model, wanted("a", calibrated(model), tmp_path, encoder))
    assert NumpyCalibration.made[0].calls == [("waves", 2), ("close", -1)]
    assert {name for name, _ in encoder.calls} == {f"model.layers.2.mlp.{n}_proj.weight" for n in ("up", "down")}


def test_quantized_activations_come_of_the_targets_own_weights(model: ModelInfo, tmp_path: Path) -> None:
    spec = replace(SPEC, stream="quantized")
    targets = [wanted(n, calibrated(model, spec=spec), tmp_path) for n in "ab"]
    assert targets[0].calibration != targets[1].calibration
    go(model, *targets)
    first, second = NumpyCalibration.made
    assert [set(w) for w in first.weights] == [
        {f"model.layers.{i}.{n}_proj.weight" for n in ("self_attn.q", "mlp.up", "mlp.down")} for i in range(LAYERS - 1)
    ]
    assert all(np.array_equal(w, v[k]) for u, v in zip(first.weights, second.weights, strict=True) for k, w in u.items())
    original = wanted("a", calibrated(model), tmp_path / "original")
    go(model, original)
    files = [Path(t.work / "files" / "model.tiny").read_bytes() for t in (targets[0], original)]
    assert files[0] != files[1]


def test_a_damaged_layer_behind_a_quantized_stream_starts_it_anew(model: ModelInfo, tmp_path: Path) -> None:
    spec = replace(SPEC, stream="quantized")
    one = wanted("a", calibrated(model, spec=spec), tmp_path)
    go(model, one)
    expected = artifacts(one.work)
    (one.work / "files" / "qconvd.json").unlink()
    journal = one.work / "journal.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(x for x in lines if x is lines[0] or b"layers.0.mlp" not in x))
    encoder = Weighing()
    go(model, wanted("a", calibrated(model, spec=spec), tmp_path, encoder))
    assert {name for name, _ in encoder.calls} == {f"model.layers.0.mlp.{n}_proj.weight" for n in ("up", "down")}
    assert artifacts(one.work) == expected


def test_other_circumstances_start_over(model: ModelInfo, tmp_path: Path) -> None:
    one = wanted("a", calibrated(model), tmp_path)
    go(model, one)
    (one.work / "files" / "qconvd.json").unlink()
    encoder = Weighing()
    made = go(model, wanted("a", calibrated(model), tmp_path, encoder), limits=replace(LIMITS, threads=1))["a"]
    assert len(encoder.calls) == 3 * LAYERS
    assert made.calibration["threads"] == 1


def test_a_target_that_fails_leaves_the_others_their_calibration(model: ModelInfo, tmp_path: Path) -> None:
    bad = Weighing(fail_on="model.layers.1.mlp.up_proj.weight")
    targets = [wanted("a", calibrated(model), tmp_path, bad), wanted("b", calibrated(model), tmp_path)]
    made = go(model, *targets, target("c", copies(model), tmp_path))
    assert isinstance(made["a"], ValueError)
    assert isinstance(made["b"], Manifest)
    assert isinstance(made["c"], Manifest)
    assert not any(name.startswith("model.layers.2") for name, _ in bad.calls)


def test_calibration_stops_when_all_its_targets_have_failed(model: ModelInfo, tmp_path: Path) -> None:
    bad = Weighing(fail_on="model.layers.0.mlp.down_proj.weight")
    made = go(model, wanted("a", calibrated(model), tmp_path, bad), target("c", copies(model), tmp_path))
    assert isinstance(made["a"], ValueError)
    assert isinstance(made["c"], Manifest)
    assert NumpyCalibration.made[0].calls == [("waves", 0), ("close", -1)]


def test_files_that_are_taken_away_stop_a_calibration_at_once(
    model: ModelInfo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = wanted("a", calibrated(model), tmp_path)
    monkeypatch.setattr(NumpyCalibration, "slow", True)
    monkeypatch.setattr(NumpyCalibration, "at", lambda _: shutil.rmtree(one.work / "files"))
    with pytest.raises(QconvdError, match="was removed or moved away"):
        raise go(model, one)["a"]


def test_what_calibrating_raises_is_the_reason_of_its_targets_alone(
    model: ModelInfo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(layer: int) -> None:
        if layer == 1:
            raise QconvdError("layer 1 gives NaN")

    monkeypatch.setattr(NumpyCalibration, "at", fail)
    made = go(model, wanted("a", calibrated(model), tmp_path), target("c", copies(model), tmp_path))
    assert str(made["a"]) == "layer 1 gives NaN"
    assert isinstance(made["c"], Manifest)


def test_a_full_disk_is_the_reason_of_its_targets_alone(
    model: ModelInfo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("qconvd.engine.mean_squares.write_imatrix", full)
    one = wanted("a", calibrated(model, "mean_square"), tmp_path)
    made = go(model, one, target("c", copies(model), tmp_path))
    assert isinstance(made["a"], OutOfSpace)
    assert made["a"].what == "the disk is full, and text is being run through the model"
    assert made["a"].where == str(one.calibration)
    assert isinstance(made["c"], Manifest)


def test_a_folder_that_is_taken_away_is_tried_again(model: ModelInfo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = wanted("a", calibrated(model), tmp_path)
    monkeypatch.setattr(NumpyCalibration, "at", lambda layer: shutil.rmtree(one.calibration) if layer == 1 else None)
    made = go(model, one, target("c", copies(model), tmp_path))
    assert isinstance(made["a"], TakenAway)
    assert made["a"].what == "was removed while text was being run through the model"
    assert isinstance(made["c"], Manifest)


def test_a_wish_to_stop_is_heard_while_a_layer_is_run(
    model: ModelInfo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(NumpyCalibration, "slow", True)
    monkeypatch.setattr(NumpyCalibration, "at", asked.append)
    with pytest.raises(Cancelled):
        go(model, wanted("a", calibrated(model), tmp_path), cancelled=lambda: bool(asked))
    assert NumpyCalibration.made[0].calls[-1] == ("close", -1)
    monkeypatch.setattr(NumpyCalibration, "slow", False)
    assert isinstance(go(model, wanted("a", calibrated(model), tmp_path))["a"], Manifest)


def test_a_unit_that_did_without_is_named(model: ModelInfo, tmp_path: Path) -> None:
    spec = replace(SPEC, text="unreached")
    said = go(model, wanted("a", calibrated(model, spec=spec), tmp_path))["a"].calibration
    assert said["fallbacks"] == {n: "no token reached it" for n in model.tensors if "_proj" in n}


def test_statistics_count_as_memory_in_flight(model: ModelInfo, tmp_path: Path) -> None:
    """Calibrating gets what encoding its largest unit leaves."""
    go(model, wanted("a", calibrated(model), tmp_path))
    share = NumpyCalibration.made[0].limits.memory
    assert LIMITS.memory // 2 < share < LIMITS.memory


def test_the_folder_is_that_of_what_may_be_shared() -> None:
    def name(spec: CalibrationSpec, target: str = "") -> str:
        return folder_name(spec, "sha256:1", target=target)

    assert name(SPEC) == name(replace(SPEC, text="elsewhere", linears={"a": ("b",)}), "x")
    assert len({name(SPEC), name(replace(SPEC, seed=1)), name(replace(SPEC, samples=9)), folder_name(SPEC, "sha256:2")}) == 4
    quantized = replace(SPEC, stream="quantized")
    assert name(quantized, "x") != name(quantized, "y")


def test_a_name_for_two_tensors_is_refused(model: ModelInfo, tmp_path: Path) -> None:
    names = list(model.tensors)
    specs = [replace(SPEC, linears={"x": (n,)}) for n in names[1:3]]
    made = go(model, *(wanted(n, calibrated(model, spec=s), tmp_path) for n, s in zip("ab", specs, strict=True)))
    assert isinstance(made["a"], Manifest)
    assert str(made["b"]) == "b: calls other tensors by a name that another target uses"


def test_the_journal_says_figures_and_fallbacks(model: ModelInfo, tmp_path: Path) -> None:
    go(model, wanted("a", calibrated(model, spec=replace(SPEC, text="unreached")), tmp_path))
    lines = [json.loads(x) for x in (tmp_path / ".qconvd/work/a/journal.jsonl").read_bytes().splitlines()[1:]]
    assert {line.get("b") for line in lines if "_proj" in line["u"]} == {"no token reached it"}
    assert not any("b" in line or "f" in line for line in lines if "_proj" not in line["u"])
