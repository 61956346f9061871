"""How a daemon and its workers end, asked or not, and how the next one goes on from there."""

from __future__ import annotations

import os
import signal
from contextlib import suppress

import pytest

from daemon_kit import Home, tiny_model


def test_stopping_interrupts_and_the_next_start_goes_on(home: Home) -> None:
    home.configure(settle="0s")
    tiny_model(home.inbox / "m")
    home.start()
    frozen = home.freeze("convert")
    home.signal(signal.SIGTERM)
    home.said("stopping")
    with suppress(ProcessLookupError):  # the daemon may have ended it already
        os.kill(frozen[0], signal.SIGCONT)
    assert home.join() == 0, home.log()
    assert home.workers() == []
    assert [t.state for t in home.targets()] in (["planned"], ["verifying"])
    assert home.once() == 0
    assert [t.state for t in home.targets()] == ["done"]
    assert sorted(home.files()) == ["m-fp16/config.json", "m-fp16/model.safetensors", "m-fp16/qconvd.json"]
    with home.ledger() as ledger:
        assert ledger.targets()[0].failures == 0, "an interruption is no failure"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_once_that_is_interrupted_says_that_work_remains(home: Home, number: signal.Signals) -> None:
    home.configure(settle="0s")
    tiny_model(home.inbox / "m")
    home.start("--once")
    frozen = home.freeze("convert")
    home.signal(number)
    home.said("stopping")
    with suppress(ProcessLookupError):  # the daemon may have ended it already
        os.kill(frozen[0], signal.SIGCONT)
    assert home.join() == 130, home.log()
    assert "work remains; running the same again goes on with it" in home.log()
    assert home.once() == 0, home.log()
    assert [t.state for t in home.targets()] == ["done"]


def test_once_that_is_interrupted_while_a_model_settles(home: Home) -> None:
    home.configure(settle="1h")
    tiny_model(home.inbox / "m")
    home.start("--once")
    home.said("waits: it is still changing")
    home.signal(signal.SIGTERM)
    assert home.join() == 130, home.log()


def test_what_goes_down_with_the_daemon_is_no_failure_however_often(home: Home) -> None:
    home.configure(settle="0s")
    tiny_model(home.inbox / "m")
    for kills in range(4):
        home.start()
        home.said("qconvd runs", times=kills + 1)
        if kills > 1:
            home.wait(lambda: home.targets()[0].not_before, "the kill to be noticed")
            assert home.targets()[0].reason == "the worker was killed together with the daemon"
            assert home.ask("retry", ids=["1"]).answer == "1 artifact will be tried again"
        home.freeze("convert")
        home.kill()
    home.start("--once")
    home.wait(lambda: home.targets()[0].not_before, "the kill to be noticed")
    assert home.targets()[0].failures == 0
    home.ask("retry", ids=["1"])
    assert home.join() == 0, home.log()
    with home.ledger() as ledger:
        assert [(t.kind, t.attempt) for t in ledger.tasks()] == [("plan", 1), ("convert", 5), ("verify", 1)]


def test_a_worker_that_is_killed_while_no_daemon_lives_has_not_failed(home: Home) -> None:
    home.configure(settle="0s")
    tiny_model(home.inbox / "m")
    home.start()
    frozen = home.freeze("convert")
    home.kill_daemon()
    os.kill(frozen[0], signal.SIGKILL)
    home.wait(lambda: not home.workers(), "the runner to write down how the worker ended")
    assert home.once() == 0, home.log()
    with home.ledger() as ledger:
        assert [(t.kind, t.attempt) for t in ledger.tasks()] == [("plan", 1), ("convert", 2), ("verify", 1)]
        assert not any("attempt" in e.reason for e in ledger.history())


def test_a_worker_that_is_killed_under_the_daemon_that_took_it_up_has_failed(home: Home) -> None:
    home.configure(settle="0s")
    tiny_model(home.inbox / "m")
    home.start()
    home.freeze("convert")
    home.kill_daemon()
    home.start()
    home.said("qconvd runs", times=2)
    for _ in range(2):  # a turn answers before it looks at the workers: the second answer says that one has come to its end
        home.ask("reload")
    home.kill_workers()
    home.wait(lambda: home.targets()[0].failures, "the crash to be counted")
    assert home.targets()[0].reason.startswith("attempt 1 of 3 failed: ")
    home.said("m fp16 is to be tried again: attempt 1 of 3 failed: ")


def test_a_second_sigterm_does_not_wait(home: Home) -> None:
    home.configure(settle="0s")
    home.config.write_text(home.config.read_text().replace("stop_grace: 10s", "stop_grace: 1h"))
    tiny_model(home.inbox / "m")
    home.start()
    home.freeze("convert")
    home.signal(signal.SIGTERM)
    home.said("stopping")
    assert home.process is not None and home.process.poll() is None
    home.signal(signal.SIGTERM)
    assert home.join() == 0, home.log()
    assert home.workers() == []


def test_restart_keeps_the_queue(home: Home) -> None:
    home.configure(settle="0s", targets="[fp16, f32]")
    for name in ("one", "two", "three"):
        tiny_model(home.inbox / name, seed=len(name))
    home.start()
    home.freeze("convert")
    home.kill()
    assert [s.state for s in home.sources()] == ["present"] * 3
    assert home.once() == 0, home.log()
    assert [t.state for t in home.targets()] == ["done"] * 6
    with home.ledger() as ledger:
        done = [e.target for e in ledger.history() if e.to_state == "done" and e.target]
    assert len(done) == len(set(done)) == 6


def test_a_daemon_that_comes_back_finds_its_worker(home: Home) -> None:
    home.configure(settle="0s")
    tiny_model(home.inbox / "m")
    home.start()
    frozen = home.freeze("convert")
    home.kill_daemon()
    home.start("--once")
    home.said("qconvd runs", times=2)
    os.kill(frozen[0], signal.SIGCONT)
    assert home.join() == 0, home.log()
    with home.ledger() as ledger:
        assert [(t.kind, t.attempt) for t in ledger.tasks()] == [("plan", 1), ("convert", 1), ("verify", 1)]
