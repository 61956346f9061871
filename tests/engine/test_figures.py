"""What an encoder says of single units besides its report: journalled, added up, and in the manifest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qconvd.api import Encoded, ModelInfo, Unit
from qconvd.engine import graph as graph_module
from qconvd.engine.graph import Graph
from qconvd.engine.manifest import Manifest, read_manifest
from qconvd.engine.run import Limits, convert
from tiny import TinyEncoder, copies, llama, raw_model, target

UP, DOWN = "model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.down_proj.weight"


class Telling(TinyEncoder):
    """Counts rows as a figure, and makes one unit in another way."""

    def encode(self, unit: Unit, rows: tuple[int, int], x: Sequence[Any], stats: Mapping[str, Any]) -> Encoded:
        made = super().encode(unit, rows, x, stats)
        if unit.id not in (UP, DOWN):
            return made
        return made._replace(
            figures={"rows": np.float32(rows[1] - rows[0]), "odd": np.float64("nan")},
            fallback="nothing was known of it" if unit.id == DOWN else "",
        )


@pytest.fixture
def model(tmp_path: Path) -> ModelInfo:
    return raw_model(tmp_path / "m", {"one.bin": llama(2)})


def go(model: ModelInfo, output: Path) -> Manifest:
    made = target("a", copies(model), output, Telling())
    found = convert(model, [made], Limits(1 << 20, 2), operations={}, on_event=lambda _: None, cancelled=lambda: False)["a"]
    assert isinstance(found, Manifest)
    assert read_manifest(made.work / "files" / "qconvd.json") == found
    return found


def test_figures_are_added_up_over_the_rows(model: ModelInfo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph_module, "CHUNK_BYTES", 2048)
    said = go(model, tmp_path).calibration
    assert said["linears"] == {UP: {"odd": None, "rows": 96.0}, DOWN: {"odd": None, "rows": 64.0}}
    assert said["fallbacks"] == {DOWN: "nothing was known of it"}


def test_a_resumed_run_says_the_same(model: ModelInfo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph_module, "CHUNK_BYTES", 2048)
    whole = go(model, tmp_path)
    journal = tmp_path / ".qconvd/work/a/journal.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[: len(lines) // 2]))
    (tmp_path / ".qconvd/work/a/files/qconvd.json").unlink()
    assert go(model, tmp_path) == whole


def test_a_graph_hands_out_some_units_as_it_cuts_them_all(model: ModelInfo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph_module, "CHUNK_BYTES", 2048)
    one = copies(model)
    plans = {0: one, 1: replace(one, units=one.units[:4])}
    graph = Graph(model, plans, memory=1 << 20, operations={})

    def chunks(units: Any) -> set[Any]:
        return {(c.part.target, c.part.unit.id, c.rows) for item in graph.items(lambda *_: False, units) for c in item.chunks}

    every = chunks(None)
    some = {(0, UP), (0, DOWN), (1, one.units[1].id)}
    assert chunks(some) == {c for c in every if c[:2] in some}
    assert len(chunks(some)) > len(some)
    assert chunks([]) == set()
    rest = {(p, u.id) for p, plan in plans.items() for u in plan.units} - some
    assert chunks(some) | chunks(rest) == every
