"""Folders of calibrations stay as long as a work folder needs them, and no longer."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from qconvd.calibration_folders import LOCK, need, need_no_more, remove_unneeded
from qconvd.ledger import Ledger
from qconvd.recovery import sweep
from qconvd.targets import resolve_list


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two targets that share a calibration, and one that nobody needs."""
    for name in ("a", "b", "calibration-1", "calibration-2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / LOCK).touch()
    (tmp_path / "calibration-1" / "states").mkdir()
    need(tmp_path / "a", "calibration-1")
    need(tmp_path / "b", "calibration-1")
    return tmp_path


def test_what_nobody_needs_is_removed(root: Path) -> None:
    assert remove_unneeded(root) == [root / "calibration-2"]
    assert not (root / "calibration-2").exists()
    need_no_more(root / "a")
    assert remove_unneeded(root) == []
    (root / "b" / "calibration").unlink()
    assert remove_unneeded(root) == [root / "calibration-1"]
    assert sorted(p.name for p in root.iterdir()) == ["a", "b"]
    need_no_more(root / "a")


def test_what_a_worker_holds_stays(root: Path) -> None:
    held = os.open(root / "calibration-2" / LOCK, os.O_RDWR)
    fcntl.flock(held, fcntl.LOCK_EX)
    assert remove_unneeded(root) == []
    os.close(held)
    assert remove_unneeded(root) == [root / "calibration-2"]


def test_one_that_is_not_locked_yet_may_be_removed(root: Path) -> None:
    (root / "calibration-2" / LOCK).unlink()
    assert remove_unneeded(root) == [root / "calibration-2"]


def test_there_may_be_no_work_folders_at_all(tmp_path: Path) -> None:
    assert remove_unneeded(tmp_path / "nothing") == []


def test_the_daemon_removes_what_its_targets_needed_with_them(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    source = ledger.source_seen("/m", "sha256:1", "m", "p")
    ledger.want(source.id, "r", resolve_list("q8_0,q4_0"))
    first, second = ledger.targets(source=source.id)
    root = tmp_path / "out" / ".qconvd" / "work"
    for target in (first, second):
        (root / target.id).mkdir(parents=True)
        need(root / target.id, "calibration-1")
    (root / "calibration-1").mkdir()
    assert sweep(ledger, tmp_path / "out") == []
    ledger.cancel([first.id], "by hand")
    assert sweep(ledger, tmp_path / "out") == [root / first.id]
    ledger.cancel([second.id], "by hand")
    assert sweep(ledger, tmp_path / "out") == [root / second.id, root / "calibration-1"]
    assert list(root.iterdir()) == []
    ledger.close()
