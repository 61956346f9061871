"""Publications: when they are due, what they keep from being done, and what happens to them on every side road."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from qconvd.destinations import Place
from qconvd.ledger import RETRIES, Ledger, Outcome, Task

if TYPE_CHECKING:
    from ledger_kit import Bench, Clock, Wish

Wishes = Callable[..., "Wish"]
REFUSED = {"error": "QconvdError", "what": "no", "where": "here", "fix": "that"}


def hub(name: str = "me/X-GGUF", revision: str = "main", **options: Any) -> Place:
    return Place(f"hub:{name}", revision, {"commit": "together", "confirm": False, "dry_run": False, **options})


def made(bench: Bench, *wishes: Wish, places: list[Place]) -> list[str]:
    """Targets with their places, verified."""
    ids = bench.want(*wishes)
    for id in ids:
        bench.ledger.publish_to(id, "everyday", places)
    for kind in ("plan", "convert"):
        bench.succeed(bench.start(kind))
    for _ in ids:
        bench.succeed(bench.start("verify"), nbytes=10)
    return ids


def publish(bench: Bench, task: Task | None = None, **data: Any) -> Task:
    task = task or bench.start("publish")
    bench.succeed(task, **data)
    return task


def test_artifacts_of_one_place_are_published_together_when_the_last_is_made(
    bench: Bench, ledger: Ledger, wish: Wishes
) -> None:
    first, second = bench.want(wish("a"), wish("b"))
    for id in (first, second):
        ledger.publish_to(id, "everyday", [hub()])
    bench.succeed(bench.start("plan"))
    bench.succeed(bench.start("convert"))
    bench.succeed(bench.start("verify"))
    assert ledger.target(first).state == "ready"
    assert ledger.target(first).reason == "verified; waits to be published"
    assert [t.kind for t in ledger.tasks("queued")] == ["verify"], "the other one is still to come"
    bench.succeed(bench.start("verify"))
    task = bench.start("publish")
    assert task.targets == (first, second)
    assert [(p.state, p.place) for p in ledger.publications(task=task.id)] == [("publishing", "me/X-GGUF")] * 2
    assert ledger.target(first).state == "publishing"
    publish(bench, task, commit="abc", told="published to me/X-GGUF")
    assert bench.states() == {first: "done", second: "done"}
    assert [(p.state, p.commit_id, p.task) for p in ledger.publications()] == [("done", "abc", None)] * 2
    assert ledger.make_tasks() == []
    assert [e.to_state for e in ledger.history(target=first)][-3:] == ["ready", "publishing", "done"]


def test_one_commit_for_each_if_the_recipe_says_so(bench: Bench, ledger: Ledger, wish: Wishes) -> None:
    a, b = made(bench, wish("a"), wish("b"), places=[hub(commit="each")])
    first = bench.start("publish")
    assert first.targets == (a,)
    assert len(ledger.tasks("queued")) == 0, "and never two at one place at a time"
    publish(bench, first)
    assert publish(bench).targets == (b,)


def test_a_failed_sibling_holds_nobody_up(bench: Bench, ledger: Ledger, wish: Wishes) -> None:
    a, b = bench.want(wish("a"), wish("b"))
    for id in (a, b):
        ledger.publish_to(id, "everyday", [hub()])
    plan = bench.start("plan")
    ledger.finish(plan.id, plan.fence, {a: Outcome(True), b: Outcome(False, "no")})
    bench.succeed(bench.start("convert"))
    bench.succeed(bench.start("verify"))
    assert publish(bench).targets == (a,)


def test_two_places_have_their_turns_and_both_are_needed(bench: Bench, ledger: Ledger, wish: Wishes) -> None:
    (id,) = made(bench, wish("a"), places=[hub(), hub("us/Y", "v1")])
    publish(bench)
    assert ledger.target(id).state == "ready"
    task = bench.start("publish")
    assert ledger.publications(task=task.id)[0].place == "us/Y at v1"
    publish(bench, task)
    assert ledger.target(id).state == "done"


@pytest.mark.parametrize("places", [[hub(), hub("me/copy", commit="each")], [hub("me/copy", commit="each"), hub()]])
def test_what_is_on_its_way_elsewhere_is_waited_for(bench: Bench, ledger: Ledger, wish: Wishes, places: list[Place]) -> None:
    ids = tuple(made(bench, *(wish(name) for name in "abc"), places=places))
    done = []
    while not all(p.state == "done" for p in ledger.publications()):
        task = bench.start("publish")
        done.append((ledger.publications(task=task.id)[0].place, task.targets))
        publish(bench, task)
    assert [targets for place, targets in done if place == "me/X-GGUF"] == [ids], "one commit holds them all"


def test_places_in_another_order_do_not_wait_for_one_another(bench: Bench, ledger: Ledger, wish: Wishes) -> None:
    a, b = bench.want(wish("a"), wish("b"))
    ledger.publish_to(a, "everyday", [hub("me/one"), hub("me/two")])
    ledger.publish_to(b, "everyday", [hub("me/two"), hub("me/one")])
    for kind in ("plan", "convert", "verify", "verify"):
        bench.succeed(bench.start(kind))
    assert publish(bench).targets == (a, b)
    assert publish(bench).targets == (a, b)
    assert bench.states() == {a: "done", b: "done"}


def test_confirm_waits_for_a_word(bench: Bench, ledger: Ledger, wish: Wishes) -> None:
    (id,) = made(bench, wish("a"), places=[hub(confirm=True)])
    assert ledger.make_tasks() == []
    assert (ledger.target(id).state, ledger.target(id).reason) == ("ready", "verified; waits for `qconvd publish JOB`")
    assert [p.target for p in ledger.confirm([id])] == [id]
    assert ledger.confirm([id]) == [], "once is enough"
    publish(bench)
    assert ledger.target(id).state == "done"
    ledger.reconvert([id])
    assert ledger.publications()[0].state == "awaiting", "another artifact needs another word"


def test_a_word_may_come_before_the_artifact(bench: Bench, ledger: Ledger, wish: Wishes) -> None:
    (id,) = bench.want(wish("a"))
    ledger.publish_to(id, "everyday", [hub(confirm=True)])
    ledger.confirm([id])
    ledger.publish_to(id, "everyday", [hub(confirm=True)])  # the config is read again
    for kind in ("plan", "convert", "verify", "publish"):
        bench.succeed(bench.start(kind))
    assert ledger.target(id).state == "done"


def test_a_rehearsal_is_not_done_and_the_real_thing_follows_the_config(bench: Bench, ledger: Ledger, wish: Wishes) -> None:
    (id,) = made(bench, wish("a"), places=[hub(dry_run=True)])
    publish(bench, told="dry run: would upload 3 files", dry_run=True)
    assert (ledger.target(id).state, ledger.target(id).reason) == ("ready", "dry run: would upload 3 files")
    ledger.publish_to(id, "everyday", [hub(dry_run=True)])
    assert ledger.make_tasks() == [], "it was said"
    ledger.publish_to(id, "everyday", [hub()])
    publish(bench)
    assert ledger.target(id).state == "done"


def test_a_passing_trouble_is_waited_out_however_long(bench: Bench, ledger: Ledger, wish: Wishes, clock: Clock) -> None:
    (id,) = made(bench, wish("a"), places=[hub()])
    for attempt in range(1, RETRIES + 4):
        task = bench.start("publish")
        ledger.finish(task.id, task.fence, {id: Outcome(False, "503", REFUSED, retry=True, data={"wait": 5000})})
        assert ledger.target(id).state == "ready"
        assert ledger.target(id).reason == f"attempt {attempt} failed: 503"
        (queued,) = ledger.make_tasks()
        assert queued.not_before == clock.now + 5000, "the server's own hint, where it is longer"
        clock.now += 5000
    publish(bench)
    assert ledger.target(id).state == "done" and ledger.publications()[0].failures == 0


def test_a_place_that_is_away_holds_up_no_other(bench: Bench, ledger: Ledger, wish: Wishes, clock: Clock) -> None:
    (id,) = made(bench, wish("a"), places=[hub(), hub("us/Y")])
    task = bench.start("publish")
    ledger.finish(task.id, task.fence, {id: Outcome(False, "503", REFUSED, retry=True)})
    other = bench.start("publish")
    assert ledger.publications(task=other.id)[0].place == "us/Y"
    publish(bench, other)
    assert (ledger.target(id).state, ledger.target(id).reason) == ("ready", "attempt 1 failed: 503")
    (queued,) = ledger.make_tasks()
    assert queued.not_before == clock.now + 30
    assert ledger.retry([id]) == [id], "who asks need not wait"
    assert ledger.task(queued.id).not_before == 0
    publish(bench)
    assert ledger.target(id).state == "done"


def test_a_refusal_fails_and_retry_publishes_only(bench: Bench, ledger: Ledger, wish: Wishes) -> None:
    (id,) = made(bench, wish("a"), places=[hub(), hub("us/Y")])
    task = bench.start("publish")
    ledger.finish(task.id, task.fence, {id: Outcome(False, "no", REFUSED)})
    assert ledger.target(id).state == "ready", "its other place comes first"
    publish(bench)
    assert (ledger.target(id).state, ledger.target(id).reason, ledger.target(id).error) == ("failed", "no", REFUSED)
    assert [p.state for p in ledger.publications()] == ["failed", "done"]
    assert ledger.retry([id]) == [id]
    assert (ledger.target(id).state, ledger.target(id).error) == ("ready", {})
    publish(bench)
    assert ledger.target(id).state == "done"
    assert [t.kind for t in ledger.tasks()] == ["plan", "convert", "verify", "publish", "publish", "publish"]


@pytest.mark.parametrize("mended", [hub("alice/X"), hub(private=True)])
def test_a_config_that_is_mended_publishes_what_failed(bench: Bench, ledger: Ledger, wish: Wishes, mended: Place) -> None:
    (id,) = made(bench, wish("a"), places=[hub()])
    task = bench.start("publish")
    ledger.finish(task.id, task.fence, {id: Outcome(False, "no", REFUSED)})
    ledger.publish_to(id, "everyday", [hub()])
    assert ledger.target(id).state == "failed", "nothing changed"
    ledger.publish_to(id, "everyday", [mended])
    assert ledger.target(id).state == "ready"
    assert publish(bench).kind == "publish"
    assert ledger.target(id).state == "done"


@pytest.mark.parametrize("running", [False, True])
def test_what_was_cancelled_before_it_was_published_is_published_on_retry(
    bench: Bench, ledger: Ledger, wish: Wishes, running: bool
) -> None:
    (id,) = made(bench, wish("a"), places=[hub()])
    ledger.make_tasks()
    if running:
        task = bench.start("publish")
    assert ledger.cancel([id]) == [id]
    if running:
        assert [t.id for t in ledger.unwanted()] == [task.id]
        ledger.release(task.id, task.fence, "was interrupted")
    assert ledger.tasks("queued", "running") == []
    assert [(p.state, p.task) for p in ledger.publications()] == [("cancelled", None)]
    ledger.retry([id])
    publish(bench)
    assert ledger.target(id).state == "done"


def test_a_crash_leaves_the_publication_to_the_next_attempt(bench: Bench, ledger: Ledger, wish: Wishes, clock: Clock) -> None:
    (id,) = made(bench, wish("a"), places=[hub()])
    for _ in range(RETRIES - 1):
        task = bench.start("publish")
        ledger.fail(task.id, task.fence, "killed", retry=True)
        assert (ledger.target(id).state, ledger.publications()[0].state) == ("ready", "open")
        clock.now += 4000
    task = bench.start("publish")
    ledger.fail(task.id, task.fence, "killed", retry=True)
    assert ledger.target(id).state == "failed", "a worker that is brought down three times is given up"
    assert ledger.target(id).reason == "failed 3 times, the last time: killed"


def test_a_stop_is_no_failure(bench: Bench, ledger: Ledger, wish: Wishes) -> None:
    (id,) = made(bench, wish("a"), places=[hub()])
    task = bench.start("publish")
    ledger.release(task.id, task.fence, "was interrupted and goes on later")
    assert (ledger.target(id).state, ledger.target(id).failures) == ("ready", 0)
    publish(bench)
    assert ledger.target(id).state == "done"


@pytest.mark.parametrize("queued", [False, True])
def test_a_place_that_is_not_wanted_any_more_is_let_go(bench: Bench, ledger: Ledger, wish: Wishes, queued: bool) -> None:
    (id,) = made(bench, wish("a"), places=[hub()])
    if queued:
        ledger.make_tasks()
    ledger.publish_to(id, "everyday", [])
    assert ledger.target(id).state == "done"
    assert ledger.make_tasks() == [] and ledger.tasks("queued") == []
    ledger.publish_to(id, "everyday", [hub()])
    assert ledger.target(id).state == "ready"
    publish(bench)
    assert ledger.target(id).state == "done"


def test_another_recipes_place_stays(bench: Bench, ledger: Ledger, wish: Wishes) -> None:
    (id,) = made(bench, wish("a"), places=[hub()])
    ledger.publish_to(id, "other", [hub()])
    ledger.publish_to(id, "everyday", [])
    assert ledger.publications()[0].state == "open"


def test_a_target_that_no_recipe_wants_but_is_made_stays_made(bench: Bench, ledger: Ledger, wish: Wishes) -> None:
    (id,) = made(bench, wish("a"), places=[hub()])
    ledger.want(bench.model().id, "everyday", [])
    assert ledger.target(id).state == "done" and ledger.publications()[0].state == "unwanted"


def test_a_copy_of_the_model_has_its_own_places(bench: Bench, ledger: Ledger, wish: Wishes) -> None:
    (id,) = made(bench, wish("a"), places=[hub()])
    copy = bench.model("/elsewhere/m")
    (other,) = bench.want(wish("a"), source=copy)
    assert ledger.target(other).state == "done", "its artifact is there, published or not"
    ledger.publish_to(other, "everyday", [hub("us/Y")])
    assert ledger.target(other).state == "ready"
    bench.to_done()
    assert bench.states() == {id: "done", other: "done"}


def test_a_new_version_of_the_model_supersedes_what_was_not_published(bench: Bench, ledger: Ledger, wish: Wishes) -> None:
    (id,) = made(bench, wish("a"), places=[hub()])
    task = bench.start("publish")
    bench.model(digest="sha256:b")
    assert ledger.target(id).state == "superseded"
    assert [t.id for t in ledger.unwanted()] == [task.id]
    ledger.release(task.id, task.fence, "was interrupted")
    assert ledger.make_tasks() == []


def test_what_awaits_a_word_is_not_left_undone(bench: Bench, ledger: Ledger, wish: Wishes) -> None:
    made(bench, wish("a"), places=[hub(confirm=True)])
    assert ledger.unpublished() == []
    made(bench, wish("b"), places=[hub("me/other")])
    assert [t.format for t in ledger.unpublished()] == ["b"]


def test_retry_and_another_token_count_for_one_place_while_another_waits(
    bench: Bench, ledger: Ledger, wish: Wishes, clock: Clock
) -> None:
    (id,) = made(bench, wish("a"), places=[hub("me/away"), hub("me/refused")])
    away = bench.start("publish")
    ledger.finish(away.id, away.fence, {id: Outcome(False, "away", {"what": "away"}, True, {"wait": 5000})})
    refused = bench.start("publish")
    error = {**REFUSED, "token": "abc"}
    ledger.finish(refused.id, refused.fence, {id: Outcome(False, "no", error)})
    assert ledger.target(id).state == "ready"
    assert {p.place: p.state for p in ledger.publications()} == {"me/away": "open", "me/refused": "failed"}
    assert ledger.refused_to("abc") == [] and ledger.refused_to("another") == [id]
    assert ledger.retry([id]) == [id]
    assert {(p.place, p.state, p.not_before) for p in ledger.publications()} == {
        ("me/away", "open", 0), ("me/refused", "open", 0)
    }  # fmt: skip
    publish(bench)
    publish(bench)
    assert ledger.target(id).state == "done"
