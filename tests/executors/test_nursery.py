"""Workers that are forks of one process: the same files, exit codes and deaths as of those that are started as programs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from qconvd.executors.base import Status, environment
from qconvd.executors.local import LocalExecutor
from qconvd.tasks import EXIT_ERROR

ENV = environment("cpu", "", 1)


@pytest.fixture
def executor(tmp_path: Path) -> Iterator[LocalExecutor]:
    executor = LocalExecutor(tmp_path / "state", tied=True, forks=True)
    yield executor
    executor.close()


def _submit(executor: LocalExecutor, handle: str, env: dict[str, str] = ENV) -> str:
    """A worker with a spec that says nothing: it ends at once with `EXIT_ERROR` and a sentence."""
    folder = executor.folder(handle)
    folder.mkdir(parents=True)
    (folder / "spec.json").write_text("{}")
    return executor.submit(folder / "spec.json", int(handle.rpartition(".")[2]), env)


def _until(condition: Callable[[], bool]) -> None:
    """Wait for something that must happen; the limit only keeps a broken test from hanging."""
    for _ in range(3000):
        if condition():
            return
        time.sleep(0.02)
    raise AssertionError("did not happen")


def _end(executor: LocalExecutor, handle: str) -> Status:
    _until(lambda: executor.poll(handle).ended)
    return executor.poll(handle)


def _nursery(executor: LocalExecutor) -> int:
    assert executor._nursery is not None
    return executor._nursery._pid


def test_a_fork_says_how_it_ended_and_what_it_said(executor: LocalExecutor) -> None:
    refused = Status("failed", EXIT_ERROR, f"ended with exit code {EXIT_ERROR}")
    assert [_end(executor, _submit(executor, f"{n}.1")) for n in (1, 2)] == [refused, refused]
    assert "spec.json" in executor.logs("1.1")
    assert executor.logs("1.1").count("\n") == executor.logs("2.1").count("\n")
    assert not executor._children


def test_another_environment_gets_a_program_of_its_own(executor: LocalExecutor) -> None:
    assert _end(executor, _submit(executor, "1.1")).exit_code == EXIT_ERROR
    assert _end(executor, _submit(executor, "2.1", {**ENV, "CUDA_VISIBLE_DEVICES": "7"})).exit_code == EXIT_ERROR
    assert list(executor._children) in (["2.1"], [])
    assert executor.logs("1.1").replace("/1.1/", "/2.1/") == executor.logs("2.1")


def test_the_number_of_threads_is_each_attempts_own(executor: LocalExecutor) -> None:
    for number, threads in enumerate((2, 1, 3), 1):
        handle = _submit(executor, f"{number}.1", environment("cpu", "", threads))
        assert handle not in executor._children, "it is a fork, not a program"
        assert _end(executor, handle).exit_code == EXIT_ERROR


def _installed(where: Path, code: str) -> dict[str, str]:
    """The environment in which a plugin of that code is installed."""
    (where / "mine-1.dist-info").mkdir(parents=True, exist_ok=True)
    (where / "mine-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1\n")
    (where / "mine-1.dist-info" / "entry_points.txt").write_text("[qconvd]\nmine = plugin_of_mine\n")
    (where / "plugin_of_mine.py").write_text(code)
    return {**ENV, "PYTHONPATH": str(where)}


def test_plugins_are_loaded_once_but_not_one_that_starts_a_thread(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Such a process cannot be forked: the nursery starts anew without plugins, and what it was asked for is done then."""
    for number, (code, bare) in enumerate((("print('here I am')", False), (THREAD, True), ("1 / 0", False)), 1):
        env = _installed(tmp_path / f"installed{number}", code)
        executor = LocalExecutor(tmp_path / f"state{number}", tied=True, forks=True)
        try:
            assert _end(executor, _submit(executor, "1.1", env)).exit_code == EXIT_ERROR
            assert (b"--bare" in Path(f"/proc/{_nursery(executor)}/cmdline").read_bytes()) is bare
            assert not executor._children, "it was a fork"
        finally:
            executor.close()
        assert capfd.readouterr() == ("", "")


