"""A ledger with a clock that stands still, and targets without a format behind them; fixtures of both for a conftest.py."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from qconvd.ledger import Ledger, Outcome, Source, Task


@dataclass
class Clock:
    now: float = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@dataclass(frozen=True)
class Names:
    folder: str
    stem: str
    manifest: str


@dataclass(frozen=True)
class Wish:
    """A target of a recipe, as the ledger takes it."""

    format: str
    options: Mapping[str, Any] = field(default_factory=dict)
    version: str = "1"

    @property
    def label(self) -> str:
        return self.format

    def names(self, model_name: str, profile: str = "default") -> Names:
        variant = "-".join([self.format, *(str(v) for k, v in sorted(self.options.items()) if k != "device")])
        return Names(f"{model_name}-{variant}", "model" if profile == "default" else profile, "qconvd.json")


class Bench:
    """Takes a ledger through the motions of the daemon."""

    def __init__(self, ledger: Ledger, clock: Clock) -> None:
        self.ledger, self.clock = ledger, clock

    def model(self, locator: str = "/inbox/m", digest: str = "sha256:a", name: str = "m") -> Source:
        return self.ledger.source_seen(locator, digest, name, f"print of {digest}")

    def want(self, *wishes: Wish, recipe: str = "everyday", source: Source | None = None) -> list[str]:
        return self.ledger.want((source or self.model()).id, recipe, wishes)

    def start(self, kind: str | None = None) -> Task:
        """Make tasks and claim the oldest queued one."""
        self.ledger.make_tasks()
        queued = [t for t in self.ledger.tasks("queued") if kind in (None, t.kind) and t.not_before <= self.clock.now]
        return self.ledger.claim(queued[0].id)

    def succeed(self, task: Task, **data: Any) -> None:
        self.ledger.finish(task.id, task.fence, {id: Outcome(True, data=data) for id in task.targets})

    def to_done(self) -> None:
        """Everything that is wanted, to its end."""
        while self.ledger.make_tasks() or self.ledger.tasks("queued"):
            for task in self.ledger.tasks("queued"):
                self.succeed(self.ledger.claim(task.id), nbytes=10)

    def states(self) -> dict[str, str]:
        return {t.id: t.state for t in self.ledger.targets()}


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ledger(tmp_path: Path, clock: Clock) -> Iterator[Ledger]:
    ledger = Ledger(tmp_path / "state" / "ledger.sqlite", clock=clock)
    yield ledger
    ledger.close()


@pytest.fixture
def bench(ledger: Ledger, clock: Clock) -> Bench:
    return Bench(ledger, clock)


@pytest.fixture
def wish() -> type[Wish]:
    return Wish
