"""The worker as the executor starts it: a process, a spec file, a result, an exit code."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from qconvd import checkpoints
from qconvd.engine.manifest import read_manifest
from qconvd.engine.plan import Device
from qconvd.errors import OutOfSpace, QconvdError, TakenAway
from qconvd.executors.base import environment, events_in
from qconvd.executors.local import LocalExecutor
from qconvd.targets import resolve_list
from qconvd.tasks import EXIT_BUSY, EXIT_CANCELLED, EXIT_ERROR, DeviceSpec, read_result, write_spec
from qconvd.worker import Outdated, _convert_target, load_plan, run
from qconvd_fp16.format import PlainCast
from qconvd_ggml.cuda import measured_on
from worker_kit import Shop


def _tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_model_goes_through_plan_convert_and_verify(tmp_path: Path, glass: Path) -> None:
    shop = Shop(tmp_path, glass, "fp16,q8_0,q4_0")
    planned = shop.step()
    sizes = {t.label: t.plan["nbytes"] for t in shop.ledger.targets("planned")}
    assert len(sizes) == 3
    for result in planned.targets.values():
        assert result.data["nbytes"] == sum(f["nbytes"] for f in result.data["files"])
        assert result.data["version"]
        assert result.data["loads_with"]
        assert result.data["memory"]["cpu"] >= result.data["memory"]["least"] > 0
        assert not any("{stem}" in f["path"] for f in result.data["files"])
    said = {t.label: (t.plan["devices"], t.plan["measured_on"]) for t in shop.ledger.targets("planned")}
    assert said["fp16"] == (["cpu"], [])
    assert said["gguf Q8_0"] == (["cpu", "cuda"], list(measured_on({"Q8_0"})))
    converted = shop.step()
    assert len(converted.targets) == 3, "one pass makes all three"
    assert not (shop.output / "glass-fp16").exists(), "nothing is visible before it is verified"
    for _ in range(3):
        (result,) = shop.step().targets.values()
        assert result.data["report"]["rows"] > 0
    assert {t.state for t in shop.ledger.targets()} == {"done"}
    for target in shop.ledger.targets():
        manifest = read_manifest(Path(target.artifact["manifest"]))
        assert manifest.nbytes == sizes[target.label] == target.artifact["nbytes"], "the plan was right to the byte"
        assert manifest.source == {"name": "glass", "identity": shop.source.digest}
        assert (manifest.recipe, manifest.format) == ("everyday", target.format)
        assert manifest.verification is not None
        folder = Path(target.artifact["folder"])
        assert [(folder / f.path).stat().st_size for f in manifest.files] == [f.bytes for f in manifest.files]
    assert sorted(p.name for p in shop.output.iterdir()) == [".qconvd", "glass-GGUF", "glass-fp16"]
    assert list((shop.output / ".qconvd" / "work").iterdir()) == []
    shop.ledger.close()


def test_events_and_the_log_share_a_channel(shop: Shop) -> None:
    shop.step()
    done = shop.run(shop.claim())
    events, _ = events_in(done.stdout)
    assert {e["event"] for e in events} == {"progress", "target-done"}
    assert events[-2]["done"] == events[-2]["total"] > 0
    assert events[-2]["target"] == shop.targets[0]


def test_a_plan_is_kept_and_used_again(shop: Shop) -> None:
    first = shop.step().targets[shop.targets[0]]
    path = Path(first.data["plan_path"])
    kept = path.stat().st_mtime_ns
    shop.ledger.cancel(shop.targets)
    shop.ledger.retry(shop.targets)
    assert shop.step().targets[shop.targets[0]] == first
    assert path.stat().st_mtime_ns == kept
    path.write_text("torn")
    shop.ledger.cancel(shop.targets)
    shop.ledger.retry(shop.targets)
    assert shop.step().targets[shop.targets[0]] == first
    assert path.read_text() != "torn"


def test_a_changed_model_is_not_taken_for_the_old_one(shop: Shop) -> None:
    config = shop.model / "config.json"
    config.write_text(config.read_text() + "\n")
    spec = shop.claim()
    done = shop.run(spec)
    assert done.returncode == EXIT_ERROR
    result = read_result(spec.folder)
    assert result is not None
    assert result.error["what"] == "the model changed after it was taken"
    assert result.error["where"] == str(shop.model)
    shop.settle(result, done.returncode)
    assert shop.ledger.target(shop.targets[0]).state == "failed"


def test_a_refusal_names_its_reason_and_leaves_the_others_alone(shop: Shop) -> None:
    spec = shop.claim()
    other = spec.targets[0].model_copy(update={"id": "zz", "format": "fp17"})
    done = shop.run(spec.model_copy(update={"targets": (other, *spec.targets)}))
    assert done.returncode == EXIT_ERROR
    result = read_result(spec.folder)
    assert result is not None
    assert result.targets[shop.targets[0]].ok
    assert result.targets["zz"].error["what"] == "no plugin provides the format 'fp17'"
    assert not result.targets["zz"].retry
    assert "fp17" in done.stderr.decode()


def test_a_format_without_kernels_for_a_gpu_is_refused_in_words(shop: Shop) -> None:
    shop.step()
    spec = shop.claim()
    spec = shop.spec(shop.task, DeviceSpec(kind="cuda", id="GPU-1"))
    assert shop.run(spec).returncode == EXIT_ERROR
    result = read_result(spec.folder)
    assert result is not None
    error = result.targets[shop.targets[0]].error
    assert (error["what"], error["fix"]) == ("the format fp16 has no kernels for cuda", "set `device: auto` or `device: cpu`")


def test_a_manifest_names_the_device_where_that_is_not_the_cpu(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    shop.step()
    spec, model = shop.claim(), checkpoints.inspect(shop.model)
    (target,) = spec.targets
    target.work.mkdir(parents=True, exist_ok=True)
    monkeypatch.setattr(PlainCast, "devices", ("cpu", "cuda"))
    monkeypatch.setattr(PlainCast, "encoder", lambda self, plan, device: None)
    assert _convert_target(target, model, spec, Device("cuda", "GPU-1")).about["device"] == "cuda"
    assert "device" not in _convert_target(target, model, spec, Device()).about


def test_a_second_worker_gets_no_lock_and_says_so(shop: Shop) -> None:
    shop.step()
    spec = shop.claim()
    work = shop.work(shop.targets[0])
    work.mkdir(parents=True)
    lock = os.open(work / "lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX)
    done = shop.run(spec)
    assert done.returncode == EXIT_BUSY
    assert "another worker is at this target" in done.stderr.decode()
    assert [p.name for p in work.iterdir()] == ["lock"]
    os.close(lock)
    assert shop.run(spec).returncode == 0


def test_a_child_of_a_dead_worker_keeps_the_lock(tmp_path: Path) -> None:
    code = (
        "import os, sys, time; from pathlib import Path; from qconvd.worker import _lock\n"
        "_lock(Path(sys.argv[1]))\n"
        "if os.fork() == 0: print(os.getpid(), flush=True); time.sleep(600)\n"
        "else: os._exit(0)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "work")], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    parent.wait()
    from qconvd.worker import Busy, _lock

    try:
        with pytest.raises(Busy):
            _lock(tmp_path / "work")
    finally:
        os.kill(child, signal.SIGKILL)
        parent.stdout.close()


def test_sigterm_stops_a_conversion_and_the_next_one_goes_on(tmp_path: Path, smollm2: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for file in smollm2.iterdir():
        (model / file.name).symlink_to(file)
    shop = Shop(tmp_path / "shop", model, "f32")
    shop.step()
    spec = shop.claim()
    worker = subprocess.Popen(
        [sys.executable, "-P", "-m", "qconvd.worker", str(write_spec(spec))],
        stdout=subprocess.PIPE,
        env=environment("cpu", "", 1),
    )
    assert worker.stdout is not None
    for line in worker.stdout:
        if b'"progress"' in line and json.loads(line[4:])["done"] > 0:
            break
    worker.terminate()
    rest = worker.stdout.read()
    worker.stdout.close()
    assert worker.wait() == EXIT_CANCELLED
    assert b"target-done" not in rest
    assert not (spec.folder / "result.json").exists()
    journal = (shop.work(shop.targets[0]) / "journal.jsonl").read_bytes()
    assert journal.count(b"\n") > 1
    shop.settle(None, EXIT_CANCELLED)
    assert shop.ledger.target(shop.targets[0]).failures == 0
    for _ in range(2):
        assert shop.step().ok
    assert shop.ledger.target(shop.targets[0]).state == "done"
    shop.ledger.close()


def test_a_damaged_artifact_is_not_let_through_and_is_made_anew_on_retry(shop: Shop) -> None:
    shop.step()
    shop.step()
    (id,) = shop.targets
    data = shop.work(id) / "files" / "model.safetensors"
    content = bytearray(data.read_bytes())
    content[-1] ^= 1
    data.write_bytes(content)
    result = shop.step()
    assert not result.ok
    assert result.targets[id].error["what"].startswith("has other bytes than were written, at ")
    assert shop.ledger.target(id).state == "failed"
    assert not (shop.output / "glass-fp16").exists()
    assert not (shop.work(id) / "files").exists()
    shop.ledger.retry([id])
    for _ in range(3):
        assert shop.step().ok
    assert shop.ledger.target(id).state == "done"


def test_a_commit_that_could_not_report_is_recognised(shop: Shop) -> None:
    shop.step()
    shop.step()
    spec = shop.claim()
    assert shop.run(spec).returncode == 0
    first, tree = read_result(spec.folder), _tree(shop.output)
    assert shop.run(spec).returncode == 0
    assert read_result(spec.folder) == first
    assert _tree(shop.output) == tree
    shop.work(shop.targets[0]).mkdir(parents=True)
    (shop.work(shop.targets[0]) / "lock").touch()
    assert shop.run(spec).returncode == 0
    assert read_result(spec.folder) == first
    assert _tree(shop.output) == tree


def test_a_work_folder_that_vanished_is_an_error_and_not_a_success(shop: Shop) -> None:
    shop.step()
    shop.step()
    shutil.rmtree(shop.work(shop.targets[0]))
    result = shop.step()
    assert result.targets[shop.targets[0]].error["what"] == "there is no finished artifact to verify"


def test_a_zombie_may_not_commit(shop: Shop) -> None:
    shop.step()
    shop.step()
    old = shop.claim()
    shop.ledger.release(shop.task.id, shop.task.fence, "lost sight of it")
    new = shop.claim()
    done = shop.run(old)
    assert done.returncode == EXIT_CANCELLED
    assert f"task {old.task} is not this attempt's any more" in done.stderr.decode()
    assert not (shop.output / "glass-fp16").exists()
    shop.ledger.cancel(shop.targets)
    with pytest.raises(Outdated):
        run(new, lambda _: None, lambda: False)
    assert not (shop.output / "glass-fp16").exists()


def test_a_new_version_takes_the_place_of_the_old_one(shop: Shop) -> None:
    for _ in range(3):
        assert shop.step().ok
    before = _tree(shop.output / "glass-fp16")
    config = shop.model / "tokenizer_config.json"
    config.write_text(config.read_text() + "\n")
    info = checkpoints.inspect(shop.model)
    shop.source = shop.ledger.source_seen(str(shop.model), checkpoints.identity(info), info.name, "q")
    shop.ledger.want(shop.source.id, "everyday", resolve_list("fp16"))
    for _ in range(3):
        assert shop.step().ok
    after = _tree(shop.output / "glass-fp16")
    assert after.keys() == before.keys()
    assert {n for n in after if after[n] != before[n]} == {"tokenizer_config.json", "qconvd.json"}
    assert [t.state for t in shop.ledger.targets()] == ["superseded", "done"]


@pytest.mark.parametrize("change", [lambda text: text[:-20], lambda text: text.replace('"files"', '"flies"')])
def test_an_artifact_whose_manifest_was_damaged_is_made_again_on_request(shop: Shop, change: Callable[[str], str]) -> None:
    for _ in range(3):
        assert shop.step().ok
    folder = shop.output / "glass-fp16"
    before = _tree(folder)
    (folder / "qconvd.json").write_text(change((folder / "qconvd.json").read_text()))
    (folder / "mine.txt").write_text("a person's")
    shop.ledger.reconvert(shop.targets)
    for _ in range(3):
        assert shop.step().ok
    assert _tree(folder) == {**before, "mine.txt": b"a person's"}


@pytest.mark.parametrize("done", [0, 1, 2])
def test_what_is_somebody_elses_is_found_before_anything_is_converted(tmp_path: Path, glass: Path, done: int) -> None:
    shop = Shop(tmp_path, glass, "fp16,q8_0")
    for _ in range(done):
        assert shop.step().ok
    (shop.output / "glass-fp16").mkdir(parents=True)
    (shop.output / "glass-fp16" / "theirs.txt").write_text("theirs")
    (shop.output / "glass-GGUF" / ".qconvd").mkdir(parents=True)
    (shop.output / "glass-GGUF" / "glass-Q8_0.gguf").write_text("theirs")
    results = [shop.step() for _ in range(2 if done == 2 else 1)]
    errors = {k: r.error for result in results for k, r in result.targets.items()}
    assert [errors[t] for t in shop.targets] == [
        {
            "error": "QconvdError", "what": f"is there already and {why}; it is left as it is",
            "where": str(shop.output / place), "fix": "move it away, or give the target another name",
        }
        for why, place in (
            ("was not made by qconvd", "glass-fp16"), ("belongs to something else", "glass-GGUF/glass-Q8_0.gguf")
        )
    ]  # fmt: skip
    assert {t.state for t in shop.ledger.targets()} == {"failed"}
    written = {p.name for p in (shop.output / ".qconvd").rglob("model.safetensors")}
    assert written == ({"model.safetensors"} if done == 2 else set())
    shop.ledger.close()


def test_a_full_disk_is_tried_again_and_leaves_nothing(shop: Shop) -> None:
    shop.step()
    spec = shop.claim()
    done = shop.run(spec, "bash", "-c", 'ulimit -f 1000; trap "" XFSZ; exec "$@"', "limited")
    result = read_result(spec.folder)
    assert result is not None, done.stderr.decode()
    assert not result.ok
    (target,) = result.targets.values()
    assert "File too large" in target.error["what"] or target.error["error"] == "OutOfSpace"
    assert not (shop.work(spec.targets[0].id) / "files" / "qconvd.json").exists()


def test_out_of_space_is_no_lasting_refusal(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    from qconvd.worker import _failed

    spec = shop.claim()
    (target,) = spec.targets
    assert _failed(spec, target, OutOfSpace("full")).retry
    assert _failed(spec, target, TakenAway("gone")).retry
    assert not _failed(spec, target, QconvdError("no", fix="yes")).retry
    assert capsys.readouterr().err == "fp16: full\nfp16: gone\nfp16: no\n  yes\n"
    assert _failed(spec, target, IndexError("3")).retry
    assert capsys.readouterr().err.startswith("fp16 met a defect:\nIndexError: 3")


def test_the_log_tells_in_words_what_is_made_and_what_the_plan_has_to_say(tmp_path: Path, glass: Path) -> None:
    shop = Shop(tmp_path, glass, "q8_0")
    said = []
    for _ in range(3):
        spec = shop.claim()
        done = shop.run(spec)
        shop.settle(read_result(spec.folder), done.returncode)
        # Whether kernels are still to be compiled depends on what ran before.
        lines = [line for line in done.stdout.decode().splitlines() if ": compiling " not in line]
        said += [line for line in lines if not line.startswith("@@q ")]
    notes = [f"gguf Q8_0: {note}" for note in shop.ledger.targets()[0].plan["notes"]]
    assert notes[0].startswith("gguf Q8_0: 4 of 38 tensors of the Q8_0 file are F16 because rows of 341 weights")
    assert said == [
        "gguf Q8_0: planned, 1.0 MiB (1,097,696 bytes)", *notes, "gguf Q8_0: converted, 1.0 MiB, error 0.42 %",
        f"gguf Q8_0: verified and in its place, {shop.output}/glass-GGUF",
    ]  # fmt: skip
    shop.ledger.close()


def test_kernels_are_compiled_before_speed_is_reckoned_and_the_log_says_so_once(
    tmp_path: Path, glass: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QCONVD_CACHE_DIR", str(tmp_path / "cache"))
    for attempt, sentences in enumerate((["compiling F16 (once)", "compiling F32 (once)"], [])):
        shop = Shop(tmp_path / str(attempt), glass, "gguf: f16")
        shop.step()
        done = shop.run(shop.claim())
        events, _ = events_in(done.stdout)
        assert sorted(e["doing"] for e in events if e["event"] == "preparing") == sentences
        assert [e["event"] for e in events[: len(sentences) + 1]] == ["preparing"] * len(sentences) + ["progress"]
        said = [line for line in done.stdout.decode().splitlines() if "compiling" in line and not line.startswith("@@q ")]
        assert sorted(said) == [f"gguf F16: {sentence}" for sentence in sentences]
        shop.ledger.close()


def test_an_encoder_that_cannot_be_made_ready_fails_its_target_alone(
    tmp_path: Path, glass: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def prepare(self: object, plan: object) -> Iterator[str]:
        yield "computing a table"
        raise QconvdError("there is no room for the table")

    shop = Shop(tmp_path, glass, "fp16,q8_0")
    shop.step()
    monkeypatch.setattr("qconvd_gguf.encoder.BlockEncoder.prepare", prepare)
    result = run(shop.claim(), lambda _: None, lambda: False)
    assert not result.ok
    assert [result.targets[id].ok for id in shop.targets] == [True, False]
    assert result.targets[shop.targets[1]].error["what"] == "there is no room for the table"
    shop.ledger.close()


def test_a_defect_keeps_its_traceback_in_the_log(shop: Shop) -> None:
    shop.step()
    spec = shop.claim()
    broken = spec.targets[0].model_copy(update={"options": {"no-such-option": 1}})
    plan = spec.model_copy(update={"kind": "plan", "targets": (broken,)})
    done = shop.run(plan)
    result = read_result(spec.folder)
    assert result is not None
    (target,) = result.targets.values()
    assert target.retry
    assert target.error["error"] == "ValidationError"
    assert "(the log has the traceback)" in target.error["what"]
    assert b"Traceback" in done.stderr


def test_without_a_ledger_nobody_asks_for_the_fence(shop: Shop, tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    shop.claim()
    plan: Path | None = None
    for kind in ("plan", "convert", "verify"):
        spec = shop.spec(shop.task)
        target = spec.targets[0].model_copy(update={"work": alone / "work", "folder": alone / "out", "plan_path": plan})
        spec = spec.model_copy(update={"kind": kind, "state": alone / "state", "targets": (target,)})
        result = run(spec, lambda _: None, lambda: False)
        assert result.ok, result
        if kind == "plan":
            plan = Path(result.targets[target.id].data["plan_path"])
    assert (alone / "out" / "qconvd.json").is_file()


def test_the_executor_runs_it(shop: Shop) -> None:
    executor = LocalExecutor(shop.state)
    spec = shop.claim()
    handle = executor.submit(write_spec(spec), spec.attempt, environment("cpu", "", 1))
    while not executor.poll(handle).ended:
        time.sleep(0.02)
    assert executor.poll(handle).state == "succeeded", executor.logs(handle)
    assert [e["event"] for e in executor.events(handle, 0)[0]] == ["planned"]
    while executor._children:
        executor.poll(handle)


def test_a_target_without_a_plan_says_so(shop: Shop) -> None:
    spec = shop.claim()
    with pytest.raises(QconvdError, match="the target was not planned"):
        load_plan(spec.targets[0])
    gone = spec.targets[0].model_copy(update={"plan_path": shop.state / "gone.json"})
    with pytest.raises(QconvdError, match="the plan cannot be read"):
        load_plan(gone)