THREAD = "import threading, time\nthreading.Thread(target=time.sleep, args=(600,), daemon=True).start()"


def test_what_a_plugin_starts_or_wants_at_the_end_holds_nobody_up(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code = (
        "import atexit, subprocess, sys\n"
        "atexit.register(print, 'at the end')\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"open({str(tmp_path / 'pid')!r}, 'a').write(f'{{child.pid}} ')\n"
    )
    executor = LocalExecutor(tmp_path / "state", tied=True, forks=True)
    try:
        assert _end(executor, _submit(executor, "1.1", _installed(tmp_path / "installed", code))).exit_code == EXIT_ERROR
        executor.close()  # would wait ten minutes
        assert capfd.readouterr().out == ""
    finally:
        for pid in (tmp_path / "pid").read_text().split():
            os.kill(int(pid), signal.SIGKILL)


def test_an_attempt_is_stopped_that_waits_for_a_plugin_to_be_imported(tmp_path: Path) -> None:
    env = _installed(tmp_path / "installed", "import time; time.sleep(600)")
    executor = LocalExecutor(tmp_path / "state", tied=True, forks=True)
    handle = _submit(executor, "1.1", env)
    assert executor.poll(handle) == Status("running")
    executor.cancel(handle, 600)
    assert _end(executor, handle).state == "cancelled"
    executor.close()


def test_a_nursery_ends_with_who_started_it_whatever_it_does(tmp_path: Path) -> None:
    env = _installed(tmp_path / "installed", f"open({str(tmp_path / 'began')!r}, 'w').close(); import time; time.sleep(600)")
    script = (
        "import sys, time\n"
        "from qconvd.executors.nursery import Nursery\n"
        "import os\n"
        "print(Nursery(dict(os.environ))._pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    starter = subprocess.Popen([sys.executable, "-c", script], env=env, stdout=subprocess.PIPE, text=True)
    _killed(starter, tmp_path / "began")


def _killed(starter: subprocess.Popen[str], began: Path) -> None:
    """Kill who has started a nursery, and says its number, when that has begun with something long; and see the nursery end."""
    assert starter.stdout is not None
    with starter.stdout as said:
        pid = int(said.readline())
    _until(began.exists)
    starter.kill()
    starter.wait()
    _until(lambda: not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2][:3])


COMMAND = """
import os, signal, sys, threading, time
from pathlib import Path
from qconvd.executors.base import environment
from qconvd.executors.local import LocalExecutor

del sys.path[0]  # as a command does
env = environment("cpu", "", 1)
executor = LocalExecutor(Path({state!r}), tied=True, forks=True)

def started():
    # A program of its own, and no fork.
    return b"-m" in Path(f"/proc/{{executor._nursery._pid}}/cmdline").read_bytes().split(b"\\0")
"""
SUBMITTED = """
folder = executor.folder("1.1")
folder.mkdir(parents=True)
(folder / "spec.json").write_text("{}")
executor.submit(folder / "spec.json", 1, env)
assert not executor._children, "it is a fork, not a program"
while not executor.poll("1.1").ended:
    time.sleep(0.02)
assert executor.poll("1.1").exit_code == 3, executor.logs("1.1")
"""


def _command(tmp_path: Path, code: str, plugin: str = "") -> subprocess.Popen[str]:
    """A program like a command, with an executor of its own, and a plugin that is loaded in whatever starts its workers."""
    env = _installed(tmp_path / "installed", plugin)
    beginning = COMMAND.format(state=str(tmp_path / "state"))
    return subprocess.Popen([sys.executable, "-c", beginning + code], env=env, stdout=subprocess.PIPE, text=True)


SEEN = """
import json, logging, os, signal, sys
sys.path.insert(0, "vendored")
json.dump({
    "environ": dict(os.environ), "path": sys.path, "handlers": len(logging.root.handlers), "pid": os.getpid(),
    "signals": [signal.getsignal(n) == signal.SIG_DFL for n in (signal.SIGTERM, signal.SIGHUP)],
    "blocked": len(signal.pthread_sigmask(signal.SIG_BLOCK, ())), "files": len(os.listdir("/proc/self/fd")),
}, open("%s", "w"))
"""


def test_a_fork_of_a_command_is_as_a_nursery_that_was_started(tmp_path: Path) -> None:
    seen = {}
    for way, first in (("spawned", ""), ("forked", "executor.fork_this(env)\n")):
        where = tmp_path / way
        where.mkdir()
        code = (
            "import logging\n"
            "logging.basicConfig()\n"
            "kept = open(os.devnull)\n"
            "signal.signal(signal.SIGTERM, signal.default_int_handler)\n"
            "print('only once')\n"
            f"{first}{SUBMITTED}"
            "print(executor._nursery._pid, started())\n"
            "executor.close()\n"
        )
        said = _command(where, code, SEEN % (where / "seen")).communicate(timeout=60)[0].split("\n")
        assert said[0] == "only once"
        assert said[2:] == [""]
        pid, started = said[1].split()
        assert started == str(way == "spawned")
        seen[way] = json.loads((where / "seen").read_text().replace(way, "WAY"))
        assert seen[way].pop("pid") == int(pid)
        assert "only once" not in (where / "state" / "logs" / "1.log").read_text()
        # Python sets it for a program where the locale is C.
        seen[way]["environ"].pop("LC_CTYPE", None)
        assert seen[way]["path"][0] == "vendored", "where a plugin has its own modules"
    assert seen["forked"] == seen["spawned"]


@pytest.mark.parametrize(
    "reason", ["threading.Thread(target=time.sleep, args=(600,), daemon=True).start()", 'os.environ["HF_TOKEN"] = "secret"']
)
def test_a_command_with_threads_or_a_token_is_not_forked(tmp_path: Path, reason: str) -> None:
    """A token is in what /proc has of the environment, whatever the fork does with its own."""
    code = f"{reason}\nexecutor.fork_this(env)\n{SUBMITTED}print(started(), flush=True)\nos._exit(0)\n"
    assert _command(tmp_path, code).communicate(timeout=60)[0] == "True\n"


def test_a_fork_of_a_command_that_was_killed_ends(tmp_path: Path) -> None:
    busy = f"open({str(tmp_path / 'began')!r}, 'w').close(); import time; time.sleep(600)"
    code = "executor.fork_this(env)\nprint(executor._nursery._pid, flush=True)\ntime.sleep(600)\n"
    _killed(_command(tmp_path, code, busy), tmp_path / "began")


def test_a_nursery_that_was_killed_is_done_without(executor: LocalExecutor) -> None:
    assert _end(executor, _submit(executor, "1.1")).exit_code == EXIT_ERROR
    os.kill(_nursery(executor), signal.SIGKILL)
    _until(lambda: Path(f"/proc/{_nursery(executor)}/stat").read_text().rpartition(")")[2].split()[0] == "Z")
    assert _end(executor, _submit(executor, "2.1")).exit_code == EXIT_ERROR


def test_an_interrupt_from_the_terminal_is_not_for_the_nursery(executor: LocalExecutor) -> None:
    assert _end(executor, _submit(executor, "1.1")).exit_code == EXIT_ERROR
    assert os.getsid(_nursery(executor)) == _nursery(executor)
    os.kill(_nursery(executor), signal.SIGINT)
    assert _end(executor, _submit(executor, "2.1")).exit_code == EXIT_ERROR
    assert not executor._children


def test_nothing_is_left_of_a_nursery(tmp_path: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    executor = LocalExecutor(tmp_path / "state", tied=True, forks=True)
    _end(executor, _submit(executor, "1.1"))
    pid = _nursery(executor)
    executor.close()
    assert not Path(f"/proc/{pid}").exists()
    assert len(list(Path("/proc/self/fd").iterdir())) == before
