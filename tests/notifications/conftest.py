"""A ledger with a clock that stands still."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ledger_kit import Bench, Clock, Wish
from qconvd.ledger import Ledger


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
