"""How the end of a task is told."""

from __future__ import annotations

import pytest

from qconvd.executors.base import Status
from qconvd.tasks import EXIT_BUSY, EXIT_CANCELLED, EXIT_ERROR, TargetResult, TaskResult
from qconvd.work import how_it_ended

GOOD, BAD = TargetResult(ok=True), TargetResult(ok=False, error={"what": "overflows"})


@pytest.mark.parametrize(
    ("status", "result", "words"),
    [
        (Status("succeeded", 0), TaskResult(ok=True, targets={"a": GOOD}), "is done"),
        (
            Status("failed", EXIT_ERROR, "ended with exit code 3"),
            TaskResult(ok=False, targets={"a": GOOD, "b": BAD, "c": GOOD}),
            "did 2 of 3 targets; 1 failed",
        ),
        (Status("failed", EXIT_ERROR, "ended with exit code 3"), TaskResult(ok=False, targets={"a": BAD}), "failed"),
        (
            Status("failed", EXIT_ERROR, "ended with exit code 3"),
            TaskResult(ok=False, error={"what": "the model is gone"}),
            "failed: the model is gone",
        ),
        (Status("failed", -9, "was killed (out of memory?)"), None, "failed: was killed (out of memory?)"),
        (Status("failed", EXIT_BUSY, "ended with exit code 5"), None, "found another worker at its targets"),
        (Status("failed", EXIT_CANCELLED, "ended with exit code 4"), None, "was stopped"),
        (Status("cancelled", None, "was stopped"), None, "was stopped"),
        (Status("lost", None, "the worker is gone"), None, "is lost: the worker is gone"),
    ],
)
def test_the_end_of_a_task_in_words(status: Status, result: TaskResult | None, words: str) -> None:
    assert how_it_ended(status, result) == words
