"""A process that is a worker but for its task: what every worker imports is imported once, and a worker is a fork of it.

    python -P -m qconvd.executors.nursery [--bare]        descriptor 3: a socket of whoever starts attempts

or a fork of a command that has imported half of it anyway.

Each request is a message of JSON {"folder", "timeout", "spec", "threads"} with three descriptors: log, lock and tie (see
runner.py). Every attempt is still a session and a process of its own. The nursery has one thread, which is what makes forking
safe, and ends when its socket is closed. It has loaded the plugins, too, unless it is `--bare`, which it becomes by itself
where one of them starts a thread.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import io
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, TextIO, cast

from qconvd.executors import runner
from qconvd.executors.base import THREADS

SOCKET = 3
LIMIT = 1 << 16
PRELOADED = ("qconvd.worker", "qconvd.plugins")
STEP = 0.02
BARE = "--bare"
HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
COLLECTED_EVERY = (700, 10, 10)
"""Python's own. A command that only starts collects more rarely; in workers what is garbage may be large."""


class Nursery:
    """The side that starts attempts. They get the environment that it was started with, but for their numbers of threads.

    With `fork` it is a fork of this process, if that has one thread. It imports modules from wherever this process does, and
    what environment that began with can be read in /proc. SQLite must not have anything open then: it keeps in the process
    which locks it holds, and a fork would believe that it holds them, too.
    """

    def __init__(self, env: Mapping[str, str], *, fork: bool = False) -> None:
        self.env = dict(env)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket = ours
        with theirs:
            self._pid = _fork(theirs, self.env) if fork and _threads() == 1 else _spawn(theirs, self.env)

    def start(self, spec: Path, env: Mapping[str, str], timeout: float | None, *, log: int, lock: int, tie: int) -> bool:
        """Start an attempt; False if the nursery is gone, or is none for this environment."""
        threads = {name: env[name] for name in THREADS if name in env}
        if {**self.env, **threads} != env:
            return False
        request = {"folder": str(spec.parent), "timeout": timeout, "spec": str(spec), "threads": threads}
        try:
            socket.send_fds(self._socket, [json.dumps(request).encode()], [log, lock, tie])
        except OSError:
            return False
        return True

    def kill(self) -> None:
        """End the nursery now. What it has started goes on; what it has not, never starts."""
        with suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)

    def close(self) -> None:
        """End the nursery, when what it has started has ended."""
        self._socket.close()
        with suppress(ChildProcessError):
            os.waitpid(self._pid, 0)


_kept: list[TextIO] = []
"""Streams of a command, in its fork."""


def _spawn(requests: socket.socket, env: Mapping[str, str]) -> int:
    return os.posix_spawn(
        sys.executable,
        [sys.executable, "-P", "-m", "qconvd.executors.nursery"],
        env,
        file_actions=[(os.POSIX_SPAWN_DUP2, requests.fileno(), SOCKET)],
        setsid=True,
    )


def _fork(requests: socket.socket, env: Mapping[str, str]) -> int:
    parent = os.getpid()
    # What this process does at a signal is not for its fork, which is to have settled its own before one comes.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)
    try:
        pid = os.fork()
        if pid == 0:
            _go_on(requests, env, parent, before)
        return pid
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _go_on(requests: socket.socket, env: Mapping[str, str], parent: int, signals: Iterable[int]) -> None:
    """In the fork of a command: what `main` is in a program of its own. Never returns."""
    try:
        os.setsid()
        for number in HANDLED:
            if callable(signal.getsignal(number)):
                signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_SETMASK, signals)
        _end_with_parent(parent)
        os.dup2(requests.fileno(), SOCKET)
        for descriptor in [int(path.name) for path in Path("/proc/self/fd").iterdir()]:
            if descriptor > SOCKET:
                with suppress(OSError):
                    os.close(descriptor)
        os.environ.clear()
        os.environ.update(env)
        # What the command has printed, and is still in its buffers, is its own. Its streams may close their descriptors.
        _kept.extend((sys.stdout, sys.stderr))
        sys.stdout, sys.stderr = (_stream(number, stream) for number, stream in ((1, sys.stdout), (2, sys.stderr)))
        logging.root.handlers.clear()
        gc.set_threshold(*COLLECTED_EVERY)
        _serve(bare=False)
    except BaseException:  # noqa: BLE001 — a fork must not go on as the command
        traceback.print_exc()
    finally:
        os._exit(1)


def _stream(number: int, like: TextIO) -> TextIO:
    """A new stream for a descriptor, which buffers nothing."""
    raw = open(number, "wb", buffering=0, closefd=False)  # noqa: SIM115 — for as long as the process lives
    return io.TextIOWrapper(cast(BinaryIO, raw), like.encoding, like.errors, write_through=True)


def main() -> None:
    # A terminal's Ctrl-C is for the command that started this one, which then stops its attempts.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _end_with_parent(os.getppid())
    _serve(bare=BARE in sys.argv)


