"""Pauses and priorities."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest

from qconvd.errors import QconvdError
from qconvd.ledger import Ledger, Pause
from qconvd.ledger.database import migrations


def test_pauses_last_until_they_are_ended(ledger: Ledger, clock: Any) -> None:
    ledger.pause("disk", "full")
    ledger.pause("by hand", "maintenance")
    clock.now += 5
    mark = ledger.mark()
    ledger.pause("disk", "full")
    assert ledger.mark() == mark, "what is known is not written again"
    ledger.pause("by hand", "holidays")
    began = clock.now - 5
    assert ledger.pauses() == [Pause("by hand", "holidays", began), Pause("disk", "full", began)]
    assert [p.told for p in ledger.pauses()] == ["paused (by hand): holidays", "paused (disk): full"]
    assert Pause("by hand", "", 0).told == "paused (by hand)"
    again = Ledger(ledger.path)
    assert again.pauses() == ledger.pauses()
    again.close()
    assert ledger.resume("disk") is True
    assert ledger.resume("disk") is False
    assert [p.cause for p in ledger.pauses()] == ["by hand"]
    with pytest.raises(sqlite3.IntegrityError):
        ledger.pause("a whim")  # type: ignore[arg-type]


def test_a_priority_is_that_of_the_jobs_tasks(ledger: Ledger, bench: Any, wish: Any) -> None:
    first, second = bench.model("/inbox/a", "sha256:a", "a"), bench.model("/inbox/b", "sha256:b", "b")
    bench.want(wish("f"), source=first)
    bench.want(wish("f"), source=second)
    bench.want(wish("f"), wish("g"), source=second, recipe="other")
    tasks = {t.source: t.id for t in ledger.make_tasks()}
    assert ledger.priorities() == {}
    ledger.prioritize(1, -3)
    ledger.prioritize(3, 7)
    assert ledger.priorities() == {tasks[first.id]: -3, tasks[second.id]: 7}, "of what two jobs want, the higher one counts"
    assert [j.priority for j in ledger.jobs()] == [-3, 0, 7]
    for number, what in ((1001, "1001 is no priority"), (-1001, "-1001 is no priority")):
        with pytest.raises(QconvdError, match=what):
            ledger.prioritize(1, number)
    with pytest.raises(QconvdError, match="there is no job 9"):
        ledger.prioritize(9, 1)


def test_what_a_recipe_no_longer_wants_lends_no_priority(ledger: Ledger, bench: Any, wish: Any) -> None:
    source = bench.model()
    bench.want(wish("f"), source=source)
    bench.want(wish("f"), source=source, recipe="other")
    (task,) = ledger.make_tasks()
    ledger.prioritize(2, 5)
    assert ledger.priorities() == {task.id: 5}
    ledger.want(source.id, "other", [])
    assert ledger.priorities() == {}


def test_an_older_ledger_gets_both(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with sqlite3.connect(path) as db:
        for script in migrations()[:5]:
            db.executescript(script)
        db.execute("INSERT INTO source VALUES (1, '/inbox/a', 1, 'm', 'sha256:a', '', 'present', '', '{}', 0, 0)")
        db.execute(
            "INSERT INTO target (id, source, spec_digest, format, options, device, state, reason, version, label,"
            " folder, stem, manifest_name, created_at, changed_at)"
            " VALUES ('t', 1, 'd', '', '{}', 'cpu', 'waiting', '', '', '', '', '', '', 3, 4)"
        )
        db.execute("INSERT INTO wanted (target, recipe) VALUES ('t', 'everyday')")
        db.execute("PRAGMA user_version = 5")
    db.close()
    ledger = Ledger(path)
    (job,) = ledger.jobs()
    assert (job.id, job.recipe, job.priority, job.created_at, job.changed_at) == (1, "everyday", 0, 3, 4)
    assert ledger.pauses() == []
    ledger.close()
