"""A killed conversion goes on where it was and ends in the same bytes, wherever it was killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import crash
from qconvd.api import ModelInfo, Read, UnitReport
from qconvd.engine import graph as graph_module
from qconvd.engine import pipeline
from qconvd.engine.commit import commit
from qconvd.engine.journal import Header, Journal, Record
from qconvd.engine.manifest import Manifest
from qconvd.engine.run import Limits, convert
from tiny import TinyEncoder, copies, plan, raw_model, target, tree, unit

LIMITS = Limits(1 << 20, 2)
TINY = {"t.embed": ("BF16", (12, 8)), "t.layers.0.w": ("BF16", (20, 8)), "t.norm": ("BF16", (8,))}


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph_module, "CHUNK_BYTES", 128)


@pytest.fixture
def model(tmp_path: Path) -> ModelInfo:
    return raw_model(tmp_path / "m", {"one.bin": TINY})


def make(model: ModelInfo, output: Path, limits: Limits = LIMITS) -> tuple[dict[str, Any], list[TinyEncoder]]:
    """One target with two shards and one in a shared folder, in one pass."""
    encoders = [TinyEncoder(), TinyEncoder()]
    targets = [
        target("a", copies(model, shards=2), output, encoders[0]),
        target("b", copies(model, "F32", shared=True), output, encoders[1]),
    ]
    result = convert(model, targets, limits, operations={}, on_event=lambda _: None, cancelled=lambda: False)
    assert not [r for r in result.values() if isinstance(r, Exception)], result
    return result, encoders


def artifacts(output: Path) -> dict[str, bytes]:
    return {p: d for p, d in tree(output).items() if "/files/" in p}


@pytest.mark.parametrize("batch", [1, 600])
def test_a_crash_at_any_call_is_mended_by_running_again(
    model: ModelInfo, tmp_path: Path, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "SYNC_BYTES", batch)
    make(model, tmp_path / "whole")
    expected = artifacts(tmp_path / "whole")
    names = sorted(p.rpartition("/")[2] for p in tree(tmp_path / "whole"))
    total = crash.count(lambda: make(model, tmp_path / "count"))
    assert total > 40
    killed = 0
    for n in range(total):
        output = tmp_path / str(n)
        killed += crash.crashed(lambda output=output: make(model, output), n)
        make(model, output)
        assert artifacts(output) == expected, f"after a crash at call {n}"
        assert sorted(p.rpartition("/")[2] for p in tree(output)) == names, "no stray file"
    assert killed > total * 0.8, "how writes are batched may vary a little from run to run"


def test_rows_are_journalled_only_after_their_data_is_on_disk(model: ModelInfo, tmp_path: Path) -> None:
    """Each write to a journal is preceded by an fdatasync of every data file that was written since the last one."""
    dirty: set[str] = set()
    journalled = 0
    for name, file in (c[:2] for c in crash.traced(lambda: make(model, tmp_path / "out"))):
        if name == "pwrite":
            dirty.add(file)
        elif name == "fdatasync":
            dirty.discard(file)
        elif name == "write" and file == "journal.jsonl":
            journalled += 1
            assert not dirty & ({"model-1.tiny", "model-2.tiny"} if journalled == 1 else {"model.tiny"})
    assert journalled == 2


def test_what_was_done_is_not_done_again(model: ModelInfo, tmp_path: Path) -> None:
    _, first = make(model, tmp_path / "out")
    before = artifacts(tmp_path / "out")
    (tmp_path / "out/.qconvd/work/a/files/qconvd.json").unlink()
    journal = tmp_path / "out/.qconvd/work/b/journal.jsonl"
    (tmp_path / "out/.qconvd/work/b/files/.qconvd/b.json").unlink()
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:-3]) + lines[-3][:20])
    again = make(model, tmp_path / "out", Limits(4 << 20, 1))[1]
    assert again[0].calls == []
    redone = [json.loads(line) for line in lines[-3:]]
    assert sorted(again[1].calls) == sorted((r["u"], tuple(r["r"])) for r in redone)
    assert len(first[1].calls) > len(redone)
    assert artifacts(tmp_path / "out") == before


def test_progress_tells_what_an_earlier_run_made(model: ModelInfo, tmp_path: Path) -> None:
    """Of what is done, `resumed` was made before; the rest is what this run's seconds bought."""
    one = target("a", copies(model), tmp_path)
    total = sum(t.nbytes for t in one.plan.tensors)
    events: list[dict[str, Any]] = []
    go = dict(operations={}, on_event=lambda e: events.append(dict(e)), cancelled=lambda: False)
    convert(model, [one], LIMITS, **go)
    assert {e["resumed"] for e in events if e["event"] == "progress"} == {0}
    journal = one.work / "journal.jsonl"
    (one.work / "files" / "qconvd.json").unlink()
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:-2]))
    events.clear()
    again = target("a", copies(model), tmp_path)
    convert(model, [again], LIMITS, **go)
    last = [e for e in events if e["event"] == "progress"][-1]
    assert (last["done"], last["total"]) == (total, total)
    assert last["done"] - last["resumed"] == last["written"] > 0
    assert last["resumed"] > 0


