"""Kill a process at a chosen call that changes the disk, to see what is left.

Counted calls are those of `os` that write, sync, move or remove, and commits of SQLite. They are found by counting them in
a run that is left alone, never listed by hand:

HTTP of huggingface_hub's client is counted, too: a kill at `http.reply` is one after the server did it all, and before
anybody here heard of it.

    total = count(action)                    # in a forked child
    for n in range(total):
        crashed(action, n)                   # killed by SIGKILL before the n-th call
        action()                             # must mend everything

For processes that are started by a command line, put `environment(n, log)` into their environment: a sitecustomize
module then arms every Python process of the tree. All of them count in the one log, and the one that makes the n-th call dies.
"""

from __future__ import annotations

import fcntl
import os
import signal
import sqlite3
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

CALLS = (
    "fsync", "fdatasync", "rename", "replace", "renames", "link", "symlink", "unlink", "remove", "mkdir", "rmdir",
    "pwrite", "write", "truncate", "ftruncate", "posix_fallocate",
)  # fmt: skip
RECORD = 160
"""Bytes of a line of the log; its size tells how many calls there were."""
VARIABLE = "QCONVD_TEST_CRASH"
EVERY = os.environ.get("QCONVD_CRASHES") == "all"
"""`make crashes` kills at every point; `make test` at some, where all of them take many minutes."""


def some(points: Sequence[int]) -> Sequence[int]:
    """Every eighth of the points, or all of them with `make crashes`."""
    return points if EVERY else points[::8]


def arm(crash_at: int | None, log: Path) -> None:
    """Patch this process: every counted call is logged, and the call number `crash_at` kills instead. None: only count."""
    descriptor = os.open(log, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
    write, kill, own, threads = os.write, os.kill, os.getpid, threading.Lock()

    def pass_by(name: str, arguments: tuple[Any, ...]) -> None:
        if arguments and arguments[0] == descriptor:
            return
        line = " ".join([str(own()), name, *(named(a) for a in arguments[: 2 if name in ("rename", "replace") else 1])])
        with threads:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            number = os.fstat(descriptor).st_size // RECORD
            if number == crash_at:
                kill(own(), signal.SIGKILL)
                signal.pause()
            write(descriptor, line.encode()[: RECORD - 1].ljust(RECORD - 1) + b"\n")
            fcntl.flock(descriptor, fcntl.LOCK_UN)

    for name in CALLS:
        setattr(os, name, _wrapped(name, getattr(os, name), pass_by))

    class Connection(sqlite3.Connection):
        def commit(self) -> None:
            pass_by("sqlite.commit", ())
            super().commit()

        begun = 0

        def execute(self, sql: str, *arguments: Any) -> sqlite3.Cursor:
            words = sql.lstrip().upper()
            if words.startswith("BEGIN"):
                self.begun = self.total_changes
            # The end of a transaction that only read changes nothing.
            if words.startswith(("COMMIT", "END")) and self.total_changes != self.begun:
                pass_by("sqlite.commit", ())
            return super().execute(sql, *arguments)

        def __exit__(self, *error: Any) -> Any:
            if error[0] is None and self.in_transaction:
                pass_by("sqlite.commit", ())
            return super().__exit__(*error)

    if "httpx2" in sys.modules:
        transport: Any = sys.modules["httpx2"].HTTPTransport
        send = transport.handle_request

        def handle_request(self: Any, request: Any) -> Any:
            pass_by("http.send", (request.url.path,))
            reply = send(self, request)
            pass_by("http.reply", (request.url.path,))
            return reply

        transport.handle_request = handle_request

    connect = sqlite3.connect
    sqlite3.connect = lambda *a, **k: connect(*a, **{"factory": Connection, **k})  # type: ignore[assignment]


def count(action: Callable[[], object]) -> int:
    """How many counted calls `action` makes, run to its end in a forked child."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        status = _forked(action, None, log)
        assert status == 0, f"the action failed by itself: {status}"
        return calls(log)


def crashed(action: Callable[[], object], crash_at: int) -> bool:
    """Run `action` in a forked child that is killed before call number `crash_at`; False if it made fewer calls."""
    with tempfile.TemporaryDirectory() as folder:
        status = _forked(action, crash_at, Path(folder) / "log")
    assert status in (0, -signal.SIGKILL), f"the action failed by itself: {status}"
    return status != 0


def traced(action: Callable[[], object]) -> list[list[str]]:
    """The counted calls of `action` in their order: [name, first argument, …], run in a forked child."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        assert _forked(action, None, log) == 0
        return [line.split()[1:] for line in log.read_text().splitlines()]


def environment(crash_at: int | None, log: Path) -> dict[str, str]:
    """Variables that arm every Python process started with them. `log` counts across all of them; remove it between runs."""
    site = Path(__file__).parent / "crash_site"
    path = os.pathsep.join(p for p in (str(site), str(site.parent), os.environ.get("PYTHONPATH", "")) if p)
    return {VARIABLE: f"{'' if crash_at is None else crash_at}:{log}", "PYTHONPATH": path}


def arm_from(variables: Mapping[str, str]) -> None:
    """Arm this process if its environment says so; called by crash_site/sitecustomize.py."""
    if VARIABLE in variables:
        number, _, log = variables[VARIABLE].partition(":")
        arm(int(number) if number else None, Path(log))


def calls(log: Path) -> int:
    """How many calls a log holds."""
    return log.stat().st_size // RECORD if log.exists() else 0


def named(argument: Any) -> str:
    """The last part of a path, or of the path behind a descriptor."""
    path = Path(f"/proc/self/fd/{argument}").readlink() if isinstance(argument, int) else Path(os.fsdecode(argument))
    return path.name or "/"


def _wrapped(name: str, call: Callable[..., Any], pass_by: Callable[[str, tuple[Any, ...]], None]) -> Callable[..., Any]:
    def counted(*arguments: Any, **options: Any) -> Any:
        pass_by(name, arguments)
        return call(*arguments, **options)

    return counted


def _forked(action: Callable[[], object], crash_at: int | None, log: Path) -> int:
    """The child's exit status, negative for a signal. A fork is quick: nothing has to be imported again."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            arm(crash_at, log)
            action()
            status = 0
        except BaseException:  # noqa: BLE001 — the child must not go on as a second pytest
            traceback.print_exc()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
