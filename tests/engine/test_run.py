"""One pass for all targets: right bytes, each source byte read once, bounded memory, failures that stay alone."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qconvd.api import (
    Encoded,
    ModelInfo,
    OutputTensor,
    Permute,
    Plan,
    QconvdError,
    Read,
    Reshape,
    RowSplit,
    SideFile,
    Slice,
    Stack,
    StatRequest,
    Transpose,
    Unsupported,
    Whole,
)
from qconvd.engine import graph as graph_module
from qconvd.engine import run as run_module
from qconvd.engine.credits import Credits
from qconvd.engine.graph import Graph
from qconvd.engine.manifest import Manifest
from qconvd.engine.run import Cancelled, ConvertTarget, Limits, _Run, convert
from qconvd.engine.source import Source
from qconvd.errors import BadCheckpoint, TakenAway
from tiny import HEADER, TinyEncoder, copies, llama, plan, raw_model, target, tree, unit

LIMITS = Limits(1 << 20, 2)


def go(model: ModelInfo, *targets: ConvertTarget, limits: Limits = LIMITS, events: list[Any] | None = None) -> dict[str, Any]:
    log = [] if events is None else events
    return convert(model, targets, limits, operations={}, on_event=log.append, cancelled=lambda: False)


@pytest.fixture
def model(tmp_path: Path) -> ModelInfo:
    return raw_model(tmp_path / "m", {"one.bin": llama(2), "two.bin": {"extra": ("BF16", (40, 32))}})


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph_module, "CHUNK_BYTES", 2048)


def tensors(model: ModelInfo) -> dict[str, bytes]:
    return {t.name: (model.path / t.file).read_bytes()[t.offset : t.offset + t.nbytes] for t in model.tensors.values()}


def stored(folder: Path, plan: Plan) -> dict[str, bytes]:
    data = {f.path: (folder / f.path).read_bytes() for f in plan.files}
    return {p.tensor: data[f.path][p.offset : p.offset + p.nbytes] for f in plan.files for p in f.tensors}


@pytest.mark.usefixtures("small_chunks")
def test_bytes_are_where_the_plan_says(model: ModelInfo, tmp_path: Path) -> None:
    made, shards = target("a", copies(model), tmp_path, recipe="r"), target("b", copies(model, "F32", shards=3), tmp_path)
    result = go(model, made, shards)
    source = tensors(model)
    assert stored(made.work / "files", made.plan) == source
    wide = {n: (np.frombuffer(d, "<u2").astype("<u4") << 16).tobytes() for n, d in source.items()}
    assert stored(shards.work / "files", shards.plan) == wide
    for path, data in tree(made.work / "files").items():
        if path.endswith(".tiny"):
            assert data.startswith(HEADER)
            assert len(data) == made.plan.files[0].nbytes
    manifest = result["a"]
    assert isinstance(manifest, Manifest)
    assert (manifest.recipe, manifest.artifact, manifest.nbytes) == ("r", "a", made.plan.nbytes)
    assert (made.work / "files" / "config.json").read_bytes() == (model.path / "config.json").read_bytes()
    assert (made.work / "files" / "note.txt").read_text() == "héé"
    assert {c[0] for c in made.encoder.calls} == set(source)
    assert len(made.encoder.calls) > 3 * len(source), "rows are cut into chunks"


@pytest.mark.usefixtures("small_chunks")
def test_sha256_and_sizes_of_all_files_are_in_the_manifest(model: ModelInfo, tmp_path: Path) -> None:
    from hashlib import sha256

    made = target("a", copies(model, shards=2), tmp_path)
    manifest = go(model, made)["a"]
    listed = {f.path: (f.bytes, f.sha256) for f in manifest.files}
    found = {p: (len(d), sha256(d).hexdigest()) for p, d in tree(made.work / "files").items() if p != "qconvd.json"}
    assert listed == found


@pytest.mark.usefixtures("small_chunks")
def test_ten_targets_read_the_model_once(tmp_path: Path) -> None:
    """Also where one permutes rows, one stacks tensors and one transposes."""
    model = raw_model(tmp_path / "m", {"one.bin": llama(2, width=64, hidden=128)})
    read = {t.name: Read.of(t) for t in model.tensors.values()}
    others = []
    for i in range(2):
        q, up = read[f"model.layers.{i}.self_attn.q_proj.weight"], read[f"model.layers.{i}.mlp.up_proj.weight"]
        rope = Reshape(Permute(Reshape(q, (4, 2, 8, 64)), (0, 2, 1, 3)), (64, 64))
        others += [unit(f"q.{i}", rope, dtype="BF16", layer=i), unit(f"t.{i}", Transpose(up), dtype="BF16", layer=i)]
    others.append(unit("stack", Stack(tuple(r for n, r in read.items() if "down" in n)), dtype="BF16", layer=0))
    targets = [target(f"t{i}", copies(model, "BF16" if i % 2 else "F32"), tmp_path) for i in range(9)]
    targets.append(target("gguf", plan(others), tmp_path))
    events: list[Any] = []
    go(model, *targets, events=events)
    assert events[-2]["read"] == model.weight_bytes
    q = np.frombuffer(tensors(model)["model.layers.1.self_attn.q_proj.weight"], "<u2").reshape(4, 2, 8, 64)
    made = stored(targets[-1].work / "files", targets[-1].plan)
    assert made["q.1"] == q.swapaxes(1, 2).tobytes()
    up = np.frombuffer(tensors(model)["model.layers.0.mlp.up_proj.weight"], "<u2").reshape(128, 64)
    assert made["t.0"] == up.T.tobytes()


@pytest.mark.usefixtures("small_chunks")
def test_equal_inputs_are_evaluated_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from qconvd.engine import run

    model = raw_model(tmp_path / "m", {"one.bin": {"w": ("BF16", (64, 64))}})
    turned = Transpose(Read("w", "BF16", (64, 64)))
    seen: list[Any] = []
    evaluate = run.evaluate
    monkeypatch.setattr(run, "evaluate", lambda x, *more: (seen.append(more[:2]), evaluate(x, *more))[1])
    go(model, *[target(f"t{i}", plan([unit("w.t", turned, dtype="BF16")]), tmp_path) for i in range(3)])
    assert len(seen) == len(set(seen)) > 1


def test_the_order_is_embedding_layers_head(model: ModelInfo) -> None:
    names = [
        p.part.unit.id
        for i in Graph(model, {0: copies(model)}, memory=1 << 20, operations={}).items(lambda *_: False)
        for p in i.chunks
    ]
    layers = [n.split(".")[2] if "layers" in n else n for n in names]
    assert list(dict.fromkeys(layers)) == [
        "model.embed_tokens.weight",
        "0",
        "1",
        "model.norm.weight",
        "lm_head.weight",
        "extra",
    ]


def test_overlapping_slices_are_read_once(tmp_path: Path) -> None:
    model = raw_model(tmp_path / "m", {"one.bin": {"qkv": ("BF16", (96, 64))}})
    qkv = Read("qkv", "BF16", (96, 64))
    parts = [unit(f"{i}", Slice(qkv, 0, 32 * i, 32 * i + 32), dtype="BF16") for i in range(3)]
    targets = [target("whole", copies(model), tmp_path), target("parts", plan(parts), tmp_path)]
    events: list[Any] = []
    go(model, *targets, events=events)
    assert events[-2]["read"] == model.weight_bytes
    assert b"".join(stored(targets[1].work / "files", targets[1].plan).values()) == tensors(model)["qkv"]


def test_rows_come_in_multiples_and_other_inputs_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph_module, "CHUNK_BYTES", 1000)
    model = raw_model(tmp_path / "m", {"one.bin": {"w": ("BF16", (50, 32)), "norm": ("BF16", (32,)), "v": ("BF16", (50, 32))}})
    w, norm, v = (Read.of(t) for t in model.tensors.values())

    seen: list[Any] = []

    class Shapes(TinyEncoder):
        def encode(self, unit: Any, rows: tuple[int, int], x: Any, stats: Any) -> Encoded:
            seen.append((unit.id, rows, [a.shape for a in x]))
            return super().encode(unit, rows, x, stats)

    units = [unit("w", w, norm, v, dtype="BF16", multiple=8), unit("whole", w, dtype="BF16", rows=Whole())]
    go(model, target("a", plan(units), tmp_path, Shapes()))
    for name, (a, b), shapes in seen:
        assert shapes == ([(b - a, 32), (1, 32), (b - a, 32)] if name == "w" else [(50, 32)])
        assert a % 8 == 0
        assert b % 8 == 0 or b == 50
    assert [s[1] for s in seen if s[0] == "whole"] == [(0, 50)]
    assert len(seen) > 4


def test_a_target_that_raises_is_dropped_and_the_others_go_on(model: ModelInfo, tmp_path: Path) -> None:
    bad = target("bad", copies(model), tmp_path, TinyEncoder(fail_on="model.norm.weight"))
    good = target("good", copies(model), tmp_path)
    events: list[Any] = []
    result = go(model, bad, good, events=events)
    assert isinstance(result["bad"], ValueError)
    assert isinstance(result["good"], Manifest)
    assert tree(bad.work) == {}, "nothing is left half-made"
    assert {
        "event": "target-failed",
        "target": "bad",
        "error": "ValueError",
        "what": "cannot encode model.norm.weight",
    } in events
    assert [e["target"] for e in events if e["event"] == "target-done"] == ["good"]


@pytest.mark.parametrize(
    ("data", "message"),
    [([], "returned 0 outputs instead of 1"), ([b"12"], r"returned 2 bytes instead of \d+ for model.norm.weight")],
)
def test_an_encoder_that_returns_the_wrong_amount_is_named(model: ModelInfo, tmp_path: Path, data: Any, message: str) -> None:
    class Wrong(TinyEncoder):
        def encode(self, unit: Any, rows: Any, x: Any, stats: Any) -> Encoded:
            return Encoded(data) if unit.id == "model.norm.weight" else super().encode(unit, rows, x, stats)

    result = go(model, target("a", copies(model), tmp_path, Wrong()))
    with pytest.raises(
        QconvdError, match=f"^model.norm.weight: the encoder {message}\n  this is a defect of the format's plugin"
    ):
        raise result["a"]


def test_statistics_are_refused_by_name(model: ModelInfo, tmp_path: Path) -> None:
    gptq = unit("w", Read.of(model.tensors["extra"]), dtype="BF16", statistics=(StatRequest("w", "hessian"),))
    with pytest.raises(Unsupported, match="w asks for statistics, and the plan names neither a file that holds them nor"):
        raise go(model, target("a", plan([gptq]), tmp_path))["a"]


def bad_plans(good: Plan) -> dict[str, Plan]:
    from dataclasses import replace

    first, file = good.units[0], good.files[0]
    output = first.outputs[0]
    odd = replace(first, outputs=(OutputTensor(output.name, "U8", (7,), 7),))
    placed = file.tensors[0]

    def alone(kind: Any, rows: Any) -> Plan:
        return replace(
            good, units=(replace(first, inputs=(), statistics=(StatRequest("x", kind),), rows=rows), *good.units[1:])
        )

    return {
        "two units or two tensors have one name": replace(good, units=(*good.units, first)),
        "leaves the folder": replace(good, side_files=(SideFile("../x", 1, text="x"),)),
        "two files have one path": replace(good, side_files=(SideFile(file.path, 1, text="x"),)),
        "not every tensor has one place": replace(good, units=good.units[1:]),
        "has 7 bytes and room for": replace(good, units=(odd, *good.units[1:])),
        "the 7 bytes of .* do not divide among 128 rows": replace(
            good, units=(odd, *good.units[1:]), files=(replace(file, tensors=(replace(placed, nbytes=7), *file.tensors[1:])),)
        ),
        "overlap or do not fit": replace(
            good, files=(replace(file, tensors=(replace(placed, offset=40000), *file.tensors[1:])),)
        ),
        "a unit without inputs or outputs": replace(good, units=(replace(first, inputs=()), *good.units[1:])),
        "a unit made of statistics alone that is not whole": alone("square_sums", RowSplit()),
        "a unit made of Hessians alone, which nobody keeps to verify it": alone("hessian", Whole()),
    }


def test_a_plan_that_contradicts_itself_is_refused(model: ModelInfo, tmp_path: Path) -> None:
    for message, wrong in bad_plans(copies(model)).items():
        with pytest.raises(QconvdError, match=f"the plan contradicts itself: .*{message}"):
            raise go(model, target("a", wrong, tmp_path))["a"]
        assert tree(tmp_path / ".qconvd") == {}


def test_a_source_that_changes_discards_the_run(model: ModelInfo, tmp_path: Path) -> None:
    class Vandal(TinyEncoder):
        def encode(self, unit: Any, rows: Any, x: Any, stats: Any) -> Encoded:
            with (model.path / "two.bin").open("r+b") as file:
                file.write(b"!")
            os.utime(model.path / "two.bin", ns=(1, 1))
            return super().encode(unit, rows, x, stats)

    made, events = target("a", copies(model), tmp_path, Vandal()), list[Any]()
    with pytest.raises(BadCheckpoint, match=r"two\.bin: changed while it was read\n  convert again when nobody writes"):
        raise go(model, made, events=events)["a"]
    assert tree(made.work) == {}
    assert [e["target"] for e in events if e["event"] == "target-failed"] == ["a"]


def test_a_source_that_is_cut_short(model: ModelInfo, tmp_path: Path) -> None:
    shutil.copytree(model.path, tmp_path / "cut")
    os.truncate(model.path / "two.bin", 1000)
    with pytest.raises(
        BadCheckpoint, match=r"two\.bin, tensor extra: is truncated: it ends at byte 1000, the tensor at byte 2576"
    ):
        raise go(model, target("a", copies(model), tmp_path))["a"]
    cut = ModelInfo(tmp_path / "cut", "cut", "raw", model.tensors, model.files)
    with Source(cut) as source, pytest.raises(BadCheckpoint, match="is truncated"):
        os.truncate(tmp_path / "cut" / "two.bin", 1000)
        source.block(Read.of(model.tensors["extra"]), 0, 40, 0, 32)
    with Source(cut_at(cut, 0)) as source:
        source.check()
        (tmp_path / "cut" / "one.bin").rename(tmp_path / "cut" / "gone.bin")
        with pytest.raises(BadCheckpoint, match=r"one\.bin: changed while it was read"):
            source.check()
    with pytest.raises(BadCheckpoint, match=r"one\.bin: cannot be opened: No such file or directory"):
        Source(cut).__enter__()


def cut_at(model: ModelInfo, _: int) -> ModelInfo:
    return ModelInfo(
        model.path, model.name, model.kind, {n: t for n, t in model.tensors.items() if t.file == "one.bin"}, model.files
    )


def test_a_side_file_that_changed_is_noticed(model: ModelInfo, tmp_path: Path) -> None:
    made = target("a", copies(model), tmp_path)
    (model.path / "config.json").write_text("{}")
    with pytest.raises(BadCheckpoint, match=r"config\.json: has 2 bytes, the plan says 32\n  the model changed"):
        raise go(model, made)["a"]
    assert tree(made.work) == {}


def test_a_full_disk_is_noticed_before_anything_is_written(
    model: ModelInfo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = os.statvfs(tmp_path)

    class Full:
        f_bavail, f_frsize = 3, 1024

    monkeypatch.setattr(os, "statvfs", lambda path: Full if "work/a" in str(path) else free)
    made, other = target("a", copies(model), tmp_path), target("b", copies(model), tmp_path)
    result = go(model, made, other)
    with pytest.raises(QconvdError, match=r"files: needs 98\.\d KiB of disk, 3\.0 KiB are free\n  free some space"):
        raise result["a"]
    assert tree(made.work) == {}
    assert isinstance(result["b"], Manifest)


@pytest.mark.parametrize("call", ["posix_fallocate", "pwrite", "fdatasync"])
def test_a_disk_that_fills_up_drops_the_target(
    model: ModelInfo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    made, other = target("a", copies(model), tmp_path), target("b", copies(model), tmp_path)
    real = getattr(os, call)

    def full(descriptor: int, *arguments: Any) -> Any:
        if "work/a" in str(Path(f"/proc/self/fd/{descriptor}").readlink()):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(descriptor, *arguments)

    monkeypatch.setattr(os, call, full)
    result = go(model, made, other)
    with pytest.raises(QconvdError, match=r"files: needs .* of disk, .* are free\n  free some space, or choose"):
        raise result["a"]
    assert tree(made.work) == {}
    assert isinstance(result["b"], Manifest)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize(
    ("take", "gone", "early"),
    [
        (lambda work: shutil.rmtree(work), "files", True),
        (lambda work: work.rename(work.with_name("elsewhere")), "files", True),
        (lambda work: (work / "files" / "model-1.tiny").unlink(), "files/model-1.tiny", True),
        (lambda work: (work / "files" / "model-1.tiny").rename(work / "moved"), "files/model-1.tiny", False),
    ],
)
def test_files_that_are_taken_away_are_noticed_while_they_are_written(
    model: ModelInfo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, take: Any, gone: str, early: bool
) -> None:
    monkeypatch.setattr(run_module, "TICK", 0.001)
    noticed = threading.Event()

    class Watched(TinyEncoder):
        """Takes the files away at its third call, and goes on when that was told."""

        def encode(self, *arguments: Any) -> Encoded:
            if len(self.calls) == 3:
                take(made.work)
                assert not early or noticed.wait(60)
            return super().encode(*arguments)

    made, other = target("a", copies(model, shards=2), tmp_path, Watched()), target("b", copies(model), tmp_path)
    result = convert(
        model, [made, other], Limits(1 << 20, 1), operations={}, cancelled=lambda: False,
        on_event=lambda e: noticed.set() if e["event"] == "target-failed" else None,
    )  # fmt: skip
    assert isinstance(result["a"], TakenAway)
    what, fix = str(result["a"]).splitlines()
    where, _, what = what.rpartition(": ")
    # Of a folder that is being removed, its files go first, and one that is looked for meanwhile is gone already.
    assert where == str(made.work / gone) or (gone == "files" and Path(where).parent == made.work / "files")
    assert what == "was removed or moved away while it was being written"
    assert fix == "  leave `.qconvd` in the output folder alone while something is converted"
    assert isinstance(result["b"], Manifest)
    again = target("a", made.plan, tmp_path)
    assert go(model, again)["a"].nbytes == made.plan.nbytes
    assert stored(again.work / "files", again.plan) == tensors(model)


def test_an_io_error_is_a_sentence(model: ModelInfo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "pwrite", broken)
    with pytest.raises(QconvdError, match=r"files: cannot be written: Input/output error\n  look at the disk"):
        raise go(model, target("a", copies(model), tmp_path))["a"]


def test_a_filesystem_without_preallocation_will_do(model: ModelInfo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: Any) -> Any:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(os, "posix_fallocate", unknown)
    made = target("a", copies(model), tmp_path)
    assert isinstance(go(model, made)["a"], Manifest)
    assert stored(made.work / "files", made.plan) == tensors(model)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("stop", ["cancelled", "interrupt"])
def test_stopping_keeps_what_was_done(model: ModelInfo, tmp_path: Path, stop: str) -> None:
    made = target("a", copies(model), tmp_path)
    threads = threading.active_count()  # libraries that other tests use have some of their own

    class Stopping:
        def __call__(self) -> bool:
            if len(made.encoder.calls) > 10 and stop == "interrupt":
                raise KeyboardInterrupt
            return len(made.encoder.calls) > 10

    with pytest.raises(Cancelled):
        convert(model, [made], Limits(30_000, 1), operations={}, on_event=lambda _: None, cancelled=Stopping())
    lines = (made.work / "journal.jsonl").read_text().splitlines()
    assert len(lines) == 1 + len(made.encoder.calls), "all that was encoded is journalled"
    before = len(made.encoder.calls)
    again = target("a", made.plan, tmp_path)
    result = go(model, again)
    assert not set(again.encoder.calls) & set(made.encoder.calls)
    fresh = target("b", made.plan, tmp_path, artifact="a")
    assert go(model, fresh)["b"] == result["a"]
    assert len(fresh.encoder.calls) == before + len(again.encoder.calls)
    assert tree(fresh.work / "files") == tree(again.work / "files")
    assert threading.active_count() == threads


def test_progress_comes_from_the_calling_thread(model: ModelInfo, tmp_path: Path) -> None:
    threads = set()

    def note(event: Mapping[str, Any]) -> None:
        threads.add(threading.get_ident())
        json.dumps(event)
        events.append(event)

    events: list[Mapping[str, Any]] = []

    class Slow(TinyEncoder):
        def encode(self, *arguments: Any) -> Encoded:
            time.sleep(0.06)
            return super().encode(*arguments)

    made = target("a", copies(model), tmp_path, Slow())
    convert(model, [made], LIMITS, operations={}, on_event=note, cancelled=lambda: False)
    assert threads == {threading.get_ident()}
    progress = [e for e in events if e["event"] == "progress"]
    assert [e["done"] for e in progress] == sorted(e["done"] for e in progress)
    total = sum(t.nbytes for t in made.plan.tensors)
    last = progress[-1]
    assert (last["target"], last["done"], last["total"]) == ("a", total, total)
    assert (last["read"], last["written"]) == (model.weight_bytes, total)
    assert len(progress) > 1


@pytest.mark.usefixtures("small_chunks")
def test_error_figures_do_not_depend_on_the_order_of_completion(model: ModelInfo, tmp_path: Path) -> None:
    results = [go(model, target("a", copies(model), tmp_path / str(n)), limits=Limits(1 << 20, n))["a"] for n in (1, 4)]
    assert results[0] == results[1]
    assert results[0].errors["weights"] == model.parameters
    assert len(results[0].errors["worst"]) == 5


def test_counts_are_listed_for_the_tensors_that_have_them(model: ModelInfo, tmp_path: Path) -> None:
    from qconvd.api import UnitReport

    class Counting(TinyEncoder):
        def encode(self, unit: Any, rows: Any, x: Any, stats: Any) -> Encoded:
            made = super().encode(unit, rows, x, stats)
            return Encoded(
                made.data,
                UnitReport(np.int64(x[0].size), np.float32("nan"), 1.0, float("inf"), np.uint8(2), 0, 3)
                if unit.id == "extra"
                else UnitReport(),
            )

    manifest = go(model, target("a", copies(model), tmp_path, Counting()))["a"]
    assert manifest.tensors == {"extra": {"overflows": 2, "nan": 3}}
    assert (manifest.errors["nan"], manifest.errors["relative_rms"], manifest.errors["max_error"]) == (3, None, None)


def test_memory_in_flight_is_bounded_by_credit(tmp_path: Path) -> None:
    """What is asked for never exceeds the limit, except by one item that runs alone and is announced."""
    model = raw_model(tmp_path / "m", {"one.bin": {"w": ("BF16", (512, 256)), "v": ("BF16", (64, 256))}})
    w, v = (Read.of(t) for t in model.tensors.values())
    units = [unit("w", w), unit("v", v), unit("huge", v, dtype="BF16", rows=Whole(), memory={"cpu": 10 << 20})]
    events: list[Any] = []
    made = target("a", plan(units), tmp_path)
    run = _Run(model, [made], Limits(400_000, 3), {}, events.append, lambda: False)
    try:
        run.run()
    finally:
        run.close()
    announced = [e for e in events if e["event"] == "oversized"]
    assert [(e["unit"], e["limit"]) for e in announced] == [("huge", 350_000)]
    assert run._credits.peak == announced[0]["needs"] > 10 << 20
    assert run._credits.used == 0
    events.clear()
    run = _Run(model, [target("b", plan(units[:2]), tmp_path)], Limits(400_000, 3), {}, events.append, lambda: False)
    try:
        run.run()
    finally:
        run.close()
    assert 0 < run._credits.peak <= 350_000
    assert not [e for e in events if e["event"] == "oversized"]


def test_credit_is_granted_to_one_who_is_alone() -> None:
    credit = Credits(10)
    assert credit.take(100, 0)
    assert not credit.take(1, 0.01)
    credit.give(100)
    assert credit.take(6, 0)
    assert not credit.take(6, 0.01)
    assert credit.take(4, 0)
    assert not credit.idle(0.01)
    credit.give(10)
    assert credit.idle(0)


SCRIPT = """
import resource, sys
from pathlib import Path
from tiny import copies, raw_model, target
from qconvd.checkpoints.base import ModelInfo, TensorInfo
from qconvd.engine.run import Limits, convert

