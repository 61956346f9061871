"""Whole commands, measured: wall seconds, CPU seconds and peak RSS of a command with everything it started."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

PR_SET_CHILD_SUBREAPER = 36


@dataclass(frozen=True)
class Cost:
    """Seconds on the clock, seconds of CPU over all processes, and the largest process's peak RSS in bytes."""

    wall: float
    cpu: float
    rss: int

    def __str__(self) -> str:
        return f"{self.wall:7.1f} s wall {self.cpu:7.1f} s CPU {self.rss / 1e6:7.0f} MB peak RSS"


def cost(command: Sequence[str], log: Path) -> Cost:
    """Run a command to its end, with the descendants that it leaves behind. RuntimeError with the log's end if it fails.

    A small process of its own starts it: a command's peak RSS begins with what its parent held when it was started.
    """
    answer = subprocess.run([sys.executable, __file__, str(log), *command], stdout=subprocess.PIPE, check=True)
    code, *figures = json.loads(answer.stdout)
    if code:
        raise RuntimeError(f"{' '.join(command)} ended with {code}:\n{log.read_text(errors='replace')[-2000:]}")
    return Cost(*figures)


def _measure(log: Path, command: Sequence[str]) -> tuple[int, float, float, int]:
    """Exit code, wall seconds, CPU seconds, peak RSS in bytes."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    # Python keeps its bytecode, as it does wherever a package was installed: this is no measurement of its compiler.
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    started = time.monotonic()
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, stdin=subprocess.DEVNULL, env=environment)
    cpu, rss, code = 0.0, 0, 0
    while True:
        try:
            pid, status, usage = os.wait4(-1, 0)
        except ChildProcessError:
            break
        cpu += usage.ru_utime + usage.ru_stime
        rss = max(rss, usage.ru_maxrss * 1024)
        if pid == process.pid:
            code = process.returncode = os.waitstatus_to_exitcode(status)
    return code, time.monotonic() - started, cpu, rss


def middle(costs: Sequence[Cost]) -> Cost:
    """The median of each figure."""
    return Cost(median(c.wall for c in costs), median(c.cpu for c in costs), int(median(c.rss for c in costs)))


def thread_seconds(call: Callable[[], object]) -> float:
    """Seconds of CPU that a call takes of this thread."""
    began = time.thread_time()
    call()
    return time.thread_time() - began


def machine() -> str:
    """The processor's name and how many cores may be used."""
    text = Path("/proc/cpuinfo").read_text()
    name = next((line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")), "unknown")
    return f"{name}, {len(os.sched_getaffinity(0))} cores, Python {sys.version.split()[0]}"


if __name__ == "__main__":
    print(json.dumps(_measure(Path(sys.argv[1]), sys.argv[2:])))
