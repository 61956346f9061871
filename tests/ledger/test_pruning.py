"""What the ledger forgets, and what it never does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qconvd.ledger import Ledger, Outcome
from qconvd.ledger.pruning import prune


def test_what_is_over_is_forgotten_and_what_counts_stays(ledger: Ledger, bench: Any, wish: Any, clock: Any) -> None:
    done = bench.want(wish("f"), source=bench.model("/inbox/a", "sha256:a", "a"))
    bench.to_done()
    (failed,) = bench.want(wish("f"), source=bench.model("/inbox/b", "sha256:b", "b"))
    task = bench.start()
    ledger.finish(task.id, task.fence, {failed: Outcome(False, "too odd")})
    answered, asked = ledger.request("reload"), ledger.request("reload")
    ledger.answer(answered, "yes")
    clock.now += 100
    (waiting,) = bench.want(wish("f"), source=bench.model("/inbox/c", "sha256:c", "c"))
    open_task = bench.start()
    before = [(t.id, t.state, t.reason, t.artifact) for t in ledger.targets()]
    gone = prune(ledger, clock.now - 50)
    assert [t.id for t in ledger.tasks()] == [open_task.id]
    assert (len(gone.tasks), gone.requests, gone.targets, gone.sources) == (4, 1, 0, 0)
    assert [(t.id, t.state, t.reason, t.artifact) for t in ledger.targets()] == before
    assert [r.id for r in ledger.requests()] == [asked]
    assert ledger.history(target=done[0]) == []
    assert ledger.history(target=waiting), "what is younger stays"
    assert ledger.rows("PRAGMA foreign_key_check") == []
    assert [j.id for j in ledger.jobs()] == [1, 2, 3]
    assert prune(ledger, clock.now - 50).total == 0
    bench.succeed(open_task)
    assert ledger.retry([failed]) == [failed]
    bench.to_done()
    assert set(bench.states().values()) == {"done"}


def test_replaced_versions_go_when_their_artifacts_have(ledger: Ledger, bench: Any, wish: Any, clock: Any) -> None:
    for version in ("one", "two", "three"):
        bench.want(wish("f"), source=bench.model(digest=f"sha256:{version}"))
        task = bench.start("plan")
        bench.succeed(task, nbytes=1)
        if version != "two":
            bench.succeed(bench.start("convert"))
            bench.succeed(bench.start("verify"), manifest="/out/m-f/qconvd.json", files=[version])
    clock.now += 100
    first, second, third = ledger.targets()
    assert [t.state for t in (first, second, third)] == ["superseded", "superseded", "done"]
    gone = prune(ledger, clock.now - 50)
    assert (gone.targets, gone.sources) == (2, 2)
    assert [t.id for t in ledger.targets()] == [third.id]
    assert ledger.source_seen("/inbox/m", "sha256:four", "m", "p").version == 4
    assert ledger.rows("PRAGMA foreign_key_check") == []


def test_the_last_artifact_in_a_place_is_remembered(ledger: Ledger, bench: Any, wish: Any, clock: Any) -> None:
    """By it is known what qconvd put there, even if no recipe wants it any more."""
    (old,) = bench.want(wish("f"))
    bench.succeed(bench.start("plan"))
    bench.succeed(bench.start("convert"))
    bench.succeed(bench.start("verify"), manifest="/out/m-f/qconvd.json", files=["/out/m-f/model"])
    ledger.supersede([old], "not wanted")
    clock.now += 100
    assert prune(ledger, clock.now).targets == 0
    assert ledger.laid(Path("/out/m-f/qconvd.json")) == ("/out/m-f/model",)


def test_fences_still_grow(ledger: Ledger, bench: Any, wish: Any, clock: Any) -> None:
    """An attempt that comes back late finds its task gone; it must not hold the fence of another."""
    bench.want(wish("f"))
    late = bench.start()
    bench.succeed(late)
    clock.now += 100
    prune(ledger, clock.now)
    assert bench.start().id > late.id
