"""Status files are for people: they may be a moment late, but not for ever, and never at the daemon's end."""

from __future__ import annotations

from pathlib import Path

import pytest

from qconvd import status_file
from qconvd.ledger import Ledger
from qconvd.statuses import Statuses


class Clock:
    """Stands still, but for what writing a file takes."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_writing_takes_a_tenth_of_the_time_at_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger, clock, output = Ledger(tmp_path / "state" / "ledger.sqlite"), Clock(), tmp_path / "models"
    statuses = Statuses(ledger, clock)
    writes = status_file.write

    def slow(path: Path, told: list[status_file.ModelStatus]) -> None:
        clock.now += 0.5
        writes(path, told)

    def there() -> list[str]:
        return sorted(p.name for p in output.glob("*.txt"))

    monkeypatch.setattr(status_file, "write", slow)
    ledger.source_seen("/in/a", "sha256:a", "a", "1")
    statuses.tick(output, (), {})
    assert there() == ["a.status.txt"]
    ledger.source_seen("/in/b", "sha256:b", "b", "1")
    clock.now += 4
    statuses.tick(output, (), {})
    assert there() == ["a.status.txt"]
    clock.now += 1
    statuses.tick(output, (), {})
    assert there() == ["a.status.txt", "b.status.txt"]
    ledger.source_seen("/in/c", "sha256:c", "c", "1")
    statuses.tick(output, (), {}, at_once=True)
    assert there() == ["a.status.txt", "b.status.txt", "c.status.txt"]
    ledger.close()
