"""The thread that asks the Hub, against a real server: hints that come while it asks, repositories that it cannot tell of."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from daemon_kit import tiny_model
from hub_server import HubServer
from qconvd.config import Hub as Access
from qconvd.config import HubModels
from qconvd.hub.address import Address
from qconvd.watch import hub as watching
from qconvd.watch.hub import HubWatch, Report

PATIENCE = 30.0


@dataclass
class Watching:
    """A watch, what it reported, and what is known of it, as the daemon's loop would know it."""

    watch: HubWatch
    access: Access
    rang: threading.Event
    known: dict[str, str] = field(default_factory=dict)
    reports: list[Report] = field(default_factory=list)

    def look(self) -> list[Report]:
        for report in self.watch.take():
            self.reports.append(report)
            if report.commit:
                self.known[report.address.locator] = report.commit
        return self.reports

    def until(self, true: Callable[[], bool], what: str) -> None:
        end = time.monotonic() + PATIENCE
        while not true():
            if time.monotonic() > end:
                pytest.fail(f"waited in vain for {what}; reports: {self.reports}")
            self.rang.wait(0.05)
            self.rang.clear()
            self.look()

    def commits(self) -> dict[str, str]:
        return {r.address.repo: r.commit for r in self.look() if r.error is None}


@pytest.fixture
def watched(hub_server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Watching]:
    monkeypatch.setattr(watching, "HINT_GAP", 0.1)
    monkeypatch.setattr(watching, "FIRST_BACKOFF", 0.2)
    rang = threading.Event()

    class Commits:
        def commit(self, address: Address) -> str:
            return made.known.get(address.locator, "")

        def earlier(self, address: Address, commit: str) -> bool:
            return False

    made = Watching(
        HubWatch(rang.set, Commits(), tmp_path / "hub"),
        Access(endpoint=hub_server.url, timeout=5.0),
        rang,
    )
    yield made
    made.watch.close()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny_model(tmp_path / "m")


def test_a_hint_that_comes_while_it_asks_is_not_lost(watched: Watching, hub_server: HubServer, model: Path) -> None:
    first = hub_server.push("alice/m", model)
    hub_server.fault("GET /api/models/alice/m", "hold", when="after")
    watched.watch.configure(watched.access, {HubModels(repo="alice/m"): 3600.0})
    watched.until(lambda: hub_server.held() == 1, "the question")
    second = hub_server.push("alice/m", texts={"README.md": "new"})
    assert watched.watch.hint("alice/m")
    hub_server.calm()
    watched.until(lambda: watched.known.get("hub:alice/m") == second, "the commit that was hinted at")
    assert [r.commit for r in watched.reports] == [first, second]


def test_a_hint_does_not_ask_before_the_server_lets_it(watched: Watching, hub_server: HubServer, model: Path) -> None:
    hub_server.push("alice/m", model)
    hub_server.push("alice/other", model)
    hub_server.fault("GET /api/models/alice/m", status=429, headers={"Retry-After": "3600"})
    watched.watch.configure(watched.access, {HubModels(repo="alice/m"): 3600.0, HubModels(repo="alice/other"): 3600.0})
    watched.until(lambda: len(watched.reports) == 2, "both")
    hub_server.forget()
    assert watched.watch.hint("alice/m") and watched.watch.hint("alice/other")
    watched.until(lambda: len(watched.reports) == 3, "the other one once more")
    assert not hub_server.log("alice/m") and len(hub_server.log("alice/other")) == 1


def test_one_that_the_hub_cannot_tell_of_holds_up_no_other(watched: Watching, hub_server: HubServer, model: Path) -> None:
    for name in ("a", "b", "c"):
        hub_server.push(f"alice/{name}", model)
    hub_server.fault("GET /api/models/alice/a", status=500, times=1_000)
    watched.watch.configure(watched.access, {HubModels(author="alice"): 3600.0})
    watched.until(lambda: set(watched.commits()) == {"alice/b", "alice/c"}, "the others")
    hub_server.calm()
    watched.until(lambda: len(watched.commits()) == 3, "the one that was late")


def test_a_defect_at_one_model_holds_up_no_other(
    watched: Watching, hub_server: HubServer, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        hub_server.push(f"alice/{name}", model)
    real = watching.look

    def broken(hub: object, address: object, folder: Path) -> object:
        if getattr(address, "repo", "") == "alice/a":
            raise ZeroDivisionError
        return real(hub, address, folder)  # type: ignore[arg-type]

    monkeypatch.setattr(watching, "look", broken)
    watched.watch.configure(watched.access, {HubModels(author="alice"): 3600.0})
    watched.until(lambda: set(watched.commits()) == {"alice/b"}, "the other one")
    assert [str(r.error) for r in watched.reports if r.error] == [
        "a defect of qconvd: ZeroDivisionError (the log has the traceback)"
    ]
