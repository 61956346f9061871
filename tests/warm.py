"""Daemons and workers in forked processes: the same code in processes of its own, without importing everything again.

A run of the daemon with three workers takes a quarter of a second so, which makes it possible to kill one at every single call
that changes the disk. What is replaced is only how a process comes into being: `os.posix_spawn` in the daemon asks a
process that was forked before the ledger was opened (SQLite must not be carried through a fork) to fork the runner, and the
runner forks the worker. Locks, signals, process groups, files and exit codes are the real ones.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import shutil
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import crash
import qconvd.ledger.patience as patience
import qconvd.work as work_module
from qconvd import worker
from qconvd.config import load
from qconvd.daemon import Daemon
from qconvd.executors import runner
from qconvd.tasks import read_spec

LOCK, LOG = 3, 1


class Warm:
    """One config, run again and again. `log` counts the calls of all processes of a run; see crash.py."""

    def __init__(self, config: Path, arm: Callable[[], None] | None = None) -> None:
        """`arm` is called in every process that is armed, after the calls are counted."""
        self.config = config
        self.arm = arm
        self.root = config.parent
        self.state = self.root / "state"
        self.log = self.root / "calls"
        self.doubles = self.root / "doubles"

    def run(self, crash_at: int | None = None, *, power: bool = False, armed: bool = True) -> int:
        """Run the daemon with `--once`; its exit status, negative for a signal.

        The process that makes call number `crash_at` is killed before it makes it; with `power` all others die with it.
        """
        self.log.unlink(missing_ok=True)
        ours, theirs = socket.socketpair()
        with ours, theirs:
            self._fork(lambda: self._serve(theirs, ours, crash_at if armed else None, power, armed))
            daemon = self._fork(lambda: self._daemon(ours, theirs, crash_at, power, armed))
        return os.waitstatus_to_exitcode(os.waitpid(daemon, 0)[1])

    def _daemon(self, server: socket.socket, other: socket.socket, crash_at: int | None, power: bool, armed: bool) -> int:
        other.close()
        work_module.POLL_SECONDS = 0.02
        patience.FIRST_DELAY = 0.01
        logging.basicConfig(filename=self.root / "daemon.log", level=logging.INFO, force=True)
        (self.root / "daemon.pid").write_text(str(os.getpid()))

        def spawn(_: str, argv: Sequence[str], env: dict[str, str], *, file_actions: Sequence[Any], **__: object) -> int:
            descriptors = [a[1] for a in file_actions if a[0] == os.POSIX_SPAWN_DUP2 and a[2] in (LOCK, LOG)]
            message = json.dumps({"argv": argv, "env": env}).encode()
            socket.send_fds(server, [message], descriptors)
            return int(server.recv(32))

        os.posix_spawn = spawn  # type: ignore[assignment]
        if armed:
            self._arm(crash_at, power)
        return Daemon(load(self.config)).run(once=True)

    def _serve(self, asked: socket.socket, other: socket.socket, crash_at: int | None, power: bool, armed: bool) -> int:
        """Fork runners for the daemon until it is gone."""
        other.close()
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        while True:
            message, descriptors, _, _ = socket.recv_fds(asked, 1 << 20, 4)
            if not message:
                return 0
            request = json.loads(message)
            lock, log = descriptors
            pid = self._fork(lambda r=request, k=lock, g=log: self._runner(r, k, g, crash_at, power, armed))  # type: ignore[misc]
            os.close(lock)
            os.close(log)
            asked.send(str(pid).encode())

    def _runner(self, request: dict[str, Any], lock: int, log: int, crash_at: int | None, power: bool, armed: bool) -> int:
        os.setsid()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        spare = [fcntl.fcntl(d, fcntl.F_DUPFD, 100) for d in (lock, log)]
        os.dup2(spare[0], LOCK)
        os.dup2(spare[1], 1)
        os.dup2(spare[1], 2)
        for descriptor in spare:
            os.close(descriptor)
        os.environ.clear()
        os.environ.update(request["env"])
        sys.stdout = os.fdopen(1, "w", closefd=False)
        sys.stderr = os.fdopen(2, "w", closefd=False)
        if armed:
            self._arm(crash_at, power)
        place = next(i for i, a in enumerate(request["argv"]) if a.endswith("runner.py"))
        folder, timeout, *command = request["argv"][place + 1 :]
        runner.main(Path(folder), float(timeout) or None, lambda: _Worker(command, self))
        return 0

    def _arm(self, crash_at: int | None, power: bool) -> None:
        kill = os.kill
        if power:
            os.kill = self.power_failure
        crash.arm(crash_at, self.log)
        os.kill = kill
        if self.arm:
            self.arm()

    def power_failure(self, pid: int, number: int) -> None:
        """Kill every process of the run, this one last."""
        own_group = os.getpgrp()
        os.kill = _real_kill
        for file in (self.state / "tasks").glob("*/pid.json"):
            with suppress(OSError, ValueError, KeyError):
                group = int(json.loads(file.read_text())["pid"])
                if group != own_group:
                    os.killpg(group, number)
        daemon = int((self.root / "daemon.pid").read_text())
        if daemon == pid:
            os.kill(pid, number)
        with suppress(ProcessLookupError):
            os.kill(daemon, number)
        os.killpg(own_group, number)

    def _fork(self, action: Callable[[], int]) -> int:
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            status = 1
            try:
                status = action()
            except BaseException:  # noqa: BLE001 — the child must not go on as a second pytest
                with (self.root / "errors").open("a") as file:
                    traceback.print_exc(file=file)
            finally:
                os._exit(status)
        return child


class _Worker:
    """As `subprocess.Popen` is used by the runner, by forking."""

    def __init__(self, command: Sequence[str], warm: Warm) -> None:
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                spec = read_spec(Path(command[-1]))
                alone = os.open(warm.root / f"alone-{spec.task}", os.O_RDWR | os.O_CREAT)
                try:
                    fcntl.flock(alone, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    warm.doubles.touch()
                code = worker.main(["worker", command[-1]])
                sys.stdout.flush()
            except BaseException:  # noqa: BLE001 — as above
                traceback.print_exc()
            finally:
                os._exit(code)

    def wait(self, timeout: float | None = None) -> int:
        assert timeout is None or timeout > 60
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)


_real_kill = os.kill


def fresh(root: Path, pattern: Path) -> Warm:
    """A new home that looks like `pattern`."""
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(pattern, root, copy_function=shutil.copy)
    return Warm(root / "config.yaml")
