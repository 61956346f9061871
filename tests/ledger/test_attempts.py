"""Tasks that end otherwise than well: late, by a crash, by bad input, stopped, cancelled."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from qconvd.errors import BadCheckpoint
from qconvd.ledger import RETRIES, Ledger, Outcome, StaleFence, backoff

if TYPE_CHECKING:
    from ledger_kit import Bench, Clock, Wish

Wishes = Callable[..., "Wish"]


def test_who_comes_late_may_not_finish(bench: Bench, ledger: Ledger, wish: Wishes) -> None:
    (id,) = bench.want(wish("fp16"))
    old = bench.start()
    ledger.release(old.id, old.fence, "the daemon stopped")
    new = bench.start()
    assert new.fence > old.fence
    assert (new.id, new.attempt, new.handle) == (old.id, 2, f"{old.id}.2")
    for late in (
        lambda: bench.succeed(old),
        lambda: ledger.fail(old.id, old.fence, "x", retry=True),
        lambda: ledger.release(old.id, old.fence, "x"),
        lambda: ledger.renew(old.id, old.fence),
    ):
        with pytest.raises(StaleFence, match=f"task {old.id} is running and belongs to attempt 2: fence {old.fence} does not"):
            late()
    with pytest.raises(StaleFence, match="is not queued, so it cannot be started"):
        ledger.claim(new.id)
    bench.succeed(new)
    with pytest.raises(StaleFence, match="is done"):
        bench.succeed(new)
    assert ledger.target(id).state == "planned"


def test_a_crash_is_tried_again_with_growing_delays_and_then_fails(
    bench: Bench, ledger: Ledger, clock: Clock, wish: Wishes
) -> None:
    (id,) = bench.want(wish("fp16"))
    bench.succeed(bench.start())
    for attempt in range(1, RETRIES):
        task = bench.start("convert")
        assert task.attempt == attempt
        ledger.fail(task.id, task.fence, "was killed (out of memory?)", retry=True)
        target = ledger.target(id)
        assert (target.state, target.not_before) == ("planned", clock.now + backoff(attempt))
        assert target.reason == f"attempt {attempt} of {RETRIES} failed: was killed (out of memory?)"
        assert ledger.task(task.id).state == "queued"
        assert ledger.task(task.id).not_before == target.not_before
        clock.now = target.not_before
    task = bench.start("convert")
    ledger.fail(task.id, task.fence, "was killed (out of memory?)", retry=True)
    target = ledger.target(id)
    assert (target.state, target.reason) == ("failed", "failed 3 times, the last time: was killed (out of memory?)")
    assert ledger.task(task.id).state == "failed"
    assert ledger.make_tasks() == []
    assert [backoff(n) for n in (1, 2, 3, 20)] == [30, 60, 120, 3600]


def test_bad_input_is_not_tried_again_until_asked(bench: Bench, ledger: Ledger, wish: Wishes) -> None:
    (id,) = bench.want(wish("fp16"))
    error = BadCheckpoint("is truncated", where="model.safetensors", fix="copy it again")
    task = bench.start()
    ledger.finish(task.id, task.fence, {id: Outcome(False, error.what, error.as_dict())})
    target = ledger.target(id)
    assert (target.state, target.reason, target.error["fix"]) == ("failed", "is truncated", "copy it again")
    assert ledger.make_tasks() == []
    assert bench.want(wish("fp16")) == []
    assert ledger.retry([id]) == [id]
    assert (ledger.target(id).state, ledger.target(id).failures, ledger.target(id).error) == ("waiting", 0, {})
    bench.to_done()
    assert ledger.target(id).state == "done"
    assert ledger.retry([id]) == [], "retry leaves what is done alone"


def test_one_target_of_a_task_fails_and_the_others_go_on(bench: Bench, ledger: Ledger, wish: Wishes) -> None:
    good, bad, crashed, silent = bench.want(wish("a"), wish("b"), wish("c"), wish("d"))
    bench.succeed(bench.start())
    task = bench.start("convert")
    ledger.finish(
        task.id,
        task.fence,
        {good: Outcome(True), bad: Outcome(False, "overflows fp16"), crashed: Outcome(False, "IndexError: 3", retry=True)},
    )
    assert bench.states() == {good: "verifying", bad: "failed", crashed: "planned", silent: "planned"}
    assert ledger.target(silent).reason.endswith("the worker ended without a word about this target")
    kinds = {(t.kind, t.targets) for t in ledger.make_tasks()}
    assert kinds == {("verify", (good,)), ("convert", (crashed,)), ("convert", (silent,))}


def test_after_a_crash_each_target_is_tried_alone(bench: Bench, ledger: Ledger, clock: Clock, wish: Wishes) -> None:
    good, deadly = bench.want(wish("a"), wish("b"))
    together = bench.start("plan")
    ledger.fail(together.id, together.fence, "was killed (out of memory?)", retry=True)
    assert ledger.task(together.id).state == "failed"
    assert sorted(t.targets for t in ledger.make_tasks()) == sorted([(good,), (deadly,)])
    for _ in range(1, RETRIES):
        clock.now += backoff(RETRIES)
        for task in ledger.tasks("queued"):
            held = ledger.claim(task.id)
            if held.targets == (deadly,):
                ledger.fail(held.id, held.fence, "was killed (out of memory?)", retry=True)
            else:
                bench.succeed(held)
    assert bench.states() == {good: "planned", deadly: "failed"}


@pytest.mark.parametrize("before_the_tasks", [True, False])
def test_a_clock_that_is_set_back_makes_no_wait_longer(
    bench: Bench, ledger: Ledger, clock: Clock, wish: Wishes, before_the_tasks: bool
) -> None:
    bench.want(wish("a"), wish("b"))
    task = bench.start("plan")
    error = {"what": "the disk is full"}
    ledger.finish(task.id, task.fence, dict.fromkeys(task.targets, Outcome(False, "the disk is full", error, retry=True)))
    if not before_the_tasks:
        ledger.make_tasks()
    clock.now -= 5 * 86400
    ledger.make_tasks()
    assert [t.not_before for t in ledger.tasks("queued")] == [clock.now + backoff(1)], "both go on together"
    assert {t.not_before for t in ledger.targets()} == {clock.now + backoff(1)}
    clock.now += backoff(1)
    ledger.make_tasks()
    assert bench.start("plan").targets == task.targets, "and what began in time is left as it is"


def test_what_goes_down_with_the_daemon_stays_together(bench: Bench, ledger: Ledger, clock: Clock, wish: Wishes) -> None:
    bench.want(wish("a"), wish("b"))
    task = bench.start("plan")
    ledger.fail(task.id, task.fence, "the worker was killed together with the daemon", retry=True, at=clock.now)
    assert ledger.task(task.id).state == "queued"
    assert ledger.make_tasks() == []


def test_a_stop_is_no_failure(bench: Bench, ledger: Ledger, wish: Wishes) -> None:
    (id,) = bench.want(wish("fp16"))
    bench.succeed(bench.start())
    for _ in range(RETRIES + 2):
        task = bench.start("convert")
        ledger.release(task.id, task.fence, "interrupted: the daemon stopped")
    assert (ledger.target(id).state, ledger.target(id).failures) == ("planned", 0)
    assert ledger.target(id).reason == "interrupted: the daemon stopped"


def test_cancel_while_waiting_and_while_running(bench: Bench, ledger: Ledger, wish: Wishes) -> None:
    a, b = bench.want(wish("a"), wish("b"))
    ledger.make_tasks()
    assert ledger.cancel([a]) == [a]
    assert [t.targets for t in ledger.tasks("queued")] == [(b,)]
    bench.succeed(bench.start())
    task = bench.start("convert")
    assert ledger.unwanted() == []
    ledger.cancel([b])
    assert [t.id for t in ledger.unwanted()] == [task.id]
    ledger.release(task.id, task.fence, "stopped")
    assert ledger.task(task.id).state == "cancelled"
    assert bench.states() == {a: "cancelled", b: "cancelled"}
    assert (ledger.unwanted(), ledger.make_tasks(), ledger.cancel([a, b])) == ([], [], [])
    assert bench.want(wish("a"), wish("b")) == [], "what was cancelled is not begun again by the next scan"
    assert ledger.retry([a]) == [a]


def test_cancelling_one_of_two_running_targets_lets_the_other_go_on(bench: Bench, ledger: Ledger, wish: Wishes) -> None:
    a, b = bench.want(wish("a"), wish("b"))
    bench.succeed(bench.start())
    task = bench.start("convert")
    ledger.cancel([a])
    ledger.release(task.id, task.fence, "stopped for another target")
    again = bench.start("convert")
    assert (again.id, again.attempt, again.targets) == (task.id, 2, (b,))
    assert ledger.unwanted() == []
    bench.succeed(again)
    assert bench.states() == {a: "cancelled", b: "verifying"}


def test_a_target_cancelled_too_late_to_stop_stays_cancelled(bench: Bench, ledger: Ledger, wish: Wishes) -> None:
    (id,) = bench.want(wish("a"))
    bench.succeed(bench.start())
    task = bench.start("convert")
    ledger.cancel([id])
    bench.succeed(task)
    assert ledger.target(id).state == "cancelled"


def test_a_retry_before_the_cancelled_worker_ended_waits_for_it(bench: Bench, ledger: Ledger, wish: Wishes) -> None:
    (id,) = bench.want(wish("a"))
    bench.succeed(bench.start())
    task = bench.start("convert")
    ledger.cancel([id])
    ledger.retry([id])
    assert ledger.make_tasks() == [], "its old task is still open"
    bench.succeed(task)
    assert ledger.target(id).state == "waiting"
    bench.to_done()
    assert ledger.target(id).state == "done"
