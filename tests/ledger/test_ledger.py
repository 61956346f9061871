"""A target's way through the ledger, and every side road."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import BaseModel

from qconvd.errors import BadCheckpoint, QconvdError
from qconvd.ledger import RETRIES, Ledger, Outcome, StaleFence, backoff, spec_digest

if TYPE_CHECKING:
    from conftest import Bench, Clock, Wish

Wishes = Callable[..., "Wish"]


def test_a_target_goes_its_way_and_the_history_tells_every_step(bench: Bench, ledger: Ledger, wish: Wishes) -> None:
    (id,) = bench.want(wish("fp16"))
    plan = bench.start("plan")
    assert (plan.kind, plan.attempt, plan.handle, plan.targets) == ("plan", 1, f"{plan.id}.1", (id,))
    assert ledger.target(id).reason == "planning"
    bench.succeed(plan, nbytes=100, version="2", memory={"cpu": 5})
    assert (ledger.target(id).state, ledger.target(id).version, ledger.target(id).plan["nbytes"]) == ("planned", "2", 100)
    convert = bench.start("convert")
    assert convert.need["disk"] == 100
    assert ledger.target(id).state == "converting"
    bench.succeed(convert)
    assert ledger.target(id).state == "verifying"
    bench.succeed(bench.start("verify"), manifest="/out/m-fp16/qconvd.json")
    done = ledger.target(id)
    assert (done.state, done.artifact["manifest"]) == ("done", "/out/m-fp16/qconvd.json")
    steps = [(e.from_state, e.to_state) for e in ledger.history(target=id)]
    assert steps == [
        ("", "waiting"), ("waiting", "planned"), ("planned", "converting"), ("converting", "verifying"),
        ("verifying", "ready"), ("ready", "done"),
    ]  # fmt: skip
    assert all(e.reason and e.at for e in ledger.history(target=id))
    assert ledger.make_tasks() == []
    assert [t.state for t in ledger.tasks_of(id)] == ["done"] * 3


def test_nothing_is_wanted_twice_and_a_new_target_makes_only_itself(bench: Bench, ledger: Ledger, wish: Wishes) -> None:
    bench.want(wish("fp16"), wish("gguf", {"types": ["q8_0"]}))
    bench.to_done()
    assert bench.want(wish("fp16"), wish("gguf", {"types": ["q8_0"]})) == []
    assert bench.want(wish("fp16", version="9")) == [], "a plugin's upgrade makes nothing anew by itself"
    (new,) = bench.want(wish("fp16"), wish("gguf", {"types": ["q8_0"]}), wish("gguf", {"types": ["q4_0"]}))
    (task,) = ledger.make_tasks()
    assert (task.kind, task.targets) == ("plan", (new,))


def test_one_target_may_be_wanted_by_two_recipes_and_each_has_its_job(bench: Bench, ledger: Ledger, wish: Wishes) -> None:
    (shared,) = bench.want(wish("fp16"), recipe="a")
    (own,) = bench.want(wish("fp16"), wish("int8"), recipe="b")
    a, b = ledger.jobs()
    assert (a.recipe, [t.id for t in a.targets]) == ("a", [shared])
    assert (b.recipe, [t.id for t in b.targets]) == ("b", [shared, own])
    assert ledger.target(shared).recipes == ("a", "b")
    assert [t.id for t in ledger.find(str(b.id))] == [shared, own]
    assert [t.id for t in ledger.find(own)] == [own]
    assert ledger.job(str(b.id)).id == b.id


def test_what_a_recipe_no_longer_wants_is_superseded_unless_another_wants_it_or_it_is_done(
    bench: Bench, ledger: Ledger, wish: Wishes
) -> None:
    (done,) = bench.want(wish("done"))
    bench.to_done()
    both, one = bench.want(wish("done"), wish("both"), wish("one"), recipe="everyday")
    bench.want(wish("both"), recipe="other")
    ledger.make_tasks()
    bench.want(recipe="everyday")
    assert (ledger.target(done).state, ledger.target(both).state) == ("done", "waiting")
    assert (ledger.target(one).state, ledger.target(one).reason) == (
        "superseded",
        "the recipe everyday does not want it any more",
    )
    assert [t.targets for t in ledger.tasks("queued")] == [(both,)]
    (again,) = bench.want(wish("done"), wish("one"), recipe="everyday")
    assert again != one, "wanted again, it is a new target"


def test_the_digest_leaves_out_defaults_versions_and_the_device() -> None:
    class Options(BaseModel):
        types: tuple[str, ...] = ()
        device: str = "auto"
        new: int = 3

    class Target:
        format, version, label = "gguf", "7", "gguf"
        options = Options(types=("q8_0",), device="cpu")

    from qconvd.ledger import options_of

    assert options_of(Target) == {"types": ["q8_0"], "device": "cpu"}
    assert spec_digest("gguf", {"types": ["q8_0"], "device": "cpu"}) == spec_digest("gguf", {"types": ["q8_0"]})
    assert spec_digest("gguf", {"types": ["q8_0"]}) != spec_digest("gguf", {"types": ["q4_0"]})
    assert spec_digest("a", {}) != spec_digest("b", {})


def test_a_waiting_target_follows_the_recipe_to_another_device(bench: Bench, ledger: Ledger, wish: Wishes) -> None:
    (id,) = bench.want(wish("gptq", {"device": "cuda"}))
    bench.succeed(bench.start("plan"))
    (task,) = ledger.make_tasks()
    assert task.device == "cuda"
    assert bench.want(wish("gptq", {"device": "cpu"})) == []
    assert [t.device for t in ledger.make_tasks()] == ["cpu"]
    assert ledger.task(task.id).state == "cancelled"
    assert ledger.target(id).device == "cpu"


def test_convert_tasks_group_a_sources_targets_by_device_class(bench: Bench, ledger: Ledger, wish: Wishes) -> None:
    wishes = wish("fp16"), wish("q8_0"), wish("gptq", {"device": "cuda"}), wish("auto"), wish("never-measured")
    a, b, c, d, e = bench.want(*wishes)
    plan = bench.start("plan")
    assert set(plan.targets) == {a, b, c, d, e}
    said = {d: {"devices": ["cpu", "cuda"], "measured_on": ["L4"]}, e: {"devices": ["cpu", "cuda"], "measured_on": []}}
    ledger.finish(plan.id, plan.fence, {t: Outcome(True, data=said.get(t, {"devices": ["cpu"]})) for t in plan.targets})
    assert [(t.device, t.targets) for t in ledger.make_tasks()] == [("cpu", (a, b, e)), ("cuda", (c,)), ("auto", (d,))]
    assert ledger.make_tasks() == []


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


def test_a_changed_model_is_a_new_version(bench: Bench, ledger: Ledger, wish: Wishes) -> None:
    done, failed, running = bench.want(wish("done"), wish("failed"), wish("running"))
    task = bench.start()
    ledger.finish(task.id, task.fence, {done: Outcome(True), failed: Outcome(False, "no"), running: Outcome(True)})
    ledger.cancel([running])
    bench.to_done()
    ledger.retry([running])
    running_task = bench.start()
    first = bench.model()
    second = bench.model(digest="sha256:b")
    assert (first.version, second.version, ledger.source(first.id).state) == (1, 2, "replaced")
    assert bench.states() == {done: "done", failed: "superseded", running: "superseded"}
    assert ledger.target(failed).reason == "the model changed; this was version 1"
    assert [t.id for t in ledger.unwanted()] == [running_task.id]
    (new,) = bench.want(wish("done"), source=second)
    assert len(ledger.jobs()) == 2
    ledger.release(running_task.id, running_task.fence, "stopped")
    bench.to_done()
    assert (ledger.target(new).state, ledger.target(done).state) == ("done", "superseded")
    assert ledger.target(done).reason == f"the artifact of target {new} took its place"


def test_a_model_that_changes_back_is_converted_again(bench: Bench, wish: Wishes) -> None:
    for digest, version in (("sha256:a", 1), ("sha256:b", 2), ("sha256:a", 3)):
        source = bench.model(digest=digest)
        assert source.version == version
        assert len(bench.want(wish("fp16"), source=source)) == 1
        bench.to_done()


def test_a_model_that_is_only_touched_stays_the_same(bench: Bench, ledger: Ledger, wish: Wishes) -> None:
    first = bench.model()
    bench.want(wish("fp16"))
    touched = ledger.source_seen("/inbox/m", "sha256:a", "m", "other print")
    assert (touched.id, touched.fingerprint) == (first.id, "other print")
    assert bench.want(wish("fp16")) == []


def test_a_model_removed_while_waiting_and_put_back(bench: Bench, ledger: Ledger, wish: Wishes) -> None:
    (id,) = bench.want(wish("fp16"))
    ledger.make_tasks()
    ledger.source_gone("/inbox/m", "the model was removed before it was converted")
    ledger.source_gone("/inbox/m")
    ledger.source_gone("/inbox/never")
    assert (ledger.target(id).state, ledger.target(id).reason) == (
        "superseded",
        "the model was removed before it was converted",
    )
    assert ledger.tasks("queued") == []
    source = ledger.source_at("/inbox/m")
    assert source is not None
    assert source.state == "gone"
    assert bench.model().id == source.id
    assert len(bench.want(wish("fp16"))) == 1
    bench.to_done()
    ledger.source_gone("/inbox/m", "moved away as the recipe says")
    bench.model()
    assert bench.want(wish("fp16")) == [], "what was done before is not done again"


def test_a_refused_model_is_known_with_its_reason_until_it_is_mended(bench: Bench, ledger: Ledger) -> None:
    refused = ledger.source_refused("/inbox/m", "m", "p", BadCheckpoint("is a LoRA adapter", fix="merge it"))
    again = ledger.source_refused("/inbox/m", "m", "p2", BadCheckpoint("is an adapter", fix="merge it"))
    assert (refused.id, again.reason, again.error["fix"]) == (again.id, "is an adapter", "merge it")
    mended = bench.model()
    assert (mended.version, mended.state) == (2, "present")
    assert ledger.sources() == [mended]


def test_reconvert_makes_again_what_is_done(bench: Bench, ledger: Ledger, wish: Wishes) -> None:
    (id,) = bench.want(wish("fp16"))
    bench.to_done()
    assert ledger.reconvert([id], "asked for by hand") == [id]
    assert (ledger.target(id).state, ledger.target(id).reason) == ("waiting", "asked for by hand")
    bench.to_done()
    assert ledger.target(id).state == "done"
    assert [e.to_state for e in ledger.history(target=id)].count("done") == 2


def test_retry_ends_the_waiting_after_a_crash(bench: Bench, ledger: Ledger, wish: Wishes) -> None:
    (id,) = bench.want(wish("fp16"))
    task = bench.start()
    ledger.fail(task.id, task.fence, "crashed", retry=True)
    assert ledger.task(task.id).not_before > 0
    assert ledger.retry([id]) == [id]
    assert bench.start().id == task.id
    assert ledger.retry([id]) == []


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


WAITS = "waits for the artifact that is made from /inbox/m, which holds the same model"
MADE = "made already from /inbox/m, which holds the same model"


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


def test_jobs_are_counted_one_by_one(bench: Bench, ledger: Ledger, wish: Wishes) -> None:
    bench.want(wish("a"), wish("b"), wish("c"))
    bench.want(wish("a"), recipe="other")
    bench.want(wish("a"), wish("b"), wish("c"), wish("d"))
    bench.want(wish("a"), source=bench.model("/inbox/n", "sha256:n", "n"))
    assert [(j.id, j.source.name, j.recipe, len(j.targets)) for j in ledger.jobs()] == [
        (1, "m", "everyday", 4), (2, "m", "other", 1), (3, "n", "everyday", 1),
    ]  # fmt: skip


def test_the_reason_for_waiting_is_kept_without_filling_the_history(bench: Bench, ledger: Ledger, wish: Wishes) -> None:
    (id,) = bench.want(wish("fp16"))
    (task,) = ledger.make_tasks()
    before = len(ledger.history())
    for _ in range(3):
        ledger.explain(task.id, "waits for memory")
    assert (ledger.target(id).reason, ledger.task(task.id).reason) == ("waits for memory", "waits for memory")
    assert len(ledger.history()) == before
    ledger.claim(task.id)
    ledger.explain(task.id, "too late")
    assert ledger.target(id).reason == "planning"


def test_a_jobs_state_is_the_one_that_matters_most(bench: Bench, ledger: Ledger, wish: Wishes) -> None:
    a, b = bench.want(wish("a"), wish("b"))
    assert (ledger.jobs()[0].state, ledger.jobs()[0].reason) == ("waiting", "waiting to be planned")
    bench.succeed(bench.start())
    task = bench.start()
    assert ledger.jobs()[0].state == "converting"
    ledger.finish(task.id, task.fence, {a: Outcome(True), b: Outcome(False, "bad weights")})
    assert ledger.jobs()[0].state == "verifying"
    bench.to_done()
    assert (ledger.jobs()[0].state, ledger.jobs()[0].reason) == ("failed", "bad weights")
    ledger.supersede([a, b], "gone")
    assert ledger.jobs()[0].state == "superseded"


@pytest.mark.parametrize(
    ("state", "forbidden"), [("waiting", "done"), ("done", "converting"), ("failed", "planned"), ("superseded", "waiting")]
)
def test_the_schema_refuses_a_change_of_state_that_is_not_allowed(
    bench: Bench, ledger: Ledger, wish: Wishes, state: str, forbidden: str
) -> None:
    (id,) = bench.want(wish("fp16"))
    if state == "done":
        bench.to_done()
    elif state == "failed":
        task = bench.start()
        ledger.fail(task.id, task.fence, "no", retry=False)
    elif state == "superseded":
        ledger.supersede([id], "gone")
    with pytest.raises(sqlite3.IntegrityError, match="this change of state is not allowed"), ledger.transaction() as db:
        db.execute("UPDATE target SET state = ? WHERE id = ?", (forbidden, id))
    assert ledger.target(id).state == state


def test_a_target_is_never_in_two_open_tasks(bench: Bench, ledger: Ledger, wish: Wishes) -> None:
    (id,) = bench.want(wish("fp16"))
    task = bench.start()
    with pytest.raises(sqlite3.IntegrityError, match="in an open task already"), ledger.transaction() as db:
        db.execute(
            "INSERT INTO task (kind, source, device, state, reason, created_at, changed_at)"
            " VALUES ('convert', ?, 'cpu', 'queued', '', 0, 0)", (task.source,)
        )  # fmt: skip
        db.execute("INSERT INTO task_target (task, target) SELECT max(id), ? FROM task", (id,))
    assert [t.id for t in ledger.tasks()] == [task.id]


def test_requests_are_answered_once_in_the_order_asked(ledger: Ledger) -> None:
    first = ledger.request("retry", job="3")
    second = ledger.request("reload")
    assert [(r.id, r.kind, r.arguments) for r in ledger.requests()] == [(first, "retry", {"job": "3"}), (second, "reload", {})]
    ledger.answer(first, "2 targets are tried again")
    ledger.answer(second, "line 3 is wrong", ok=False)
    ledger.answer(first, "changed my mind", ok=False)
    assert ledger.requests() == []
    assert [(ledger.asked(i).state, ledger.asked(i).answer) for i in (first, second)] == [
        ("done", "2 targets are tried again"), ("refused", "line 3 is wrong"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda book: book.job("7"), "there is no job 7"),
        (lambda book: book.job("seven"), "there is no job seven"),
        (lambda book: book.target("zz"), "there is no target zz"),
        (lambda book: book.find("zz"), "there is no target zz"),
        (lambda book: book.task(5), "there is no task 5"),
        (lambda book: book.asked(5), "the ledger knows no request 5"),
        (lambda book: book.want(5, "r", []), "the ledger knows no source 5"),
    ],
)
def test_what_is_not_there_is_named(ledger: Ledger, ask: Callable[[Ledger], Any], message: str) -> None:
    with pytest.raises(QconvdError, match=message):
        ask(ledger)
