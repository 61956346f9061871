"""Models on the Hub in the ledger: planned from headers, fetched once, converted, freed, fetched again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from qconvd.ledger import Ledger, Outcome, Source, Task

if TYPE_CHECKING:
    from ledger_kit import Bench, Clock, Wish

Wishes = Callable[..., "Wish"]
HERE = {"folder": "/cache/m", "identity": "sha256:local", "fetched": ["model.safetensors"]}


@pytest.fixture
def remote(bench: Bench, ledger: Ledger) -> Source:
    source = bench.model("hub:a/m", "hub:1")
    files = [{"path": "config.json", "size": 10, "sha256": "", "oid": "1"}, {"path": "model.safetensors", "size": 90}]
    ledger.snapshot_listed(source.id, "a/m", "c0ffee", Path("/state/heads"), files)
    return source


def fetched(bench: Bench, task: Task | None = None) -> Task:
    task = task or bench.start("fetch")
    bench.succeed(task, **HERE)
    return task


def test_it_is_planned_fetched_and_converted(bench: Bench, ledger: Ledger, wish: Wishes, remote: Source) -> None:
    ids = bench.want(wish("fp16"), wish("gguf"), source=remote)
    assert ledger.snapshot_of(remote.id).place == Path("/state/heads")  # type: ignore[union-attr]
    bench.succeed(bench.start("plan"))
    assert [ledger.target(id).reason for id in ids] == ["waiting to be fetched"] * 2
    task = bench.start("fetch")
    assert set(task.targets) == set(ids) and (task.need["cache"], task.need["disk"]) == (100, 0)
    assert [(ledger.target(id).state, ledger.target(id).reason) for id in ids] == [("planned", "fetching")] * 2
    assert ledger.make_tasks() == []
    fetched(bench, task)
    snapshot = ledger.snapshot_of(remote.id)
    assert snapshot and (snapshot.state, snapshot.place, snapshot.identity) == ("here", Path("/cache/m"), "sha256:local")
    assert snapshot.fetched == ("model.safetensors",)
    assert [t.kind for t in ledger.make_tasks()] == ["convert"]
    bench.to_done()
    assert set(bench.states().values()) == {"done"}
    assert [t.kind for t in ledger.tasks()].count("fetch") == 1


def test_a_local_model_is_never_fetched(bench: Bench, ledger: Ledger, wish: Wishes) -> None:
    bench.want(wish("fp16"))
    assert ledger.snapshot_of(bench.model().id) is None
    bench.to_done()
    assert [t.kind for t in ledger.tasks()] == ["plan", "convert", "verify"]


def test_what_is_wanted_while_it_is_fetched_waits_for_that(bench: Bench, ledger: Ledger, wish: Wishes, remote: Source) -> None:
    bench.want(wish("fp16"), source=remote)
    bench.succeed(bench.start("plan"))
    first = bench.start("fetch")
    bench.want(wish("gguf"), recipe="other", source=remote)
    bench.succeed(bench.start("plan"))
    assert ledger.make_tasks() == []
    fetched(bench, first)
    assert [(t.kind, len(t.targets)) for t in ledger.make_tasks()] == [("convert", 2)]


def test_a_fetch_that_fails_is_tried_again_and_one_that_is_refused_is_not(
    bench: Bench, ledger: Ledger, wish: Wishes, remote: Source, clock: Clock
) -> None:
    (id,) = bench.want(wish("fp16"), source=remote)
    bench.succeed(bench.start("plan"))
    task = bench.start("fetch")
    ledger.fail(task.id, task.fence, "the disk is full", retry=True, error={"error": "OutOfSpace"})
    assert (ledger.target(id).state, ledger.target(id).reason) == ("planned", "attempt 1 of 3 failed: the disk is full")
    clock.now += 100
    task = bench.start("fetch")
    ledger.release(task.id, task.fence, "the Hub is busy", at=clock.now + 30)
    assert (ledger.target(id).state, ledger.target(id).failures) == ("planned", 1)
    clock.now += 31
    task = bench.start("fetch")
    ledger.finish(task.id, task.fence, {id: Outcome(False, "is gated", {"error": "HubRefused", "what": "is gated"})})
    assert (ledger.target(id).state, ledger.target(id).reason) == ("failed", "is gated")
    ledger.retry([id])
    bench.succeed(bench.start("plan"))
    fetched(bench)
    assert [t.kind for t in ledger.make_tasks()] == ["convert"]


def test_a_cancelled_target_leaves_its_fetch(bench: Bench, ledger: Ledger, wish: Wishes, remote: Source) -> None:
    one, two = bench.want(wish("fp16"), wish("gguf"), source=remote)
    bench.succeed(bench.start("plan"))
    task = bench.start("fetch")
    ledger.cancel([one])
    assert [t.id for t in ledger.unwanted()] == [task.id]
    ledger.release(task.id, task.fence, "was interrupted and goes on later")
    assert bench.states() == {one: "cancelled", two: "planned"}
    assert ledger.tasks("queued")[0].targets == (two,)


def test_freed_and_wanted_once_more(bench: Bench, ledger: Ledger, wish: Wishes, remote: Source) -> None:
    (id,) = bench.want(wish("fp16"), source=remote)
    bench.succeed(bench.start("plan"))
    fetched(bench)
    bench.to_done()
    ledger.snapshot_freed(remote.id)
    assert ledger.make_tasks() == [] and ledger.snapshots("freed")[0].fetched == ()
    ledger.reconvert([id])
    bench.succeed(bench.start("plan"))
    fetched(bench)
    assert [t.kind for t in ledger.make_tasks()] == ["convert"]


def test_what_was_fetched_and_is_doubted_is_fetched_again(bench: Bench, ledger: Ledger, wish: Wishes, remote: Source) -> None:
    bench.want(wish("fp16"), source=remote)
    assert not ledger.snapshot_doubted(remote.id), "it was not here yet"
    bench.succeed(bench.start("plan"))
    fetched(bench)
    assert ledger.snapshot_doubted(remote.id)
    assert [t.kind for t in ledger.make_tasks()] == ["fetch"]


def test_another_commit_with_the_same_content_changes_nothing(
    bench: Bench, ledger: Ledger, wish: Wishes, remote: Source
) -> None:
    bench.want(wish("fp16"), source=remote)
    bench.succeed(bench.start("plan"))
    fetched(bench)
    ledger.snapshot_listed(bench.model("hub:a/m", "hub:1").id, "a/m", "deadbeef", Path("/state/other"), [], "delete")
    snapshot: Any = ledger.snapshot_of(remote.id)
    assert (snapshot.commit_id, snapshot.state, snapshot.after) == ("c0ffee", "here", "delete")


def test_a_new_version_is_a_new_snapshot(bench: Bench, ledger: Ledger, wish: Wishes, remote: Source) -> None:
    bench.want(wish("fp16"), source=remote)
    bench.succeed(bench.start("plan"))
    second = bench.model("hub:a/m", "hub:2")
    ledger.snapshot_listed(second.id, "a/m", "deadbeef", Path("/state/second"), [])
    assert second.version == 2 and [s.source for s in ledger.snapshots()] == [remote.id, second.id]
    assert ledger.make_tasks() == [], "what was wanted of the old version is superseded"
