"""One model in two places, and two models of one name."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from qconvd.errors import QconvdError
from qconvd.ledger import Ledger

if TYPE_CHECKING:
    from ledger_kit import Bench, Wish

Wishes = Callable[..., "Wish"]
WAITS = "waits for the artifact that is made from /inbox/m, which holds the same model"
MADE = "made already from /inbox/m, which holds the same model"


def test_two_models_of_one_name_do_not_overwrite_each_other(bench: Bench, ledger: Ledger, wish: Wishes) -> None:
    (first,) = bench.want(wish("fp16"))
    other = bench.model("/elsewhere/M", "sha256:b", "M")
    (second,) = bench.want(wish("fp16"), source=other)
    target = ledger.target(second)
    assert (target.state, target.error["where"]) == ("failed", "/elsewhere/M")
    assert target.reason == "the artifact would overwrite that of another model, /inbox/m: both are called M-fp16"
    with pytest.raises(QconvdError, match="rename one of the two models"):
        ledger.retry([second])
    bench.to_done()
    ledger.source_gone("/inbox/m")
    assert ledger.retry([second]) == [second]
    bench.to_done()
    assert ledger.target(second).state == "done"
    assert ledger.target(first).state == "done", "names that differ in case are two places"


def test_a_model_that_moved_to_another_folder_is_not_converted_again(bench: Bench, ledger: Ledger, wish: Wishes) -> None:
    bench.want(wish("fp16"))
    bench.to_done()
    ledger.source_gone("/inbox/m")
    moved = bench.model("/other/m")
    (id,) = bench.want(wish("fp16"), source=moved)
    assert ledger.target(id).state == "done"
    assert ledger.target(id).reason == "made already from /inbox/m, which holds the same model"
    assert ledger.target(id).artifact == {"nbytes": 10}


def test_a_copy_of_a_model_is_not_in_its_way(bench: Bench, ledger: Ledger, wish: Wishes) -> None:
    (first,) = bench.want(wish("fp16"))
    bench.to_done()
    (second,) = bench.want(wish("fp16"), source=bench.model("/other/m"))
    assert ledger.target(second).state == "done"
    assert ledger.reconvert([first]) == [first]
    bench.to_done()
    assert {ledger.target(id).state for id in (first, second)} == {"done"}


def test_a_copy_waits_for_the_first_and_is_done_with_it(bench: Bench, ledger: Ledger, wish: Wishes) -> None:
    (first,) = bench.want(wish("fp16"))
    (early,) = bench.want(wish("fp16"), source=bench.model("/early/m"))
    assert (ledger.target(early).state, ledger.target(early).reason) == ("waiting", WAITS), "neither has begun"
    plan = bench.start()
    assert plan.targets == (first,)
    bench.succeed(plan, notes=["x is F16"])
    (late,) = bench.want(wish("fp16"), source=bench.model("/late/m"))
    assert (ledger.target(late).state, ledger.target(late).reason) == ("waiting", WAITS)
    bench.to_done()
    for id in (early, late):
        copy = ledger.target(id)
        assert (copy.state, copy.reason, copy.waits_for) == ("done", MADE, "")
        assert (copy.artifact, copy.plan) == (ledger.target(first).artifact, ledger.target(first).plan)
        assert ledger.tasks_of(id) == [], "nothing was done twice"
    assert [t.kind for t in ledger.tasks()] == ["plan", "convert", "verify"]


def test_a_copy_goes_on_by_itself_when_the_first_is_not_made(bench: Bench, ledger: Ledger, wish: Wishes) -> None:
    (first,) = bench.want(wish("fp16"))
    (copy,) = bench.want(wish("fp16"), source=bench.model("/copy/m"))
    task = bench.start()
    ledger.fail(task.id, task.fence, "is truncated", retry=False)
    (plan,) = ledger.make_tasks()
    assert (plan.targets, ledger.target(copy).reason, ledger.target(copy).waits_for) == ((copy,), "waiting to be planned", "")
    assert ledger.retry([first]) == [first]
    assert ledger.target(first).reason == "waits for the artifact that is made from /copy/m, which holds the same model"
    bench.to_done()
    assert {ledger.target(id).state for id in (first, copy)} == {"done"}
    assert len([t for t in ledger.tasks() if t.kind == "convert"]) == 1


@pytest.mark.parametrize("end", ["cancel", "gone", "replaced"])
def test_a_copy_does_not_wait_for_what_will_never_come(bench: Bench, ledger: Ledger, wish: Wishes, end: str) -> None:
    (first,) = bench.want(wish("fp16"))
    (copy,) = bench.want(wish("fp16"), source=bench.model("/copy/m"))
    ledger.make_tasks()
    if end == "cancel":
        ledger.cancel([first])
    elif end == "gone":
        ledger.source_gone("/inbox/m")
    else:
        bench.model(digest="sha256:b")
    bench.to_done()
    assert (ledger.target(copy).state, ledger.target(first).state == "done") == ("done", False)


def test_both_made_again_on_request_are_made_once(bench: Bench, ledger: Ledger, wish: Wishes) -> None:
    (first,) = bench.want(wish("fp16"))
    (copy,) = bench.want(wish("fp16"), source=bench.model("/copy/m"))
    bench.to_done()
    assert ledger.reconvert([copy]) == [copy]
    assert ledger.target(copy).waits_for == "", "made again although the other is done"
    bench.to_done()
    assert [t.targets for t in ledger.tasks() if t.kind == "convert"] == [(first,), (copy,)]
    assert ledger.reconvert([first, copy]) == [first, copy]
    bench.to_done()
    assert [t.targets for t in ledger.tasks() if t.kind == "convert"] == [(first,), (copy,), (first,)]
    assert {ledger.target(id).state for id in (first, copy)} == {"done"}


def test_a_copy_whose_artifact_has_another_name_waits_for_nobody(bench: Bench, ledger: Ledger, wish: Wishes) -> None:
    bench.want(wish("fp16"))
    (other,) = bench.want(wish("fp16"), source=bench.model("/copy/n", name="n"))
    assert (ledger.target(other).reason, ledger.target(other).waits_for) == ("waiting to be planned", "")
    (clash,) = bench.want(wish("fp16"), source=bench.model("/copy/M", name="M"))
    assert ledger.target(clash).reason.startswith("the artifact would overwrite that of another model, /inbox/m")
