"""The temporary folder of one conversion, and what is left of those that were killed."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from qconvd.scratch import scratch, sweep

HOLD = """
import sys
from qconvd.scratch import scratch
with scratch() as made:
    print(made.path, flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def hold(temporary: Path) -> tuple[subprocess.Popen[str], Path]:
    """A process that has a folder, and the folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "TMPDIR": str(temporary)},
    )  # fmt: skip
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def test_it_goes_when_it_is_over_unless_it_is_kept(temporary: Path) -> None:
    with scratch() as made:
        assert made.path.parent == temporary
        assert sweep(temporary) == [], "it is in use"
    assert not made.path.exists()
    with scratch() as kept:
        kept.keep = True
    assert list(kept.path.iterdir()) == []
    assert sweep(temporary) == [], "what is kept is for a person to look at"


def test_it_goes_when_something_goes_wrong() -> None:
    with pytest.raises(KeyboardInterrupt), scratch() as made:
        raise KeyboardInterrupt
    assert not made.path.exists()


def test_the_next_one_removes_what_a_killed_one_left(temporary: Path) -> None:
    running, in_use = hold(temporary)
    killed, left = hold(temporary)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    with scratch():
        assert not left.exists()
        assert in_use.exists()
    running.communicate()
    assert not in_use.exists()


def test_it_stays_until_its_last_worker_has_ended(temporary: Path) -> None:
    killed, left = hold(temporary)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    (left / "tasks" / "1.1").mkdir(parents=True)
    with (left / "tasks" / "1.1" / "alive").open("w") as alive:
        fcntl.flock(alive, fcntl.LOCK_EX)
        assert sweep(temporary) == []
    assert sweep(temporary) == [left]


def test_what_is_not_ours_stays(temporary: Path) -> None:
    (temporary / "qconvd-notes").mkdir()
    (temporary / "qconvd-file").touch()
    (temporary / "other").mkdir()
    (temporary / "other" / "alive").touch()
    (temporary / "qconvd-link").symlink_to(temporary / "other")
    assert sweep(temporary) == []
    assert len(list(temporary.iterdir())) == 4
