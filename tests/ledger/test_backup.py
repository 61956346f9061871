"""Copies of the ledger, also of one that is written to all the time."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path
from typing import Any

import pytest

from qconvd.errors import QconvdError
from qconvd.ledger import Ledger
from qconvd.ledger.backup import backup


def test_a_copy_is_one_file_that_works_as_a_ledger(ledger: Ledger, bench: Any, wish: Any, tmp_path: Path) -> None:
    bench.want(wish("f"))
    bench.to_done()
    copy = tmp_path / "copies" / "ledger.sqlite"
    copy.parent.mkdir()
    copy.write_text("an older one")
    assert backup(ledger, copy) == copy.stat().st_size
    assert [p.name for p in copy.parent.iterdir()] == ["ledger.sqlite"]
    assert copy.stat().st_mode & 0o777 == 0o600
    with sqlite3.connect(copy) as db:
        assert db.execute("PRAGMA journal_mode").fetchone() == ("delete",)
    db.close()
    again = Ledger(copy)
    assert [(t.id, t.state) for t in again.targets()] == [(t.id, t.state) for t in ledger.targets()]
    again.close()


def test_a_copy_is_of_one_moment_while_others_write(ledger: Ledger, tmp_path: Path) -> None:
    """Requests come in pairs, in one transaction each: a copy never holds half of one."""
    stop, wrote = threading.Event(), threading.Event()

    def write() -> None:
        other = Ledger(ledger.path)
        while not stop.is_set():
            with other.transaction():
                other.request("one")
                other.request("two")
            wrote.set()
        other.close()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        assert wrote.wait(60)
        for number in range(10):
            backup(ledger, tmp_path / f"{number}")
    finally:
        stop.set()
        writer.join()
    for number in range(10):
        with sqlite3.connect(tmp_path / f"{number}") as db:
            kinds = [kind for (kind,) in db.execute("SELECT kind FROM request ORDER BY id")]
        db.close()
        assert kinds and kinds == ["one", "two"] * (len(kinds) // 2)


def test_where_no_copy_can_be(ledger: Ledger, tmp_path: Path) -> None:
    with pytest.raises(QconvdError, match="is the ledger itself"):
        backup(ledger, ledger.path)
    with pytest.raises(QconvdError, match="gone/copy: cannot be written: No such file or directory"):
        backup(ledger, tmp_path / "gone" / "copy")


def test_a_damaged_ledger_does_not_replace_a_good_copy(ledger: Ledger, bench: Any, wish: Any, tmp_path: Path) -> None:
    bench.want(wish("f"), wish("g"))
    copy = tmp_path / "copy"
    backup(ledger, copy)
    good = copy.read_bytes()
    ledger.rows("PRAGMA wal_checkpoint(TRUNCATE)")
    root = ledger.rows("SELECT rootpage FROM sqlite_schema WHERE name = 'target_state'")[0][0]
    size = ledger.rows("PRAGMA page_size")[0][0]
    with ledger.path.open("r+b") as file:
        file.seek((root - 1) * size)
        file.write(b"\x0a" + b"\0" * 100)
    damaged = Ledger(ledger.path)
    with pytest.raises(QconvdError, match="the ledger is damaged, and so would its copy be"):
        backup(damaged, copy)
    damaged.close()
    assert copy.read_bytes() == good
    assert not list(tmp_path.glob(".*"))