def test_a_resumed_run_keeps_its_grid(model: ModelInfo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other limits, another chunk size, and another target that is already done: still the same chunks and the same sums."""
    first = make(model, tmp_path / "out")[1]
    expected = artifacts(tmp_path / "out")
    journal = tmp_path / "out/.qconvd/work/b/journal.jsonl"
    journal.write_bytes(b"".join(journal.read_bytes().splitlines(keepends=True)[:4]))
    (tmp_path / "out/.qconvd/work/b/files/.qconvd/b.json").unlink()
    monkeypatch.setattr(graph_module, "CHUNK_BYTES", 1 << 20)
    again = make(model, tmp_path / "out", Limits(1 << 30, 3))[1]
    assert again[0].calls == []
    assert 0 < len(again[1].calls) < len(first[1].calls)
    assert set(again[1].calls) < set(first[1].calls)
    assert artifacts(tmp_path / "out") == expected


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_journalled_rows_that_are_not_in_the_file_are_made_again(model: ModelInfo, tmp_path: Path, damage: str) -> None:
    make(model, tmp_path / "out")
    expected = artifacts(tmp_path / "out")
    files = tmp_path / "out/.qconvd/work/b/files"
    (files / ".qconvd/b.json").unlink()
    if damage == "flip":
        with (files / "model.tiny").open("r+b") as file:
            file.seek(100)
            file.write(b"\xff")
    elif damage == "truncate":
        os.truncate(files / "model.tiny", 200)
    else:
        (files / "model.tiny").unlink()
    again = make(model, tmp_path / "out")[1]
    assert again[0].calls == []
    assert again[1].calls
    assert artifacts(tmp_path / "out") == expected


def test_a_finished_target_is_finished(model: ModelInfo, tmp_path: Path) -> None:
    first = make(model, tmp_path / "out")[0]
    again, encoders = make(model, tmp_path / "out")
    assert again == first
    assert [e.calls for e in encoders] == [[], []]


@pytest.mark.parametrize("change", ["plan", "versions", "source", "garbage"])
def test_a_journal_of_something_else_is_of_no_use(model: ModelInfo, tmp_path: Path, change: str) -> None:
    made = target("a", copies(model), tmp_path)
    go = dict(operations={}, on_event=lambda _: None, cancelled=lambda: False)
    convert(model, [made], LIMITS, **go)
    other = target("a", made.plan, tmp_path)
    (made.work / "files" / "stray").write_text("left from before")
    if change == "plan":
        other = replace(other, plan=copies(model, "F32"))
    elif change == "versions":
        other = replace(other, about={"artifact": "a", "versions": {"tiny": "2"}})
    elif change == "source":
        os.utime(model.path / "one.bin", ns=(1, 1))
    else:
        (made.work / "journal.jsonl").write_text('{"journal": 1}\n')
    result = convert(model, [other], LIMITS, **go)
    assert isinstance(result["a"], Manifest)
    assert len(other.encoder.calls) == len(made.encoder.calls)
    assert not (made.work / "files" / "stray").exists()


def test_a_torn_line_is_dropped_and_writing_goes_on_behind_it(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    header = Header("sha256:1", [["a", 1, 2]], {"u": (4, 8)})
    records = [Record("u", (4 * i, 4 * i + 4), (i,), UnitReport(4, 0.1 * i, 1 / 3, 1e-9)) for i in range(3)]
    journal = Journal.create(path, header)
    journal.append(records[:2])
    journal.close()
    whole = path.read_bytes()
    for cut in range(len(whole) - 1, whole.index(b"\n"), -7):
        for tail in (b"", b"\0\0\0\n", b'{"u": 1}\n', b"[]\n"):
            path.write_bytes(whole[:cut] + tail)
            opened = Journal.open(path)
            assert opened is not None
            assert opened.header == header
            assert opened.records == records[: len(opened.records)]
            opened.append(records[2:])
            opened.close()
            reopened = Journal.open(path)
            assert reopened is not None
            assert reopened.records == [*opened.records, records[2]]
            reopened.close()
    for useless in (b"", whole[:10], b"{}\n", b'{"journal": 2}\n', b'{"journal": 1, "digest": 1}\n'):
        path.write_bytes(useless)
        assert Journal.open(path) is None
    assert Journal.open(tmp_path / "none") is None


def test_the_harness_also_kills_processes_started_with_its_environment(tmp_path: Path) -> None:
    script = """
import os, sqlite3
os.mkdir("d")
connection = sqlite3.connect("x.db")
connection.execute("create table t (a)")
connection.commit()
os.rmdir("d")
"""

    def start(crash_at: int | None) -> int:
        environment = os.environ | crash.environment(crash_at, tmp_path / f"log{crash_at}")
        where = tmp_path / str(crash_at)
        where.mkdir()
        return subprocess.run([sys.executable, "-c", script], cwd=where, env=environment, check=False).returncode

    assert start(None) == 0
    assert crash.calls(tmp_path / "logNone") == 3
    assert start(1) == -9
    assert sorted(p.name for p in (tmp_path / "1").iterdir()) == ["d", "x.db"]
    assert start(0) == -9
    assert list((tmp_path / "0").iterdir()) == []


def test_convert_then_commit(model: ModelInfo, tmp_path: Path) -> None:
    make(model, tmp_path)
    expected = {"a": artifacts(tmp_path / ".qconvd/work/a"), "b": artifacts(tmp_path / ".qconvd/work/b")}
    contents = {n: tree(tmp_path / ".qconvd/work" / n / "files") for n in expected}
    commit(tmp_path / ".qconvd/work/a", tmp_path / "M-tiny")
    commit(tmp_path / ".qconvd/work/b", tmp_path / "M-GGUF")
    assert tree(tmp_path / "M-tiny") == contents["a"]
    assert tree(tmp_path / "M-GGUF") == contents["b"]
    assert list((tmp_path / ".qconvd/work").iterdir()) == []
    assert ".qconvd/b.json" in contents["b"]


def test_a_unit_without_source_is_made_once(model: ModelInfo, tmp_path: Path) -> None:
    from qconvd.api import Constant

    units = [unit("c", Constant.of("F32", (2, 2), bytes(16))), unit("w", Read.of(model.tensors["t.norm"]), dtype="BF16")]
    made = target("a", plan(units), tmp_path)
    result = convert(model, [made], LIMITS, operations={}, on_event=lambda _: None, cancelled=lambda: False)
    assert isinstance(result["a"], Manifest)
    assert sorted(made.encoder.calls) == [("c", (0, 2)), ("w", (0, 1))]
