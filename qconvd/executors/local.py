"""Tasks as process groups on this machine.

An attempt's files, in `<state>/tasks/<task>.<attempt>/`:

    spec.json    what to do, written before `submit`
    alive        locked (flock) as long as any process of the attempt lives
    start.json   written before the runner is started: an attempt is started at most once
    pid.json     the runner, its start time and the boot, so that a reused pid is never signalled
    cancel.json  a stop was asked for, and when it will be forced
    exit.json    how the worker ended, written by the runner

All of it is on disk, so a daemon that was killed and started again goes on with the handles in its ledger.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from qconvd.errors import QconvdError
from qconvd.executors import runner
from qconvd.executors.base import Status, events_in
from qconvd.executors.nursery import Nursery

COMMAND = (sys.executable, "-P", "-m", "qconvd.worker")
"""-P: the current folder is not searched for modules."""
CHUNK = 1 << 20


class LocalExecutor:
    """One session per attempt, led by a small runner that records the exit code. `state` is the state folder.

    Attempts outlive this process, unless they are `tied` to it: then they are stopped when it ends, however it ends. With
    `forks`, tied attempts with the environment of the first, threads aside, are forks of one process that has imported what
    workers need.
    """

    def __init__(
        self, state: Path, command: Sequence[str] = COMMAND, *, nice: int = 0, tied: bool = False, forks: bool = False
    ) -> None:
        self._state = state
        self._command = tuple(command)
        self._nice = nice
        self._children: dict[str, int] = {}
        self._tie = _high_pipe() if tied else None
        self._forks = forks and tied
        self._nursery: Nursery | None = None

    def fork_this(self, env: Mapping[str, str]) -> None:
        """Let attempts be forks of a fork of this process, which has imported much of what they need.

        Called before SQLite has opened anything in this process. Not if workers must not know all of its environment (tokens),
        which every process can read of itself, nor where no process can be made: an attempt will say so.
        """
        if self._forks and os.environ.keys() <= env.keys():
            with suppress(OSError):
                self._nursery = Nursery(env, fork=True)

    def close(self) -> None:
        """Let go of the pipe that `tied` attempts hang on; those that still run are stopped."""
        if self._nursery:
            self._nursery.close()
            self._nursery = None
        for end in self._tie or ():
            os.close(end)
        self._tie = None

    def folder(self, handle: str) -> Path:
        """Where an attempt's files are."""
        return self._state / "tasks" / handle

    def log_path(self, handle: str) -> Path:
        """The log of the task; its attempts follow each other in it."""
        return self._state / "logs" / f"{handle.rpartition('.')[0]}.log"

    def submit(self, spec: Path, attempt: int, env: Mapping[str, str], *, timeout: float | None = None) -> str:
        handle = spec.parent.name
        if not handle.endswith(f".{attempt}") or spec.parent != self.folder(handle):
            raise ValueError(f"{spec} is not the spec of attempt {attempt} in {self.folder('<task>.<attempt>')}")
        lock = _open_high(spec.parent / "alive")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if (spec.parent / "start.json").exists():
                return handle
            self._start(spec, handle, env, lock, timeout)
        except BlockingIOError:
            return handle
        except OSError as error:
            raise QconvdError(f"the worker cannot be started: {error.strerror}", where=str(spec.parent)) from error
        finally:
            # The children hold the same lock through their copies of the descriptor.
            os.close(lock)
        return handle

    def poll(self, handle: str) -> Status:
        self._reap()
        folder = self.folder(handle)
        alive = locked(folder / "alive")
        ended, cancel = _read(folder / "exit.json"), _read(folder / "cancel.json")
        if ended is not None:
            return _status_of(int(ended.get("code", 1)), str(ended.get("reason", "")), cancelled=cancel is not None)
        if alive:
            if cancel is not None and _now() >= float(cancel.get("deadline", 0)):
                self._signal(folder, signal.SIGKILL)
            return Status("running")
        if cancel is not None:
            return Status("cancelled", reason="was stopped")
        if not (folder / "start.json").exists():
            return Status("cancelled", reason="the daemon ended before the worker was started")
        return Status("lost", reason="the worker is gone and left no record of how it ended")

    def events(self, handle: str, cursor: int) -> tuple[list[dict[str, Any]], int]:
        start = _read(self.folder(handle) / "start.json") or {}
        cursor = max(cursor, int(start.get("offset", 0)))
        try:
            with self.log_path(handle).open("rb") as log:
                log.seek(cursor)
                data = log.read(CHUNK)
        except OSError:
            return [], cursor
        found, length = events_in(data)
        if not length and len(data) == CHUNK:
            # A line of that length is no event of ours.
            length = len(data)
        return found, cursor + length

    def cancel(self, handle: str, grace: float) -> None:
        if self.poll(handle).ended:
            return
        folder = self.folder(handle)
        deadline = _now() + grace
        before = _read(folder / "cancel.json")
        if before is None or deadline < float(before.get("deadline", 0)):
            with suppress(OSError):  # a full disk must not keep the worker from hearing of it
                runner.record(folder / "cancel.json", {"deadline": deadline})
        if before is None:
            if self._nursery and not (folder / "pid.json").exists():
                # It is busy with the imports of plugins, which may take long, and has not come to this one.
                self._nursery.kill()
            self._signal(folder, signal.SIGTERM)
        self.poll(handle)

    def logs(self, handle: str) -> str:
        start = _read(self.folder(handle) / "start.json") or {}
        try:
            with self.log_path(handle).open("rb") as log:
                log.seek(int(start.get("offset", 0)))
                return log.read().decode(errors="replace")
        except OSError:
            return ""

    def forget(self, handle: str) -> None:
        """Remove the files of an attempt that has ended; its log stays."""
        if self.poll(handle).ended:
            shutil.rmtree(self.folder(handle), ignore_errors=True)

    def _start(self, spec: Path, handle: str, env: Mapping[str, str], lock: int, timeout: float | None) -> None:
        path = self.log_path(handle)
        path.parent.mkdir(parents=True, exist_ok=True)
        log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        try:
            runner.record(spec.parent / "start.json", {"offset": os.fstat(log).st_size})
            if self._tie and self._forked(env, spec, timeout, log=log, lock=lock, tie=self._tie[0]):
                return
            command = (*self._command, str(spec))
            if self._nice:
                command = ("nice", "-n", str(self._nice), *command)
            tied = ("--tied",) if self._tie else ()
            tie = [(os.POSIX_SPAWN_DUP2, self._tie[0], runner.TIE)] if self._tie else []
            self._children[handle] = os.posix_spawn(
                sys.executable,
                [sys.executable, "-P", runner.__file__, *tied, str(spec.parent), str(timeout or 0), *command],
                dict(env),
                # Duplicates lose the close-on-exec flag that the originals keep. The log first: it may have the lock's number.
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, log, 1),
                    (os.POSIX_SPAWN_DUP2, log, 2),
                    (os.POSIX_SPAWN_DUP2, lock, runner.LOCK),
                    *tie,
                    (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                ],
                setsid=True,
            )
        finally:
            os.close(log)

    def _forked(self, env: Mapping[str, str], spec: Path, timeout: float | None, *, log: int, lock: int, tie: int) -> bool:
        """Start an attempt as a fork, if that is possible."""
        if self._forks and self._nursery is None:
            self._nursery = Nursery(env)
        return self._nursery is not None and self._nursery.start(spec, env, timeout, log=log, lock=lock, tie=tie)

    def _reap(self) -> None:
        """Collect the runners that have ended, where they are children of this process and not of a daemon before it.

        All of them each time: nobody polls an attempt again whose end was seen just before its runner was gone.
        """
        for handle, pid in list(self._children.items()):
            try:
                ended, _ = os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:
                ended = pid
            if ended:
                self._children.pop(handle, None)

    def _signal(self, folder: Path, number: signal.Signals) -> None:
        """Signal every process of an attempt, if its group is still its own."""
        known = _read(folder / "pid.json")
        if known is None or known.get("boot") != runner.boot_id() or not locked(folder / "alive"):
            return
        pid = int(known["pid"])
        # No process of that number: the runner was killed. Its group's number stays taken as long as the worker lives.
        if runner.start_time(pid) in (known.get("start"), None):
            try:
                os.killpg(pid, number)
            except ProcessLookupError:
                return


def _status_of(code: int, reason: str, *, cancelled: bool) -> Status:
    if cancelled and code != 0:
        return Status("cancelled", code)
    if code == 0:
        return Status("succeeded", 0)
    if not reason and code == -signal.SIGKILL:
        reason = "was killed (out of memory?)"
    elif not reason and code < 0:
        reason = f"crashed ({signal.strsignal(-code) or 'signal'}, signal {-code})"
    return Status("failed", code, reason or f"ended with exit code {code}")


def _open_high(path: Path) -> int:
    return runner.high(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644))


def _high_pipe() -> tuple[int, int]:
    """The reading and the writing end."""
    reading, writing = os.pipe2(os.O_CLOEXEC)
    return runner.high(reading), writing


def locked(path: Path) -> bool:
    """Whether some process holds a file's lock; of an attempt's `alive`, whether a process of the attempt lives."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _read(path: Path) -> dict[str, Any] | None:
    try:
        data = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return data if isinstance(data, dict) else None


def _now() -> float:
    """Seconds since boot: the same for a daemon and the one after it, and not moved by setting the clock."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
