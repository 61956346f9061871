"""A job's own log: what stands in it, when it is written, and that it is told when it cannot be."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from daemon_kit import Home, end, tiny_model
from qconvd.ledger import Ledger, Outcome
from qconvd.logs.job import JobLogs, path_of

TIME = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ", re.MULTILINE)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    made = Ledger(tmp_path / "ledger.sqlite")
    yield made
    made.close()


def wanted(ledger: Ledger, *labels: str, name: str = "m") -> list[str]:
    source = ledger.source_seen(f"/inbox/{name}", name, name, "0")
    wishes: list[Any] = []
    for label in labels:
        placed = SimpleNamespace(folder=f"{name}-{label}", stem="model", manifest="qconvd.json")
        wishes.append(SimpleNamespace(format=label, version="1", label=label, options={}, names=lambda *_, p=placed: p))
    return ledger.want(source.id, "everyday", wishes)


def fail(ledger: Ledger, why: str, targets: list[str]) -> None:
    ledger.make_tasks()
    (task,) = [t for t in ledger.tasks("queued") if set(t.targets) == set(targets)]
    claimed = ledger.claim(task.id, {"kind": "cpu"})
    ledger.finish(claimed.id, claimed.fence, dict.fromkeys(targets, Outcome(ok=False, reason=why)))


def test_it_is_written_when_nothing_of_the_job_goes_on(ledger: Ledger, tmp_path: Path) -> None:
    logs = JobLogs(ledger, tmp_path)
    first, second = wanted(ledger, "one", "two\x1b[31m", name="m\nx")
    ledger.cancel([first])
    logs.tick()
    assert not path_of(tmp_path, 1).exists()
    fail(ledger, "the model is\n\x1bodd", [second])
    logs.tick()
    assert TIME.sub("", path_of(tmp_path, 1).read_text()).splitlines() == [
        "job 1: m\\nx by the recipe everyday, from /inbox/m\\nx", "one is waiting to be planned",
        "two\\x1b[31m is waiting to be planned", "one is cancelled on request",
        "task 1 (plan two\\x1b[31m) started; what it wrote: 1.log", "two\\x1b[31m failed: the model is\\n\\x1bodd",
        "task 1 ended: done",
    ]  # fmt: skip
    ledger.retry([second])
    fail(ledger, "still odd", [second])
    logs.tick()
    assert path_of(tmp_path, 1).read_text().endswith(" task 2 ended: done\n")
    assert "failed: still odd\n" in path_of(tmp_path, 1).read_text()


def test_a_daemon_that_was_killed_before_it_wrote_it_writes_it_next_time(ledger: Ledger, tmp_path: Path) -> None:
    logs = JobLogs(ledger, tmp_path)
    ledger.cancel(wanted(ledger, "one"))
    logs.tick()
    path = path_of(tmp_path, 1)
    os.utime(path, (1, 1))
    path.with_name(".job-2.log.new").write_text("half of")
    ledger.cancel(wanted(ledger, "one", name="n"))
    JobLogs(ledger, tmp_path).tick()
    assert sorted(p.name for p in path.parent.iterdir()) == ["job-1.log", "job-2.log"]


def test_what_was_before_any_was_written_is_left_alone(ledger: Ledger, tmp_path: Path) -> None:
    ledger.cancel(wanted(ledger, "one"))
    JobLogs(ledger, tmp_path).tick()
    assert not path_of(tmp_path, 1).exists()


def test_that_it_cannot_be_written_is_told_and_keeps_nothing_from_going_on(
    ledger: Ledger, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "logs").write_text("in the way")
    logs = JobLogs(ledger, tmp_path)
    ledger.cancel(wanted(ledger, "one"))
    with caplog.at_level(logging.WARNING, "qconvd.logs.job"):
        logs.tick()
    (record,) = caplog.records
    assert record.getMessage() == "the log of job 1 cannot be written: File exists"
    assert record.action == "job.no_log"  # type: ignore[attr-defined]


def test_a_daemon_leaves_the_log_of_each_job(tmp_path: Path) -> None:
    home = Home(tmp_path)
    tiny_model(home.inbox / "m")
    home.start()
    home.done(1)
    path = path_of(home.state, 1)
    home.wait(path.exists, "the job's log")
    end(home)
    lines = TIME.sub("", path.read_text()).splitlines()
    assert lines[0] == f"job 1: m by the recipe everyday, from {home.inbox}/m"
    assert lines[-1] in ("task 3 ended: done", "fp16 is done") and "fp16 is verified and in its place" in lines
    assert all((home.state / "logs" / name).is_file() for name in re.findall(r"what it wrote: (\d+\.log)", path.read_text()))
