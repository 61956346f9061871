"""Specs and results on disk, and what the ledger is told of every way in which an attempt may end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from qconvd.errors import BadCheckpoint, HubBusy, QconvdError
from qconvd.executors.base import Status
from qconvd.ledger import Ledger, Task
from qconvd.tasks import (
    EXIT_BUSY,
    EXIT_CANCELLED,
    EXIT_ERROR,
    DeviceSpec,
    LimitsSpec,
    TargetResult,
    TaskResult,
    read_result,
    read_spec,
    result_error,
    settle,
    spec_of,
    write_result,
    write_spec,
)

NOW = 5000.0
REFUSED = BadCheckpoint("is truncated", where="a.safetensors", fix="copy it again").as_dict()


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    ledger = Ledger(tmp_path / "state" / "ledger.sqlite", clock=lambda: NOW)
    yield ledger
    ledger.close()


@pytest.fixture
def task(ledger: Ledger) -> Task:
    """A claimed plan task with the targets a and b."""
    wishes = []
    for n in "ab":
        names = SimpleNamespace(folder=f"m-{n}", stem="model", manifest="qconvd.json")
        wishes.append(SimpleNamespace(format=n, version="1", label=n, options={"k": 1}, names=lambda *_, names=names: names))
    source = ledger.source_seen("/inbox/m", "sha256:a", "m", "p")
    ledger.want(source.id, "fast", wishes)
    (made,) = ledger.make_tasks()
    return ledger.claim(made.id)


def _states(ledger: Ledger) -> dict[str, tuple[str, str]]:
    return {t.format: (t.state, t.reason) for t in ledger.targets()}


def test_a_spec_survives_the_disk(ledger: Ledger, task: Task, tmp_path: Path) -> None:
    source, targets = ledger.source(task.source), [ledger.target(id) for id in task.targets]
    state, output = tmp_path / "state", tmp_path / "out"
    spec = spec_of(
        task, source, targets, output=output, state=state, limits=LimitsSpec(memory=1 << 30, threads=4),
        device=DeviceSpec(kind="cuda", id="GPU-1"), laid=lambda manifest: (manifest.name,),
    )  # fmt: skip
    path = write_spec(spec)
    assert path == state / "tasks" / task.handle / "spec.json"
    assert read_spec(path) == spec
    first = spec.targets[0]
    assert (first.work, first.folder) == (output / ".qconvd" / "work" / targets[0].id, output / "m-a")
    assert (first.options, first.recipe, first.plan_path) == ({"k": 1}, "fast", None)
    assert first.laid == (targets[0].manifest_name,)
    assert (spec.source.path, spec.source.digest, spec.fence) == (Path("/inbox/m"), "sha256:a", task.fence)
    result = TaskResult(ok=False, targets={"x": TargetResult(ok=False, error=REFUSED, retry=True, data={"n": [1]})})
    write_result(spec, result)
    assert read_result(spec.folder) == result


def test_a_spec_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(QconvdError, match="cannot be read: No such file or directory"):
        read_spec(tmp_path / "spec.json")
    (tmp_path / "spec.json").write_text("{}")
    with pytest.raises(QconvdError, match="is no task: Field required"):
        read_spec(tmp_path / "spec.json")
    assert read_result(tmp_path) is None
    (tmp_path / "result.json").write_text('{"ok": ')
    assert read_result(tmp_path) is None


def test_a_state_folder_that_cannot_be_written(ledger: Ledger, task: Task, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    spec = spec_of(
        task, ledger.source(task.source), [], output=tmp_path, state=tmp_path / "file", limits=LimitsSpec(memory=1, threads=1),
        device=DeviceSpec(), laid=ledger.laid,
    )  # fmt: skip
    with pytest.raises(QconvdError, match="cannot be written: Not a directory"):
        write_spec(spec)


@pytest.mark.parametrize("code", [0, EXIT_ERROR])
def test_each_target_has_its_own_end(ledger: Ledger, task: Task, code: int) -> None:
    a, b = task.targets
    result = TaskResult(ok=False, targets={a: TargetResult(ok=True), b: TargetResult(ok=False, error=REFUSED)})
    settle(ledger, task, Status("succeeded" if code == 0 else "failed", code), result, NOW)
    assert _states(ledger) == {"a": ("planned", "waiting to be converted"), "b": ("failed", "is truncated")}
    assert ledger.target(b).error == REFUSED


def test_what_concerns_the_whole_task_fails_all_targets_for_good(ledger: Ledger, task: Task) -> None:
    settle(ledger, task, Status("failed", EXIT_ERROR), TaskResult(ok=False, error=REFUSED), NOW)
    assert _states(ledger) == {"a": ("failed", "is truncated"), "b": ("failed", "is truncated")}


@pytest.mark.parametrize(
    ("status", "result", "reason"),
    [
        (Status("failed", -9, "was killed (out of memory?)"), None, "was killed (out of memory?)"),
        (Status("failed", -11, "crashed (Segmentation fault, signal 11)"), None, "crashed (Segmentation fault, signal 11)"),
        (
            Status("failed", 1, "ended with exit code 1"),
            TaskResult(ok=False, error=dict(result_error(IndexError("3")))),
            "IndexError: 3 (a defect of qconvd or of a plugin; the log has the traceback)",
        ),
        (Status("lost", None, "the worker is gone"), None, "the worker is gone"),
        (Status("succeeded", 0), None, "the worker ended without a result"),
        (Status("failed", 3), None, "the worker ended without a result"),
        (Status("failed", -9, "took longer than 5 s and was stopped"), None, "took longer than 5 s and was stopped"),
    ],
)
def test_a_crash_is_tried_again(ledger: Ledger, task: Task, status: Status, result: TaskResult | None, reason: str) -> None:
    settle(ledger, task, status, result, NOW)
    assert set(_states(ledger).values()) == {("waiting", f"attempt 1 of 3 failed: {reason}")}
    again = ledger.make_tasks()
    assert [t.not_before for t in again] == [NOW + 30] * 2
    assert sorted(t.targets for t in again) == sorted((id,) for id in task.targets), "each alone: one of them may be the cause"


@pytest.mark.parametrize("status", [Status("cancelled", None, "was stopped"), Status("failed", EXIT_CANCELLED)])
def test_a_stop_is_no_failure(ledger: Ledger, task: Task, status: Status) -> None:
    settle(ledger, task, status, None, NOW)
    assert {s for s, _ in _states(ledger).values()} == {"waiting"}
    assert [t.failures for t in ledger.targets()] == [0, 0]
    assert ledger.task(task.id).not_before == 0


def test_a_hub_that_cannot_answer_is_waited_for_and_that_is_no_failure(ledger: Ledger, task: Task) -> None:
    waits = []
    for seconds in (0.0, 7200.0, 0.0, 0.0, 0.0):
        error = HubBusy("the Hub is busy", seconds=seconds).as_dict()
        settle(ledger, ledger.task(task.id), Status("failed", EXIT_ERROR), TaskResult(ok=False, error=error), NOW)
        (queued,) = ledger.tasks("queued")
        waits.append(queued.not_before - NOW)
        assert {t.failures for t in ledger.targets()} == {0}
        assert queued.reason == "the Hub has to be waited for: the Hub is busy"
        ledger.claim(queued.id)
    assert waits == [30, 7200, 120, 240, 480]


def test_a_busy_work_folder_is_waited_for(ledger: Ledger, task: Task) -> None:
    settle(ledger, task, Status("failed", EXIT_BUSY), TaskResult(ok=False, error=REFUSED), NOW)
    assert ledger.task(task.id).not_before == NOW + 10
    assert [t.failures for t in ledger.targets()] == [0, 0]


def test_an_exception_without_words_has_some_anyway() -> None:
    assert result_error(RuntimeError())["what"] == "no further words"
    assert result_error(QconvdError("x", fix="y"))["fix"] == "y"