def _serve(*, bare: bool) -> None:
    """Import what workers need, and start attempts until nobody can ask for one. Never returns."""
    requests = socket.socket(fileno=SOCKET)
    requests.set_inheritable(False)
    # What is imported stays: looking for garbage in it meanwhile takes a tenth of the time.
    gc.disable()
    for module in PRELOADED:
        importlib.import_module(module)
    from qconvd.engine import plan

    plan.prepare()
    if not bare:
        _load_plugins(requests)
    gc.collect()
    gc.freeze()
    gc.enable()
    attempts: set[int] = set()
    while True:
        data, descriptors, _, _ = socket.recv_fds(requests, LIMIT, 3)
        if not data:
            break
        pid = os.fork()
        if pid == 0:
            _attempt(json.loads(data), descriptors, requests)
        attempts.add(pid)
        for descriptor in descriptors:
            os.close(descriptor)
        _reap(attempts, os.WNOHANG)
    _reap(attempts, 0)
    # Without what plugins want done at the end of a process: they did not ask for this one.
    os._exit(0)


def _end_with_parent(parent: int) -> None:
    """Who kills the command with -9 while plugins are imported is not to find this process there as long as they take."""
    death = 1  # PR_SET_PDEATHSIG of prctl(2)
    ctypes.CDLL(None).prctl(death, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _load_plugins(requests: socket.socket) -> None:
    """Load them here, where it is done once, and silently: what a plugin prints or lacks, the command has told already."""
    from qconvd.errors import QconvdError
    from qconvd.plugins import plugins

    before = _threads()
    logging.disable()
    with _silence(), suppress(QconvdError):
        plugins()
    logging.disable(logging.NOTSET)
    if _threads() > before:
        # A fork would have the locks that the other threads hold, and not the threads. Requests wait in the socket meanwhile.
        requests.set_inheritable(True)
        os.execv(sys.executable, [sys.executable, "-P", "-m", "qconvd.executors.nursery", BARE])


@contextmanager
def _silence() -> Iterator[None]:
    """Nothing reaches the terminal, which is the command's."""
    kept = [os.dup(number) for number in (1, 2)]
    with Path(os.devnull).open("w") as null:
        for number in (1, 2):
            os.dup2(null.fileno(), number)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, descriptor in zip((1, 2), kept, strict=True):
            os.dup2(descriptor, number)
            os.close(descriptor)


def _threads() -> int:
    return sum(1 for _ in Path("/proc/self/task").iterdir())


def _reap(attempts: set[int], options: int) -> None:
    """Collect attempts that have ended, or wait for all of them: what they used counts as ours, and as our parent's.

    Not any child: a plugin may have started some, which end when they like.
    """
    for pid in list(attempts):
        with suppress(ChildProcessError):
            if os.waitpid(pid, options)[0] == 0:
                continue
        attempts.discard(pid)


def _attempt(request: Mapping[str, object], descriptors: list[int], requests: socket.socket) -> None:
    """In the fork: what the runner of an attempt is that was started as a program. Never returns."""
    code = 1
    try:
        os.setsid()
        # First away from the numbers that are given out below.
        log, lock, tie = (runner.high(descriptor) for descriptor in descriptors)
        requests.close()
        null = runner.high(os.open(os.devnull, os.O_RDONLY))
        for old, new in ((null, 0), (log, 1), (log, 2), (lock, runner.LOCK), (tie, runner.TIE)):
            os.dup2(old, new)
        for descriptor in (null, log, lock, tie):
            os.close(descriptor)
        seconds = request["timeout"]
        timeout = float(seconds) if isinstance(seconds, int | float) else None
        spec, threads = str(request["spec"]), request["threads"]
        assert isinstance(threads, dict)
        runner.main(Path(str(request["folder"])), timeout, lambda: _Forked(spec, threads), tied=True)
        code = 0
    except BaseException:  # noqa: BLE001 — a fork must not go on as the nursery
        traceback.print_exc()
    finally:
        os._exit(code)


class _Forked:
    """A worker, as the runner knows one: a fork of the runner, which was a fork of the nursery."""

    def __init__(self, spec: str, threads: Mapping[str, str]) -> None:
        self.pid = os.fork()
        if self.pid == 0:
            _work(spec, threads)
        self._code: int | None = None

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, negative for a signal. Raises subprocess.TimeoutExpired."""
        end = None if timeout is None else time.monotonic() + timeout
        while self._code is None:
            pid, status = os.waitpid(self.pid, 0 if end is None else os.WNOHANG)
            if pid:
                self._code = os.waitstatus_to_exitcode(status)
            elif end is not None and time.monotonic() >= end:
                raise subprocess.TimeoutExpired("worker", timeout or 0)
            else:
                time.sleep(STEP)
        return self._code

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)


def _work(spec: str, threads: Mapping[str, str]) -> None:
    """In the fork of the fork: the worker itself. Never returns."""
    code = 1
    try:
        os.environ.update(threads)
        for number in HANDLED:
            signal.signal(number, signal.SIG_DFL)
        os.close(runner.TIE)
        from qconvd import worker

        code = worker.main(["worker", spec])
    except BaseException:  # noqa: BLE001 — likewise
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
