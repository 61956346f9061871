"""Runs a program for a limited time: no shell, its own process group, what it says on stderr cut short."""

from __future__ import annotations

import contextlib
import errno
import os
import selectors
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from qconvd.notifications.attempt import BreakOff, NotSent

TAIL = 2000
"""Bytes of the end of stderr that are kept."""
LOOK_SECONDS = 0.1


@dataclass(frozen=True)
class Ended:
    """How a program ended: its exit code (negative: the signal), and the last line that it said."""

    code: int
    said: str


def look_for(words: Sequence[str], fix: str) -> None:
    """Raise `NotSent` if a program is not there, or is none that we may run."""
    if shutil.which(words[0]) is None:
        why = errno.EACCES if Path(words[0]).exists() else errno.ENOENT
        raise NotSent(f"{words[0]} cannot be run: {os.strerror(why)}", fix=fix)


def run(words: Sequence[str], stdin: bytes, environment: Mapping[str, str], timeout: float, stop: BreakOff, fix: str) -> Ended:
    """Run it to its end. Raises `NotSent` if it cannot be started, and if it takes too long: then its group is killed."""
    with tempfile.TemporaryFile() as given:
        given.write(stdin)
        given.seek(0)
        try:
            process = subprocess.Popen(
                words, stdin=given, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=dict(environment),
                start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            what = f"{words[0]} cannot be run: {os.strerror(error.errno or 0)}"
            raise NotSent(what, fix=fix, again=not isinstance(error, FileNotFoundError | PermissionError)) from error
    try:
        stop.by(lambda: _kill(process))
        said = _watch(process, time.monotonic() + timeout)
    finally:
        if process.returncode is None:
            _kill(process)
            process.wait()
        stop.by(None)
        if process.stderr is not None:
            process.stderr.close()
    if said is None:
        raise NotSent(f"{words[0]} was killed: it took longer than {timeout:g} s", fix="a longer `timeout`, if it needs it",
                      again=True)  # fmt: skip
    lines = said.decode("utf-8", "replace").strip().splitlines()
    return Ended(process.returncode or 0, lines[-1][:200] if lines else "")


def _watch(process: subprocess.Popen[bytes], end: float) -> bytes | None:
    """The end of what it says until it ends; None if it does not in time. What it left in the background is not waited for."""
    assert process.stderr is not None
    tail, pipe = b"", process.stderr.fileno()
    os.set_blocking(pipe, False)
    with selectors.DefaultSelector() as selector:
        selector.register(pipe, selectors.EVENT_READ)
        while True:
            over = process.poll() is not None
            with contextlib.suppress(BlockingIOError):
                piece = os.read(pipe, 65536)
                tail = (tail + piece)[-TAIL:]
                if not piece and not over:  # it has closed stderr
                    time.sleep(min(LOOK_SECONDS, max(0.0, end - time.monotonic())))
            if over:
                return tail
            if time.monotonic() >= end:
                return None
            selector.select(min(LOOK_SECONDS, max(0.0, end - time.monotonic())))


def _kill(process: subprocess.Popen[bytes]) -> None:
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
