"""Real processes: they outlive their daemon, stop when told, and are never mistaken for others."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from qconvd.errors import QconvdError
from qconvd.executors import runner
from qconvd.executors.base import Status, environment, events_in
from qconvd.executors.local import LocalExecutor

WORKER = """
import json, os, signal, subprocess, sys, time
spec = json.load(open(sys.argv[1]))
def event(**data): print("@@q " + json.dumps(data), flush=True)
event(event="started", pid=os.getpid(), group=os.getpgid(0), gpu=os.environ.get("CUDA_VISIBLE_DEVICES"), nice=os.nice(0))
do = spec.get("do", "end")
if do == "hang":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    event(event="child", pid=child.pid)
    time.sleep(600)
if do == "wait":
    def stop(*_): event(event="stopping"); sys.exit(4)
    signal.signal(signal.SIGTERM, stop)
    event(event="ready")
    time.sleep(600)
if do == "gate":
    while not os.path.exists(spec["gate"]): time.sleep(0.01)
if do == "die": os.kill(os.getpid(), spec["signal"])
print("plain words")
event(event="ended", stdin=sys.stdin.read())
sys.exit(spec.get("code", 0))
"""


@pytest.fixture
def executor(tmp_path: Path) -> Iterator[LocalExecutor]:
    executor = _executor(tmp_path)
    yield executor
    for folder in (tmp_path / "state" / "tasks").glob("*"):
        _until(lambda handle=folder.name: _ended(executor, handle))


def _ended(executor: LocalExecutor, handle: str) -> bool:
    executor.cancel(handle, 0)
    return executor.poll(handle).ended


def _executor(tmp_path: Path, nice: int = 0) -> LocalExecutor:
    worker = tmp_path / "worker.py"
    worker.write_text(WORKER)
    return LocalExecutor(tmp_path / "state", (sys.executable, str(worker)), nice=nice)


def _spec(executor: LocalExecutor, handle: str, **spec: object) -> Path:
    folder = executor.folder(handle)
    folder.mkdir(parents=True)
    (folder / "spec.json").write_text(json.dumps(spec))
    return folder / "spec.json"


def _submit(executor: LocalExecutor, handle: str, *, timeout: float | None = None, **spec: object) -> str:
    attempt = int(handle.rpartition(".")[2])
    return executor.submit(_spec(executor, handle, **spec), attempt, environment("cpu", "", 2), timeout=timeout)


def _until(condition: Callable[[], bool]) -> None:
    """Wait for something that must happen; the limit only keeps a broken test from hanging."""
    for _ in range(3000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it did not happen")


def _end(executor: LocalExecutor, handle: str) -> Status:
    _until(lambda: executor.poll(handle).ended)
    return executor.poll(handle)


def _event(executor: LocalExecutor, handle: str, name: str) -> dict[str, object]:
    _until(lambda: any(e["event"] == name for e in executor.events(handle, 0)[0]))
    return next(e for e in executor.events(handle, 0)[0] if e["event"] == name)


def _gone(pid: int) -> None:
    """A killed process whose parent died before it lives until the kernel and init have got to it."""
    end = time.monotonic() + 20
    while _alive(pid):
        assert time.monotonic() < end, f"{pid} lives on"
        time.sleep(0.02)


def _alive(pid: object) -> bool:
    return isinstance(pid, int) and runner.start_time(pid) is not None and _state(pid) != "Z"


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "gone"


def test_a_worker_runs_in_its_own_group_and_its_end_is_recorded(executor: LocalExecutor) -> None:
    handle = _submit(executor, "7.1")
    assert handle == "7.1"
    assert _end(executor, handle) == Status("succeeded", 0)
    events, cursor = executor.events(handle, 0)
    assert [e["event"] for e in events] == ["started", "ended"]
    assert events[0]["group"] not in (events[0]["pid"], os.getpgid(0)), "the runner leads the group"
    assert events[0]["gpu"] == ""
    assert events[1]["stdin"] == ""
    assert executor.events(handle, cursor) == ([], cursor)
    assert "plain words" in executor.logs(handle)
    assert executor.log_path(handle).name == "7.log"


def test_events_are_read_from_where_one_left_off(executor: LocalExecutor) -> None:
    handle = _submit(executor, "1.1", do="wait")
    _event(executor, handle, "ready")
    events, cursor = executor.events(handle, 0)
    assert [e["event"] for e in events] == ["started", "ready"]
    executor.cancel(handle, 30)
    assert _end(executor, handle) == Status("cancelled", 4, "")
    assert [e["event"] for e in executor.events(handle, cursor)[0]] == ["stopping"]


def test_a_second_attempt_shares_the_log_but_not_the_events(executor: LocalExecutor) -> None:
    assert _end(executor, _submit(executor, "1.1", code=3)) == Status("failed", 3, "ended with exit code 3")
    assert _end(executor, _submit(executor, "1.2")).state == "succeeded"
    first, second = executor.events("1.1", 0)[0], executor.events("1.2", 0)[0]
    assert [e["event"] for e in second] == ["started", "ended"]
    assert second[0]["pid"] != first[0]["pid"]
    assert executor.logs("1.1").count("plain words") == 2
    assert executor.logs("1.2").count("plain words") == 1


def test_an_attempt_is_started_once_however_often_it_is_submitted(executor: LocalExecutor, tmp_path: Path) -> None:
    handle = _submit(executor, "1.1", do="gate", gate=str(tmp_path / "gate"))
    spec = executor.folder(handle) / "spec.json"
    assert executor.submit(spec, 1, environment("cpu", "", 1)) == handle
    assert _executor(tmp_path).submit(spec, 1, environment("cpu", "", 1)) == handle
    (tmp_path / "gate").touch()
    assert _end(executor, handle).state == "succeeded"
    assert executor.submit(spec, 1, environment("cpu", "", 1)) == handle
    assert [e["event"] for e in executor.events(handle, 0)[0]] == ["started", "ended"]


def test_a_spec_in_the_wrong_place_is_a_mistake(executor: LocalExecutor) -> None:
    with pytest.raises(ValueError, match="is not the spec of attempt 2"):
        executor.submit(_spec(executor, "1.1"), 2, {})


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (signal.SIGKILL, "was killed (out of memory?)"),
        (signal.SIGSEGV, "crashed (Segmentation fault, signal 11)"),
        (signal.SIGABRT, "crashed (Aborted, signal 6)"),
    ],
)
def test_a_crash_says_which(executor: LocalExecutor, number: signal.Signals, reason: str) -> None:
    handle = _submit(executor, "1.1", do="die", signal=int(number))
    assert _end(executor, handle) == Status("failed", -number, reason)


def test_a_command_that_is_not_there_says_so(tmp_path: Path) -> None:
    executor = LocalExecutor(tmp_path / "state", (str(tmp_path / "no-such-program"),))
    status = _end(executor, _submit(executor, "1.1"))
    assert (status.state, status.exit_code) == ("failed", 127)
    assert status.reason.startswith("cannot be started: [Errno 2] No such file or directory")


def test_a_folder_that_cannot_be_written(executor: LocalExecutor, tmp_path: Path) -> None:
    (tmp_path / "state" / "tasks").mkdir(parents=True)
    (tmp_path / "state" / "logs").write_text("in the way")
    with pytest.raises(QconvdError, match="the worker cannot be started: File exists"):
        _submit(executor, "1.1")


def test_cancel_asks_and_then_forces_the_whole_group(executor: LocalExecutor) -> None:
    handle = _submit(executor, "1.1", do="hang")
    child, worker = _event(executor, handle, "child")["pid"], _event(executor, handle, "started")["pid"]
    executor.cancel(handle, 600)
    assert executor.poll(handle) == Status("running"), "it does not listen"
    assert _alive(child)
    executor.cancel(handle, 600)
    executor.cancel(handle, 0)
    assert _end(executor, handle) == Status("cancelled", None, "was stopped")
    _gone(child)
    _gone(worker)
    executor.cancel(handle, 0)
    assert executor.poll(handle).state == "cancelled"


def test_a_cancel_is_heard_even_before_the_worker_has_begun(executor: LocalExecutor) -> None:
    handle = _submit(executor, "1.1", do="wait")
    executor.cancel(handle, 600)
    assert _end(executor, handle).state == "cancelled"


def test_a_worker_that_takes_too_long_is_stopped_without_anybody_watching(executor: LocalExecutor) -> None:
    for number, seconds in enumerate((1.5, 6, 24)):
        handle = _submit(executor, f"{number}.1", do="wait", timeout=seconds)
        status = _end(executor, handle)
        assert (status.state, status.reason) == ("failed", f"took longer than {seconds} s and was stopped")
        if any(e["event"] == "ready" for e in executor.events(handle, 0)[0]):
            break  # on a busy machine it may not have come so far that it listens
    assert status.exit_code == 4


def test_poll_never_raises(executor: LocalExecutor) -> None:
    assert executor.poll("9.9").state == "cancelled"
    executor.folder("8.1").mkdir(parents=True)
    assert executor.poll("8.1") == Status("cancelled", None, "the daemon ended before the worker was started")
    for name in ("start.json", "pid.json", "exit.json", "cancel.json"):
        (executor.folder("8.1") / name).write_text("{torn")
    assert executor.poll("8.1").ended
    assert executor.events("9.9", 5) == ([], 5)
    assert executor.logs("9.9") == ""
    executor.cancel("9.9", 1)


def test_a_worker_that_vanished_without_a_record_is_lost(executor: LocalExecutor) -> None:
    handle = _submit(executor, "1.1", do="wait")
    _event(executor, handle, "ready")
    os.killpg(json.loads((executor.folder(handle) / "pid.json").read_text())["pid"], signal.SIGKILL)
    assert _end(executor, handle) == Status("lost", None, "the worker is gone and left no record of how it ended")


def test_a_worker_whose_runner_was_killed_still_counts_and_can_be_stopped(executor: LocalExecutor) -> None:
    handle = _submit(executor, "1.1", do="wait")
    worker = _event(executor, handle, "ready") and _event(executor, handle, "started")["pid"]
    os.kill(json.loads((executor.folder(handle) / "pid.json").read_text())["pid"], signal.SIGKILL)
    _until(lambda: executor.poll(handle) == Status("running") and not executor._children)
    assert _alive(worker)
    executor.cancel(handle, 600)
    assert _end(executor, handle).state == "cancelled"
    assert not _alive(worker)


@pytest.mark.parametrize("wrong", ["start", "boot"])
def test_a_reused_pid_is_not_signalled(executor: LocalExecutor, wrong: str) -> None:
    handle = _submit(executor, "1.1", do="wait")
    _event(executor, handle, "ready")
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    try:
        told = {"pid": stranger.pid, "start": runner.start_time(stranger.pid), "boot": runner.boot_id()}
        mine = json.loads((executor.folder(handle) / "pid.json").read_text())
        told[wrong] = 12345 if wrong == "start" else "another boot"
        runner.record(executor.folder(handle) / "pid.json", told)
        executor.cancel(handle, 0)
        assert executor.poll(handle) == Status("running")
        assert stranger.poll() is None
        runner.record(executor.folder(handle) / "pid.json", mine)
        assert _end(executor, handle).state == "cancelled"
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_an_attempt_that_is_over_is_not_signalled_whatever_has_its_pid_now(executor: LocalExecutor) -> None:
    handle = _submit(executor, "1.1", do="wait")
    _event(executor, handle, "ready")
    os.killpg(json.loads((executor.folder(handle) / "pid.json").read_text())["pid"], signal.SIGKILL)
    assert _end(executor, handle).state == "lost"
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    try:
        told = {"pid": stranger.pid, "start": runner.start_time(stranger.pid), "boot": runner.boot_id()}
        runner.record(executor.folder(handle) / "pid.json", told)
        executor.cancel(handle, 0)
        assert executor.poll(handle).state == "lost"
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


DAEMON = """
import sys, time
from pathlib import Path
from qconvd.executors.base import environment
from qconvd.executors.local import LocalExecutor
tied, *paths = sys.argv[1:]
state, worker, spec = map(Path, paths)
executor = LocalExecutor(state, (sys.executable, str(worker)), tied=bool(int(tied)))
print(executor.submit(spec, 1, environment("cpu", "", 1)), flush=True)
time.sleep(600)
"""


def test_a_worker_survives_the_daemon_and_the_next_one_goes_on_with_it(executor: LocalExecutor, tmp_path: Path) -> None:
    spec = _spec(executor, "5.1", do="gate", gate=str(tmp_path / "gate"))
    daemon, handle = _daemon(tmp_path, spec, tied=False)
    os.killpg(daemon.pid, signal.SIGKILL)
    assert daemon.wait() == -signal.SIGKILL
    _event(executor, handle, "started")
    assert executor.poll(handle) == Status("running")
    (tmp_path / "gate").touch()
    assert _end(executor, handle) == Status("succeeded", 0)


def _daemon(tmp_path: Path, spec: Path, *, tied: bool) -> tuple[subprocess.Popen[str], str]:
    """A process that starts a worker and then sleeps, and the worker's handle."""
    daemon = subprocess.Popen(
        [sys.executable, "-c", DAEMON, str(int(tied)), str(tmp_path / "state"), str(tmp_path / "worker.py"), str(spec)],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert daemon.stdout is not None
    handle = daemon.stdout.readline().strip()
    daemon.stdout.close()
    return daemon, handle


def test_a_worker_that_is_tied_is_stopped_when_its_starter_is_killed(executor: LocalExecutor, tmp_path: Path) -> None:
    daemon, handle = _daemon(tmp_path, _spec(executor, "5.1", do="wait"), tied=True)
    _event(executor, handle, "ready")
    assert executor.poll(handle) == Status("running")
    daemon.kill()
    daemon.wait()
    assert _end(executor, handle) == Status("failed", 4, "ended with exit code 4")
    _event(executor, handle, "stopping")


def test_a_tied_worker_that_does_not_listen_is_killed(executor: LocalExecutor, tmp_path: Path) -> None:
    daemon, handle = _daemon(tmp_path, _spec(executor, "5.1", do="hang"), tied=True)
    child = _event(executor, handle, "child")["pid"]
    daemon.kill()
    daemon.wait()
    assert _end(executor, handle).state == "lost"
    assert isinstance(child, int)
    _gone(child)


def test_a_worker_ends_as_usual_though_it_is_tied(tmp_path: Path) -> None:
    untied = _executor(tmp_path)
    before = len(list(Path("/proc/self/fd").iterdir()))
    executor = LocalExecutor(tmp_path / "state", (sys.executable, str(tmp_path / "worker.py")), tied=True)
    assert _end(executor, _submit(executor, "1.1")) == Status("succeeded", 0)
    executor.close()
    executor.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert [e["event"] for e in untied.events("1.1", 0)[0]] == ["started", "ended"]


def test_a_daemon_killed_between_start_and_spawn_starts_nothing_twice(executor: LocalExecutor) -> None:
    spec = _spec(executor, "1.1")
    runner.record(spec.parent / "start.json", {"offset": 0})
    assert executor.submit(spec, 1, environment("cpu", "", 1)) == "1.1"
    assert executor.poll("1.1").state == "lost"


def test_no_zombies_and_no_descriptors_are_left(executor: LocalExecutor) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    runners = []
    for number in range(3):
        handle = _submit(executor, f"{number}.1")
        runners.append(executor._children[handle])
        assert _end(executor, handle).state == "succeeded"
    _until(lambda: executor.poll("0.1").ended and not executor._children)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert [_state(pid) for pid in runners] == ["gone"] * 3


def test_forget_removes_the_files_of_what_has_ended_and_keeps_the_log(executor: LocalExecutor) -> None:
    running = _submit(executor, "1.1", do="wait")
    ended = _submit(executor, "2.1")
    _end(executor, ended)
    executor.forget(running)
    executor.forget(ended)
    assert executor.folder(running).is_dir()
    assert not executor.folder(ended).exists()
    assert executor.log_path(ended).is_file()


def test_nice_reaches_the_worker(tmp_path: Path) -> None:
    executor = _executor(tmp_path, nice=5)
    handle = _submit(executor, "1.1")
    assert _end(executor, handle).state == "succeeded"
    assert executor.events(handle, 0)[0][0]["nice"] == os.nice(0) + 5


def test_workers_may_be_started_from_several_threads(executor: LocalExecutor) -> None:
    threads = [threading.Thread(target=_submit, args=(executor, f"{n}.1")) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {_end(executor, f"{n}.1").state for n in range(4)} == {"succeeded"}


def test_only_whole_lines_with_the_mark_are_events() -> None:
    data = b'@@q {"event": "a"}\nwords\n@@q {torn\n@@q [1]\n@@q {"event": "b"}\n@@q {"event": "c"'
    events, length = events_in(data)
    assert [e["event"] for e in events] == ["a", "b"]
    assert data[length:] == b'@@q {"event": "c"'


def test_a_worker_sees_only_its_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert environment("cuda", "GPU-7f", 4)["CUDA_VISIBLE_DEVICES"] == "GPU-7f"
    assert environment("cpu", "GPU-7f", 0)["CUDA_VISIBLE_DEVICES"] == ""
    assert environment("cpu", "", 4)["OPENBLAS_NUM_THREADS"] == "1"
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    assert environment("cpu", "", 4)["OMP_WAIT_POLICY"] == "passive"
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    assert environment("cpu", "", 4)["OMP_WAIT_POLICY"] == "active"
    assert environment("cpu", "", 0)["OMP_NUM_THREADS"] == "1"


def test_only_who_is_online_gets_the_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    alone, online = environment("cpu", "", 1), environment("cpu", "", 1, online=True)
    assert "HF_TOKEN" not in alone and alone["HF_HUB_OFFLINE"] == "1"
    assert online["HF_TOKEN"] == "hf_secret" and "HF_HUB_OFFLINE" not in online
