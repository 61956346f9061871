"""What several targets have in common is encoded once, and only that."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from imatrix_files import write_gguf
from qconvd.api import Encoded, ModelInfo, Plan, Read, StatisticsFile, StatRequest, Unit, UnitReport
from qconvd.engine import graph as graph_module
from qconvd.engine.manifest import Manifest
from qconvd.statistics import open_imatrix
from tiny import copies, go, llama, plan, raw_model, target, tree, unit

NAME = "model.layers.0.mlp.up_proj.weight"
calls: Counter[tuple[str, str, str]] = Counter()
_lock = threading.Lock()


class Scaled:
    """BF16 as float32, times the first mean square if there is one; fails at what has a `fail` among its options."""

    stateless = True

    def encode(self, unit: Unit, rows: tuple[int, int], x: Sequence[Any], stats: Mapping[str, Any]) -> Encoded:
        with _lock:
            calls[type(self).__name__, unit.id, unit.outputs[0].dtype] += 1
        if "fail" in unit.options:
            raise ValueError(f"cannot encode {unit.id}")
        values = (x[0].astype(np.uint32) << 16).view(np.float32)
        for weights in stats.values():
            values = values * weights[0]
        data = values if unit.outputs[0].dtype == "F32" else x[0]
        return Encoded([data], UnitReport(weights=data.size, max_error=rows[0] + 0.25))


class Other(Scaled):
    """Another class, though it does the same."""


class Remembering(Scaled):
    stateless = False


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    calls.clear()
    monkeypatch.setattr(graph_module, "CHUNK_BYTES", 2048)


@pytest.fixture
def model(tmp_path: Path) -> ModelInfo:
    return raw_model(tmp_path / "m", {"one.bin": llama(2)})


def encoded(name: str = "") -> int:
    return sum(count for (_, unit, _), count in calls.items() if name in unit)


def mixed(model: ModelInfo, wide: str) -> Plan:
    """Every tensor in BF16, but for one in F32."""
    units = [unit(t.name, Read.of(t), dtype="F32" if t.name == wide else "BF16") for t in model.tensors.values()]
    return plan(units)


def test_what_two_targets_have_in_common_is_encoded_once(model: ModelInfo, tmp_path: Path) -> None:
    plans = [mixed(model, NAME), mixed(model, NAME.replace("layers.0", "layers.1"))]
    alone = []
    for i, p in enumerate(plans):
        go(model, made := target(f"t{i}", p, tmp_path / "alone", Scaled()))
        alone.append(tree(made.work / "files"))
    each = encoded() // 2
    wide = encoded(NAME) // 2
    assert wide > 1, "rows are cut into chunks"
    calls.clear()
    together = [target(f"t{i}", p, tmp_path / "together", Scaled()) for i, p in enumerate(plans)]
    results = go(model, *together)
    assert [tree(t.work / "files") for t in together] == alone
    assert all(isinstance(m, Manifest) for m in results.values())
    assert encoded() == each + 2 * wide
    assert encoded(NAME) == 2 * wide, "as BF16 for one target, as F32 for the other"


def test_only_encoders_of_one_class_that_says_so(model: ModelInfo, tmp_path: Path) -> None:
    go(model, target("a", copies(model), tmp_path / "alone", Scaled()))
    each = encoded()
    for encoders in ([Scaled(), Other()], [Remembering(), Remembering()]):
        calls.clear()
        targets = [target(f"t{i}", copies(model), tmp_path / type(e).__name__, e) for i, e in enumerate(encoders)]
        go(model, *targets)
        assert encoded() == 2 * each
    calls.clear()
    go(model, *(target(f"t{i}", copies(model), tmp_path / "same", e) for i, e in enumerate([Scaled(), Other(), Scaled()])))
    assert encoded() == 2 * each, "whatever stands between"


def test_an_encoder_that_is_not_stateless_gets_nothing_of_one_that_is(model: ModelInfo, tmp_path: Path) -> None:
    go(model, target("a", copies(model), tmp_path / "alone", Scaled()))
    each = encoded()
    calls.clear()
    own = Scaled()
    own.stateless = False
    go(model, *(target(f"t{i}", copies(model), tmp_path / "o", e) for i, e in enumerate([Scaled(), own])))
    assert encoded() == 2 * each


def test_other_options_or_statistics_give_other_bytes(model: ModelInfo, tmp_path: Path) -> None:
    def weighted(value: float | None, **options: Any) -> Plan:
        read = Read.of(model.tensors[NAME])
        if value is None:
            return plan([unit(NAME, read, options=options)])
        path = write_gguf(tmp_path / f"{value}.imatrix", {NAME: ([np.full(64, value)], [1])})
        file = open_imatrix(path)
        file.close()
        request = (StatRequest(NAME, "mean_square"),)
        return replace(
            plan([unit(NAME, read, statistics=request, options=options)]), statistics=(StatisticsFile(str(path), file.sha256),)
        )

    plans = [weighted(2.0), weighted(3.0), weighted(2.0), weighted(None), weighted(2.0, unused=1)]
    targets = [target(f"t{i}", p, tmp_path / "o", Scaled()) for i, p in enumerate(plans)]
    go(model, *targets)
    two, three, again, none, other = (tree(t.work / "files")["model.tiny"] for t in targets)
    assert len({two, three, none}) == 3
    assert again == other == two
    chunks = encoded() // 4
    assert encoded() == 4 * chunks > 4, "only the third is as the first"


def test_a_failure_is_each_targets_own(model: ModelInfo, tmp_path: Path) -> None:
    wrong = {NAME: {"fail": 1}}
    bad = [unit(t.name, Read.of(t), dtype="BF16", options=wrong.get(t.name, {})) for t in model.tensors.values()]
    results = go(model, *(target(f"t{i}", plan(bad), tmp_path / "bad", Scaled()) for i in range(2)))
    assert [str(r) for r in results.values()] == [f"cannot encode {NAME}"] * 2
    good = target("good", copies(model), tmp_path / "g", Scaled())
    results = go(model, target("bad", plan(bad), tmp_path / "g", Scaled()), good)
    assert isinstance(results["bad"], ValueError)
    assert isinstance(results["good"], Manifest)
    go(model, alone := target("alone", copies(model), tmp_path / "a", Scaled()))
    assert tree(alone.work / "files")["model.tiny"] == tree(good.work / "files")["model.tiny"]
