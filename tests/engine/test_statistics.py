"""Statistics on their way to the encoder: what is asked for, whole for every chunk, of the file that was planned with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from imatrix_files import write_gguf
from qconvd.api import Encoded, ModelInfo, Plan, QconvdError, Read, StatisticsFile, StatRequest, Unit
from qconvd.engine import graph as graph_module
from qconvd.engine import statistics as statistics_module
from qconvd.engine.manifest import Manifest, read_manifest
from qconvd.engine.plan import from_json, to_json
from qconvd.statistics import open_imatrix
from tiny import TinyEncoder, go, llama, plan, raw_model, target, unit

LINEARS = ("model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.weight")
NORM = "model.norm.weight"


@dataclass
class Weighing(TinyEncoder):
    """Keeps what it is given."""

    stats: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    touch: Path | None = None
    """A file to write to meanwhile."""

    def encode(self, unit: Unit, rows: tuple[int, int], x: Sequence[Any], stats: Mapping[str, Any]) -> Encoded:
        self.stats.append((unit.id, dict(stats)))
        assert all(not a.flags.writeable for a in stats.values())
        if self.touch:
            self.touch.write_bytes(self.touch.read_bytes() + b"\0" * 32)
            self.touch = None
        return super().encode(unit, rows, x, {})


@pytest.fixture
def model(tmp_path: Path) -> ModelInfo:
    return raw_model(tmp_path / "m", {"one.bin": llama(2)})


@pytest.fixture
def matrix(tmp_path: Path) -> Path:
    entries = {name: ([np.arange(64) + i], [2]) for i, name in enumerate((*LINEARS, "more"))}
    return write_gguf(tmp_path / "m.imatrix", entries)


def weighted(model: ModelInfo, matrix: Path) -> Plan:
    file = open_imatrix(matrix)
    file.close()
    units = [unit(n, Read.of(model.tensors[n]), dtype="BF16", statistics=(StatRequest(n, "mean_square"),)) for n in LINEARS]
    units.append(unit(NORM, Read.of(model.tensors[NORM]), dtype="BF16"))
    return replace(plan(units), statistics=(StatisticsFile(str(matrix), file.sha256, without=("x",)),))


def test_every_chunk_gets_its_units_statistics(
    model: ModelInfo, matrix: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graph_module, "CHUNK_BYTES", 2048)
    encoder = Weighing()
    made = target("a", from_json(to_json(weighted(model, matrix))), tmp_path, encoder)
    manifest = go(model, made)["a"]
    assert isinstance(manifest, Manifest)
    seen = dict(encoder.stats)
    assert len(encoder.stats) > len(seen), "rows are cut into chunks"
    assert seen[NORM] == {}
    for i, name in enumerate(LINEARS):
        for _, stats in (s for s in encoder.stats if s[0] == name):
            assert list(stats) == [f"{name}:mean_square"]
            assert np.array_equal(stats[f"{name}:mean_square"], (np.arange(64, dtype=np.float32) + i) / 2)


def test_the_manifest_names_the_file_by_name_and_content(model: ModelInfo, matrix: Path, tmp_path: Path) -> None:
    made = target("a", weighted(model, matrix), tmp_path, Weighing())
    manifest = go(model, made)["a"]
    said = {"kind": "imatrix", "file": "m.imatrix", "sha256": made.plan.statistics[0].sha256, "without": ["x"]}
    assert manifest.statistics == (said,)
    assert str(tmp_path) not in (made.work / "files" / "qconvd.json").read_text()
    assert read_manifest(made.work / "files" / "qconvd.json") == manifest
    # Elsewhere on the disk it is the same file, and makes the same artifact.
    moved = tmp_path / "elsewhere" / "m.imatrix"
    moved.parent.mkdir()
    matrix.rename(moved)
    again = target("b", weighted(model, moved), tmp_path, Weighing(), artifact="a")
    assert go(model, again)["b"].plan == manifest.plan


def test_a_file_with_another_content_fails_its_targets_alone(model: ModelInfo, matrix: Path, tmp_path: Path) -> None:
    planned = weighted(model, matrix)
    write_gguf(matrix, {name: ([np.ones(64)], [1]) for name in LINEARS})
    plain = plan([unit(NORM, Read.of(model.tensors[NORM]), dtype="BF16")])
    result = go(model, target("a", planned, tmp_path, Weighing()), target("b", plain, tmp_path))
    assert isinstance(result["b"], Manifest)
    with pytest.raises(QconvdError, match=r"m.imatrix: changed since the recipe was read"):
        raise result["a"]


def test_a_file_that_is_written_to_meanwhile_fails_its_targets(model: ModelInfo, matrix: Path, tmp_path: Path) -> None:
    made = target("a", weighted(model, matrix), tmp_path, Weighing(touch=matrix))
    with pytest.raises(QconvdError, match=r"m.imatrix: changed since the recipe was read"):
        raise go(model, made)["a"]
    assert not (made.work / "files").exists()


def test_a_file_that_is_gone_or_lacks_a_tensor(model: ModelInfo, matrix: Path, tmp_path: Path) -> None:
    planned = weighted(model, matrix)
    stranger = replace(planned.units[0], statistics=(StatRequest("y", "mean_square"),))
    lacking = replace(planned, units=(stranger, *planned.units[1:]))
    with pytest.raises(QconvdError, match=r"y: no file of the plan holds its mean_square\n  `qconvd reconvert JOB` plans anew"):
        raise go(model, target("a", lacking, tmp_path))["a"]
    other = replace(planned.units[0], statistics=(StatRequest(LINEARS[0], "hessian"),))
    with pytest.raises(QconvdError, match="no file of the plan holds its hessian"):
        raise go(model, target("b", replace(planned, units=(other, *planned.units[1:])), tmp_path))["b"]
    matrix.unlink()
    with pytest.raises(QconvdError, match=r"m.imatrix: is not there"):
        raise go(model, target("c", planned, tmp_path))["c"]


def test_little_is_kept_for_the_next_chunk(model: ModelInfo, matrix: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics_module, "KEPT", 300)
    planned = weighted(model, matrix)
    statistics = statistics_module.Statistics()
    statistics.open(planned)
    first, second = (statistics.of(planned, u)[u.statistics[0].key] for u in planned.units[:2])
    assert statistics.of(planned, planned.units[1])[planned.units[1].statistics[0].key] is second
    again = statistics.of(planned, planned.units[0])[planned.units[0].statistics[0].key]
    assert again is not first
    assert np.array_equal(again, first)
    statistics.close()