folder = Path(sys.argv[1])
megabytes = int(sys.argv[2])
folder.mkdir()
with (folder / "w.bin").open("wb") as file:
    for i in range(megabytes):
        file.write(bytes([i % 251]) * (1 << 20))
half = megabytes << 19
names = {f"w{i}": TensorInfo(f"w{i}", "BF16", (half >> 9, 256), "w.bin", i * half, half) for i in range(2)}
model = ModelInfo(folder, "w", "raw", names, [])
targets = [target("a", copies(model, config=False), folder)]
result = convert(model, targets, Limits(64 << 20, 2), operations={}, on_event=lambda e: None, cancelled=lambda: False)
assert not [r for r in result.values() if isinstance(r, Exception)], result
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10)
"""


def test_resident_memory_depends_on_the_limit_and_not_on_the_model(tmp_path: Path) -> None:
    """A model of 300 MiB in two tensors under a limit of 64 MiB; the rest is what threads and the allocator keep."""

    def peak(megabytes: int) -> int:
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
        command = [sys.executable, "-c", SCRIPT, str(tmp_path / str(megabytes)), str(megabytes)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        shutil.rmtree(tmp_path / str(megabytes))
        assert done.returncode == 0, done.stderr
        return int(done.stdout)

    small, large = peak(2), peak(300)
    print(small, large)
    assert large < small + 64 + 32


def test_many_shards_need_many_open_files(tmp_path: Path) -> None:
    files = {f"{i}.bin": {f"w{i}": ("BF16", (2, 2))} for i in range(40)}
    model = raw_model(tmp_path / "m", files)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    others = [os.open(os.devnull, os.O_RDONLY) for _ in range(30)]
    # However many files other tests have left open: too few more for 40 shards, and for 30.
    resource.setrlimit(resource.RLIMIT_NOFILE, (sum(1 for _ in Path("/proc/self/fd").iterdir()) + 15, hard))
    try:
        made = target("a", copies(model, shards=30), tmp_path)
        assert isinstance(go(model, made)["a"], Manifest)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for descriptor in others:
            os.close(descriptor)
