"""Many models at once: what a scan costs the disk, and that nothing is taken that is not at rest."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from daemon_kit import tiny_model
from qconvd import config, intake
from qconvd.arrivals import Arrivals
from qconvd.ledger import Ledger
from qconvd.wishes import Wishes

CONFIG = """\
watch: [{folder: ./inbox, recipes: [r], settle: 10s, interval: 60s, poll: always}]
output: ./models
state: ./state
recipes: {r: {targets: [fp16]}}
"""
MODELS = 40


class Clock:
    """A monotonic clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Place:
    """A watched folder full of models, its ledger, and what looks at it."""

    def __init__(self, root: Path) -> None:
        self.inbox = root / "inbox"
        for number in range(MODELS):
            tiny_model(self.inbox / f"m{number:02}", seed=number)
        (root / "config.yaml").write_text(CONFIG)
        self.config = config.load(root / "config.yaml")
        self.clock = Clock()
        self.ledger = Ledger(self.config.state / "ledger.sqlite")
        wishes = Wishes(self.ledger)
        wishes.configure(self.config)
        self.arrivals = Arrivals(self.ledger, wishes, lambda: None, self.clock)
        self.arrivals.configure(self.config)

    def after(self, seconds: float) -> None:
        """Let time pass, then what is due be done."""
        self.clock.now += seconds
        self.arrivals.tick()

    def taken(self) -> list[str]:
        return sorted(source.name for source in self.ledger.sources())


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    place = Place(tmp_path)
    yield place
    place.arrivals.close()
    place.ledger.close()


def test_models_that_are_taken_together_are_written_down_together(place: Place) -> None:
    said: list[str] = []
    place.arrivals.tick()
    with sqlite3.connect(place.ledger.path) as other:
        before = other.execute("PRAGMA data_version").fetchone()
        place.ledger._connection.set_trace_callback(said.append)
        place.after(10)
        assert other.execute("PRAGMA data_version").fetchone() != before
    assert len(place.taken()) == len(place.ledger.targets("waiting")) == MODELS
    # The clock stands still meanwhile, so nothing is late.
    assert said.count("BEGIN IMMEDIATE") == 1
    assert place.arrivals.settling.candidates == {}


def test_a_model_that_is_taken_is_not_kept_from_the_ledger_for_long(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.arrivals.tick()
    place.clock.now += 10
    looks = intake.look

    def slow(path: Path) -> intake.Look:
        place.clock.now += 0.1
        return looks(path)

    said: list[str] = []
    place.ledger._connection.set_trace_callback(said.append)
    monkeypatch.setattr(intake, "look", slow)
    place.arrivals.tick()
    assert len(place.taken()) == MODELS
    assert MODELS // 5 <= said.count("BEGIN IMMEDIATE") <= MODELS // 3


def test_a_scan_does_not_read_again_what_settles_and_did_not_change(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.arrivals.tick()
    looked: list[str] = []
    looks = intake.look

    def look(path: Path) -> intake.Look:
        looked.append(path.name)
        return looks(path)

    monkeypatch.setattr(intake, "look", look)
    config_json = place.inbox / "m07" / "config.json"
    config_json.write_text(config_json.read_text() + " ")
    place.arrivals.configure(place.config)  # another scan is due
    place.after(5)
    assert looked == ["m07"]
    place.after(5)
    assert len(looked) == 1 + MODELS - 1
    assert place.taken() == [f"m{n:02}" for n in range(MODELS) if n != 7]
    place.after(5)
    assert len(place.taken()) == MODELS


def test_what_changes_while_the_others_are_identified_is_not_taken(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    from qconvd import checkpoints

    place.arrivals.tick()
    identities = checkpoints.identity

    def identity(model: checkpoints.ModelInfo) -> str:
        found = identities(model)
        if model.name == "m09":
            with (model.path / "model.safetensors").open("r+b") as file:
                file.seek(-1, os.SEEK_END)
                file.write(b"\x40")
        return found

    monkeypatch.setattr(checkpoints, "identity", identity)
    place.after(10)
    assert place.taken() == [f"m{n:02}" for n in range(MODELS) if n != 9]


def test_if_the_ledger_cannot_be_written_nothing_is_lost(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.arrivals.tick()
    with monkeypatch.context() as patch:

        def full(*_: object) -> None:
            raise sqlite3.OperationalError("database or disk is full")

        patch.setattr(place.ledger, "source_seen", full)
        with pytest.raises(sqlite3.OperationalError, match="disk is full"):
            place.after(10)
    assert place.taken() == []
    place.after(60)
    assert len(place.taken()) == MODELS
