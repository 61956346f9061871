"""Workers that are forks of one process: the same files, exit codes and deaths as of those that are started as programs."""

from __future__ import annotations

import os
import signal
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


def test_plugins_are_loaded_once_but_not_one_that_starts_a_thread(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Such a process cannot be forked: the nursery starts anew without plugins, and what it was asked for is done then."""
    where = tmp_path / "installed"
    (where / "threads-1.dist-info").mkdir(parents=True)
    (where / "threads-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: threads\nVersion: 1\n")
    (where / "threads-1.dist-info" / "entry_points.txt").write_text("[qconvd]\nthreads = threads_of_mine\n")
    module = where / "threads_of_mine.py"
    env = {**ENV, "PYTHONPATH": str(where)}
    for number, (code, bare) in enumerate((("print('here I am')", False), (THREAD, True), ("1 / 0", False)), 1):
        module.write_text(code)
        executor = LocalExecutor(tmp_path / f"state{number}", tied=True, forks=True)
        try:
            assert _end(executor, _submit(executor, "1.1", env)).exit_code == EXIT_ERROR
            assert (b"--bare" in Path(f"/proc/{_nursery(executor)}/cmdline").read_bytes()) is bare
            assert not executor._children, "it was a fork"
        finally:
            executor.close()
        assert capfd.readouterr() == ("", "")


THREAD = "import threading, time\nthreading.Thread(target=time.sleep, args=(600,), daemon=True).start()"


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
