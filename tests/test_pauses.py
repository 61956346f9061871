"""What holds tasks back though nobody asked for it, and what somebody asked for; with a ledger, then with a daemon."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from daemon_kit import Home, end, tiny_model
from notify_socket import NotifySocket
from qconvd import config
from qconvd.ledger import Ledger
from qconvd.pauses import Pauses, quiet

NIGHT, NOON = (22 * 60, 7 * 60), (12 * 60, 13 * 60)


def at(text: str) -> time.struct_time:
    return time.strptime(text, "%H:%M")


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    ledger = Ledger(tmp_path / "state" / "ledger.sqlite")
    yield ledger
    ledger.close()


@pytest.mark.parametrize(
    ("now", "said"),
    [("21:59", ""), ("22:00", "22:00-07:00"), ("00:00", "22:00-07:00"), ("06:59", "22:00-07:00"), ("07:00", ""),
     ("12:00", "12:00-13:00"), ("12:59", "12:00-13:00"), ("13:00", "")],
)  # fmt: skip
def test_quiet_hours(now: str, said: str) -> None:
    assert quiet((NIGHT, NOON), at(now)) == said
    assert quiet((), at(now)) == ""


def test_quiet_until_midnight() -> None:
    assert [quiet([(22 * 60, 0)], at(t)) for t in ("21:59", "23:59", "00:00")] == ["", "22:00-00:00", ""]


def load(folder: Path, limits: str) -> config.Config:
    path = folder / "config.yaml"
    path.write_text(f"output: ./models\nlimits: {limits}\nrecipes: {{r: {{targets: [fp16]}}}}\n")
    return config.load(path)


def test_quiet_hours_begin_and_end(ledger: Ledger, tmp_path: Path) -> None:
    loaded = load(tmp_path, "{quiet_hours: ['22:00-07:00']}")
    now = ["23:00"]
    pauses = Pauses(ledger, lambda: at(now[0]))
    pauses.tick(loaded)
    assert [p.told for p in ledger.pauses()] == ["paused (quiet hours): 22:00-07:00"]
    assert pauses.intake
    now[0] = "07:00"
    pauses.tick(loaded)
    assert ledger.pauses(), "the clock is not looked at all the time"
    pauses.configure()
    pauses.tick(loaded)
    assert ledger.pauses() == []


def test_a_disk_between_the_marks_stays_what_it_was(ledger: Ledger, tmp_path: Path) -> None:
    loaded = load(tmp_path, "{disk: {low: 10GB, high: 20GB}}")
    free = {"models": 15, "state": 30}
    pauses = Pauses(ledger, free=lambda folder: free[folder.name] * 10**9)

    def after(models: int, state: int = 30) -> list[str]:
        free.update(models=models, state=state)
        pauses.configure()
        pauses.tick(loaded)
        assert pauses.intake is not bool(ledger.pauses())
        return [p.reason for p in ledger.pauses()]

    reason = "less than 10GB (limits.disk.low) was free for {}; it goes on when 20GB are free"
    assert after(15) == []
    assert after(9) == [reason.format(tmp_path / "models")]
    assert after(15) == [reason.format(tmp_path / "models")]
    assert after(30, 19) == [reason.format(tmp_path / "state")]
    again = Pauses(ledger, free=lambda folder: free[folder.name] * 10**9)
    again.tick(loaded)
    assert not again.intake, "also after a restart the higher mark counts"
    assert after(20, 20) == []
    assert after(10, 10) == []


def test_a_limit_that_is_taken_away_ends_its_pause(ledger: Ledger, tmp_path: Path) -> None:
    pauses = Pauses(ledger)
    pauses.tick(load(tmp_path, "{disk: {low: 1000TB}, quiet_hours: ['00:00-23:59', '23:00-01:00']}"))
    assert [p.cause for p in ledger.pauses()] == ["disk", "quiet hours"]
    pauses.configure()
    pauses.tick(load(tmp_path, "{}"))
    assert ledger.pauses() == []
    assert pauses.intake


def test_a_daemon_that_is_paused_takes_models_in_and_starts_nothing(home: Home, tmp_path: Path) -> None:
    systemd = NotifySocket(tmp_path / "notify")
    home.env = {"NOTIFY_SOCKET": systemd.address}
    home.configure(settle="0s")
    home.start()
    home.said("qconvd runs")
    answer = "paused: no task is started until `qconvd resume`"
    assert home.ask("pause", reason="the machine\nis moved").answer == answer
    tiny_model(home.inbox / "m")
    home.says("m", "paused (by hand): the machine is moved")
    home.wait(systemd.saying("STATUS", "Paused (by hand): the machine is moved. Artifacts: 1 waiting"), "the status")
    end(home)
    systemd.close()
    assert home.once() == 1, "what is paused is left, also by the next daemon"
    assert "fp16 was left: paused (by hand): the machine is moved" in home.log()
    home.start()
    assert home.ask("resume").answer == "goes on"
    home.done(1)
    refused = home.ask("resume")
    assert (refused.state, refused.answer) == ("refused", "nothing was paused by hand")
    end(home)


def test_a_pause_lets_what_runs_come_to_its_end(home: Home) -> None:
    home.configure(settle="0s")
    tiny_model(home.inbox / "m")
    home.start()
    frozen = home.freeze("convert")
    assert home.ask("pause").answer == "paused: no task is started until `qconvd resume`; 1 running task ends first"
    os.kill(frozen[0], signal.SIGCONT)
    home.says("m", "paused (by hand)")
    assert [t.state for t in home.targets()] == ["verifying"]
    home.ask("resume")
    home.done(1)
    end(home)


def test_a_disk_that_is_nearly_full_pauses_everything(home: Home, tmp_path: Path) -> None:
    home.configure(settle="0s")
    plain = home.config.read_text()
    home.config.write_text(plain.replace("limits: {", "limits: {disk: {low: 1000TB}, "))
    tiny_model(home.inbox / "m")
    home.start()
    home.said("paused (disk): less than 1000TB (limits.disk.low) was free for ")
    away = tiny_model(tmp_path / "away" / "n")
    refused = home.ask("add", path=str(away), recipe="everyday")
    assert refused.answer == (
        f"{away}: nothing is taken in now: less than 1000TB (limits.disk.low) was free for {home.output};"
        " it goes on when 2000TB are free\n  make room, then add it again"
    )
    assert home.sources() == [], "what is not taken in takes no room"
    home.config.write_text(plain)
    home.signal(signal.SIGHUP)
    home.done(1)
    end(home)
