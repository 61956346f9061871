"""What systemd hears: by itself, and of a daemon in its life."""

from __future__ import annotations

import itertools
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from daemon_kit import Home, end, tiny_model
from notify_socket import NotifySocket
from qconvd.notify import Notifier, summary


@pytest.fixture(params=["path", "abstract"])
def listening(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[NotifySocket]:
    heard = NotifySocket(tmp_path / "notify" if request.param == "path" else f"@qconvd-test-{os.getpid()}")
    yield heard
    if heard.open:
        heard.close()


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[NotifySocket]:
    heard = NotifySocket(tmp_path / "notify")
    yield heard
    heard.close()


def test_the_protocol(listening: NotifySocket) -> None:
    environ = {"NOTIFY_SOCKET": listening.address, "WATCHDOG_USEC": "8000000", "WATCHDOG_PID": str(os.getpid()), "HOME": "/"}
    notifier = Notifier(environ)
    assert environ == {"HOME": "/"}, "nobody who is started later speaks for this process"
    assert notifier.every == 2.0, "less than half of the watchdog's time"
    notifier.status("one\xe9", "READY=1")
    notifier.status("one\xe9")
    notifier.status("two")
    notifier.alive()
    notifier.alive()
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    notifier.reloading()
    notifier.extend(15)
    listening.close()
    *said, reloading, extension = listening.heard
    assert said == [{"READY": "1", "STATUS": "one\xe9"}, {"STATUS": "two"}, {"WATCHDOG": "1"}]
    assert reloading["RELOADING"] == "1"
    assert before <= int(reloading["MONOTONIC_USEC"]) <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    assert extension == {"EXTEND_TIMEOUT_USEC": "15000000"}


def test_nobody_listens(tmp_path: Path) -> None:
    for address in ("", str(tmp_path / "gone"), "@nobody", "/" + "x" * 200):
        notifier = Notifier({"NOTIFY_SOCKET": address})
        notifier.status("one", "READY=1")
        notifier.alive()


def test_a_watchdog_of_another_process_is_not_fed(tmp_path: Path) -> None:
    for usec, pid in (("1000000", str(os.getpid() + 1)), ("", ""), ("soon", ""), ("0", "")):
        assert Notifier({"NOTIFY_SOCKET": "@x", "WATCHDOG_USEC": usec, "WATCHDOG_PID": pid}).every == float("inf")


def test_the_counts_in_words() -> None:
    assert summary({}) == "No model yet"
    assert summary({"superseded": 3}) == "No model yet"
    counts = {"done": 12, "planned": 1, "waiting": 2, "converting": 1, "failed": 1, "superseded": 9}
    assert summary(counts) == "Artifacts: 3 waiting, 1 being converted, 1 failed, 12 done"


def test_a_daemon_tells_systemd_of_its_life(home: Home, systemd: NotifySocket) -> None:
    home.configure(settle="0s")
    # No WATCHDOG_PID: the interpreter may have started another one (an environment's `python` may be a wrapper).
    home.env = {"NOTIFY_SOCKET": systemd.address, "WATCHDOG_USEC": "400000"}
    home.start()
    home.wait(systemd.saying("READY"), "READY")
    assert systemd.heard[0] == {"READY": "1", "STATUS": "Looking through the watched folders for the first time"}
    assert "is watched by events" in home.log(), "armed before it is ready"
    home.wait(systemd.saying("STATUS", "No model yet"), "the first scan")

    tiny_model(home.inbox / "m")
    worker = home.freeze("convert")[0]
    assert not {"NOTIFY_SOCKET", "WATCHDOG_USEC"} & {
        entry.partition(b"=")[0].decode() for entry in Path(f"/proc/{worker}/environ").read_bytes().split(b"\0")
    }
    home.wait(systemd.saying("STATUS", "1 being converted"), "the counts")
    lives = len(systemd.saying("WATCHDOG")())
    home.wait(lambda: len(systemd.saying("WATCHDOG")()) > lives + 3, "signs of life")

    home.signal(signal.SIGHUP)
    home.wait(lambda: len(systemd.saying("READY")()) == 2, "READY after the reload")
    order = [next(k for k in ("RELOADING", "READY") if k in d) for d in systemd.heard if {"RELOADING", "READY"} & set(d)]
    assert order == ["READY", "RELOADING", "READY"]
    home.config.write_text("nonsense")
    home.signal(signal.SIGHUP)
    home.wait(lambda: len(systemd.saying("READY")()) == 3, "READY after a refused reload")

    home.signal(signal.SIGTERM)
    home.wait(systemd.saying("EXTEND_TIMEOUT_USEC"), "more time for the worker")
    assert systemd.saying("STOPPING")()
    os.kill(worker, signal.SIGCONT)
    assert home.join() == 0, home.log()


def test_a_status_is_sent_only_when_it_changed(home: Home, systemd: NotifySocket) -> None:
    home.env = {"NOTIFY_SOCKET": systemd.address}
    tiny_model(home.inbox / "m")
    home.start()
    home.done(1)
    home.wait(systemd.saying("STATUS", "1 done"), "the counts")
    end(home)
    said = [d["STATUS"] for d in systemd.heard if "STATUS" in d]
    assert all(one != other for one, other in itertools.pairwise(said))
    assert not systemd.saying("WATCHDOG")()


def test_a_config_that_is_wrong_is_no_reason_to_start_again(home: Home, systemd: NotifySocket) -> None:
    home.env = {"NOTIFY_SOCKET": systemd.address}
    home.config.write_text("watch: [")
    home.start()
    assert home.process is not None
    assert home.process.wait() == 78
    home.config.unlink()
    home.start()
    assert home.process.wait() == 78
    assert systemd.heard == []
