"""The parent of a worker, in a session of its own: it outlives the daemon and records how the worker ended.

    python -P runner.py [--tied] FOLDER TIMEOUT COMMAND…

Descriptor 3 is the attempt's lock. Runner and worker hold it, so it is free exactly when both are gone. With --tied, descriptor
4 reads from a pipe that whoever started the attempt holds the other end of, and the attempt ends with that process. Only the
standard library is imported: this process exists once per running task.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

LOCK = 3
TIE = 4
TIMEOUT_GRACE = 5.0


class Worker(Protocol):
    """A process that was started, as subprocess.Popen is one."""

    def wait(self, timeout: float | None = None) -> int: ...

    def kill(self) -> None: ...


def main(folder: Path, timeout: float | None, start: Callable[[], Worker], *, tied: bool = False) -> None:
    # A handler, not SIG_IGN: that would be inherited by the worker, which must hear the signal.
    signal.signal(signal.SIGTERM, lambda *_: None)
    signal.signal(signal.SIGINT, lambda *_: None)
    signal.signal(signal.SIGHUP, lambda *_: None)
    record(folder / "pid.json", {"pid": os.getpid(), "start": start_time(os.getpid()), "boot": boot_id()})
    # cancel() writes cancel.json and then looks for pid.json; here it is the other way round, so one of the two sees the other.
    if (folder / "cancel.json").exists():
        record(folder / "exit.json", {"code": -signal.SIGTERM})
        return
    try:
        worker = start()
    except OSError as error:
        record(folder / "exit.json", {"code": 127, "reason": f"cannot be started: {error}"})
        return
    if tied:
        threading.Thread(target=end_with_parent, daemon=True).start()
    try:
        record(folder / "exit.json", {"code": worker.wait(timeout)})
    except subprocess.TimeoutExpired:
        os.killpg(0, signal.SIGTERM)
        try:
            code = worker.wait(TIMEOUT_GRACE)
        except subprocess.TimeoutExpired:
            worker.kill()
            code = worker.wait()
        record(folder / "exit.json", {"code": code, "reason": f"took longer than {timeout:g} s and was stopped"})


def end_with_parent() -> None:
    """Stop the worker when the other end of the pipe closes, which the kernel does even for a process killed with -9."""
    os.read(TIE, 1)
    os.killpg(0, signal.SIGTERM)
    time.sleep(TIMEOUT_GRACE)
    os.killpg(0, signal.SIGKILL)


def high(descriptor: int) -> int:
    """The same file under a number that descriptors 0 to 4 cannot collide with; the old number is closed."""
    try:
        return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 10)
    finally:
        os.close(descriptor)


def record(path: Path, data: dict[str, Any]) -> None:
    """Write a file so that it is there whole or not at all."""
    fresh = path.with_name(f".{path.name}.new")
    with fresh.open("w") as file:
        json.dump(data, file)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)


def start_time(pid: int) -> int | None:
    """When a process started, in clock ticks since boot: field 22 of proc(5) stat. With the pid it names one process only."""
    try:
        # The second field is the program's name in parentheses and may hold anything.
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, IndexError, ValueError):
        return None


def boot_id() -> str:
    """Tells one boot of the machine from the next, after which all pids mean something else."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


if __name__ == "__main__":
    given = sys.argv[1:]
    to_parent = given[0] == "--tied"
    where, seconds, *program = given[1:] if to_parent else given
    main(Path(where), float(seconds) or None, lambda: subprocess.Popen(program, pass_fds=(LOCK,)), tied=to_parent)
