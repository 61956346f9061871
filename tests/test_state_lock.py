"""One daemon per state folder."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from qconvd.errors import QconvdError
from qconvd.state_lock import holder, state_lock

HOLD = """
import pathlib, sys
from qconvd.state_lock import state_lock
with state_lock(pathlib.Path(sys.argv[1])):
    print(1, flush=True)
    sys.stdin.read()
"""


def hold(state: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(state)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "1\n"
    return process


def end(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate()


def test_a_second_daemon_is_told_who_the_first_is(tmp_path: Path) -> None:
    state = tmp_path / "state"
    process = hold(state)
    try:
        assert holder(state) == process.pid
        with pytest.raises(QconvdError) as caught, state_lock(state):
            pass
        assert str(caught.value) == (
            f"{state}: another qconvd daemon (process {process.pid}) works on this state folder\n"
            "  stop that one, or give this one a `state:` folder of its own"
        )
    finally:
        end(process)


def test_a_killed_daemon_holds_nothing(tmp_path: Path) -> None:
    end(hold(tmp_path))
    assert holder(tmp_path) is None
    with state_lock(tmp_path):
        assert (tmp_path / "lock").read_text() == f"{os.getpid()}\n"
        assert holder(tmp_path) == os.getpid()
    assert holder(tmp_path) is None


def test_a_state_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(QconvdError) as caught, state_lock(tmp_path / "file" / "state"):
        pass
    assert str(caught.value) == (
        f"{tmp_path}/file/state: the state folder cannot be written: Not a directory\n"
        "  give the user that runs qconvd write permission, or set `state:` to another folder"
    )


def test_nobody_holds_a_folder_that_is_not_there(tmp_path: Path) -> None:
    assert holder(tmp_path / "nothing") is None
