"""A target's way through the ledger, and what its models, jobs and requests are known by."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import BaseModel

from qconvd.errors import BadCheckpoint, QconvdError
from qconvd.ledger import Ledger, Outcome, spec_digest

if TYPE_CHECKING:
    from ledger_kit import Bench, Wish

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


def test_a_target_is_never_taken_for_a_job(bench: Bench, ledger: Ledger, wish: Wishes, monkeypatch: pytest.MonkeyPatch) -> None:
    """One in a hundred random numbers of ten hexadecimal digits has no letter."""
    monkeypatch.setattr("secrets.token_hex", lambda nbytes: "1" * 2 * nbytes)
    (id,) = bench.want(wish("fp16"))
    assert (len(id), id[1:]) == (10, "1" * 9)
    assert [t.id for t in ledger.find(id)] == [t.id for t in ledger.find("1")] == [id]


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


def test_a_target_that_was_not_begun_follows_its_file_to_another_folder(bench: Bench, ledger: Ledger, wish: Wishes) -> None:
    first, moved = ({"imatrix": {"path": f"/{folder}/m.imatrix", "sha256": "ab"}} for folder in ("a", "b"))
    (id,) = bench.want(wish("gguf", first))
    bench.succeed(bench.start("plan"))
    assert ledger.target(id).state == "planned"
    assert bench.want(wish("gguf", moved)) == []
    assert (ledger.target(id).state, ledger.target(id).options) == ("waiting", moved)
    bench.to_done()
    assert bench.want(wish("gguf", first)) == []
    assert (ledger.target(id).state, ledger.target(id).options) == ("done", moved)


def test_convert_tasks_group_a_sources_targets_by_device_class(bench: Bench, ledger: Ledger, wish: Wishes) -> None:
    wishes = wish("fp16"), wish("q8_0"), wish("gptq", {"device": "cuda"}), wish("auto"), wish("never-measured")
    a, b, c, d, e = bench.want(*wishes)
    plan = bench.start("plan")
    assert set(plan.targets) == {a, b, c, d, e}
    said = {d: {"devices": ["cpu", "cuda"], "measured_on": ["L4"]}, e: {"devices": ["cpu", "cuda"], "measured_on": []}}
    ledger.finish(plan.id, plan.fence, {t: Outcome(True, data=said.get(t, {"devices": ["cpu"]})) for t in plan.targets})
    assert [(t.device, t.targets) for t in ledger.make_tasks()] == [("cpu", (a, b, e)), ("cuda", (c,)), ("auto", (d,))]
    assert ledger.make_tasks() == []


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
        (lambda book: book.job("9" * 20), f"there is no job {'9' * 20}"),
        (lambda book: book.find("1" * 5000), f"there is no job {'1' * 5000}"),
        (lambda book: book.find("0" * 5000), f"there is no job {'0' * 5000}"),
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
