"""A daemon of this machine is asked over HTTP and in its ledger, whichever serves: it may end and begin in the middle."""

from __future__ import annotations

import json
from typing import Any

import pytest

from command_line import Qconvd
from daemon_kit import Home, copy_in, tiny_model
from qconvd.client import http


def test_what_the_api_does_not_take_goes_through_the_ledger(qconvd: Qconvd, home: Home) -> None:
    """Names of folders may hold anything, and what worked without a port works with one."""
    home.web = "{listen: '127.0.0.1:0'}"
    home.configure()
    home.start()
    home.said("qconvd runs")
    for number, name in enumerate(["with\nline", "esc\x1b[31m", "space "], 1):
        model = tiny_model(home.root / "away" / name, seed=number)
        assert qconvd("add", model, "--config", home.config).out == f"job {number}: 1 artifact will be made\n"
    said = qconvd("pause", "x" * 501, "--config", home.config)
    assert said.out.startswith("paused: no task is started until `qconvd resume`")
    model = tiny_model(home.root / "away" / "bad\udcff")
    said = qconvd("add", model, "--config", home.config)
    assert (said.code, said.err) == (3, f"qconvd: {str(model)!a}: the name is not UTF-8\n  rename it\n")
    home.kill()


def test_a_daemon_that_ends_and_is_started_anew_while_a_log_is_followed(
    qconvd: Qconvd, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.web = f"{{listen: 'unix:{home.root}/s'}}"
    home.configure()
    copy_in(home, tiny_model(home.root / "away" / "m"))
    home.start()
    home.said("listens on")
    home.wait(home.sources, "the model to be seen")
    assert qconvd("pause", "--config", home.config).code == 0
    real, calls = http.OverHttp.log, []

    def log(self: http.OverHttp, *told: Any, **named: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            home.stop()
        if len(calls) == 4:
            home.start()
            home.wait(lambda: qconvd_resumed(home), "the daemon to go on")
        return real(self, *told, **named)

    monkeypatch.setattr(http.OverHttp, "log", log)
    elsewhere = qconvd("logs", "1", "--follow", "--url", f"unix:{home.root}/s")
    assert elsewhere.code == 0 and "verified and in its place" in elsewhere.out
    # Once each; a worker may have had its last word after its end was told.
    assert sorted(elsewhere.out.splitlines()) == sorted(qconvd("logs", "1", "--config", home.config).out.splitlines())
    assert len(calls) > 4


def test_another_daemon_at_the_address(qconvd: Qconvd, home: Home) -> None:
    """As where two containers listen at the same address, and the state folders of both are seen from outside."""
    home.web = "{listen: '127.0.0.1:0'}"
    other = Home(home.root / "other")
    other.web = home.web
    other.configure()
    for daemon in (home, other):
        daemon.configure()
        daemon.start()
    home.said("qconvd runs")
    other.said("qconvd runs")
    notes = [json.loads((daemon.state / "listening.json").read_text()) for daemon in (home, other)]
    (home.state / "listening.json").write_text(json.dumps({**notes[0], "address": notes[1]["address"]}))
    assert qconvd("pause", "--config", home.config).code == 0
    with home.ledger() as ours, other.ledger() as theirs:
        assert (len(ours.pauses()), theirs.pauses()) == (1, [])
    other.kill()


def qconvd_resumed(home: Home) -> bool:
    return (home.root / "s").exists() and home.ask("resume").state == "done"


def test_a_daemon_that_ends_is_asked_in_its_ledger(qconvd: Qconvd, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    home.web = "{listen: '127.0.0.1:0'}"
    home.configure()
    home.start()
    home.said("qconvd runs")
    hello = http.OverHttp.hello
    monkeypatch.setattr(http.OverHttp, "hello", lambda self, pid: (hello(self, pid), home.stop()))
    assert qconvd("status", "--config", home.config).out.startswith("No daemon runs")
    home.start()
    home.said("qconvd runs", 2)
    assert "will be done when one is started" in qconvd("pause", "--config", home.config).out
