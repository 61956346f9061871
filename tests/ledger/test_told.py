"""A reason is told with the place that it speaks of, and with no more of it than somebody needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from qconvd.ledger import Ledger, Outcome

if TYPE_CHECKING:
    from ledger_kit import Bench, Wish


@pytest.mark.parametrize(
    ("where", "told"),
    [
        ("", "is truncated"),
        ("/inbox/m", "is truncated"),
        ("/inbox/m/model.safetensors", "model.safetensors: is truncated"),
        ("/inbox/mistral/x", "/inbox/mistral/x: is truncated"),
        ("/out/m-fp16", "m-fp16: is truncated"),
        ("/out/m-fp16/sub/model.safetensors", "m-fp16/sub/model.safetensors: is truncated"),
        ("/out/.qconvd/work/m-fp16/files", "/out/.qconvd/work/m-fp16/files: is truncated"),
        ("fp16", "is truncated"),
        ("model.norm.weight", "model.norm.weight: is truncated"),
    ],
)
def test_the_place_of_a_failure(bench: Bench, wish: type[Wish], ledger: Ledger, where: str, told: str) -> None:
    bench.want(wish("fp16"))
    error = {"error": "QconvdError", "what": "is truncated", "where": where, "fix": ""}
    for attempt, retry in (("attempt 1 of 3 failed: ", True), ("", False)):
        task = bench.start("plan")
        outcome = Outcome(False, "is truncated", error, retry=retry)
        ledger.finish(task.id, task.fence, dict.fromkeys(task.targets, outcome))
        (target,) = ledger.targets()
        assert target.told(ledger.source(target.source)) == ledger.jobs()[0].told == f"{attempt}{told}"
        bench.clock.now += 60
    assert ledger.jobs()[0].reason == "is truncated"


def test_a_later_reason_has_no_place(bench: Bench, wish: type[Wish], ledger: Ledger) -> None:
    bench.want(wish("fp16"))
    task = bench.start("plan")
    error = {"what": "is truncated", "where": "/elsewhere"}
    ledger.finish(task.id, task.fence, {id: Outcome(False, "is truncated", error, retry=True) for id in task.targets})
    ledger.cancel(task.targets)
    assert ledger.jobs()[0].told == "cancelled on request"
