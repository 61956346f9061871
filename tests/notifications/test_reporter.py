"""What is told of jobs and of the daemon, and that it is told once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from ledger_kit import Bench, Clock, Wish
from qconvd import config as configuration
from qconvd.config import Config
from qconvd.destinations import Place
from qconvd.errors import QconvdError
from qconvd.ledger import Ledger, Outcome
from qconvd.notifications import reporter
from qconvd.notifications.reporter import Reporter
from qconvd.plugins import Plugins

CONFIG = """\
output: ./models
recipes: {everyday: {targets: [fp16]}, other: {targets: [fp16]}}
notify:
- command: ["true"]
  called: all
  on: [done, failed, cancelled, confirm, refused, paused, resumed]
- command: ["true"]
  called: usual
- command: ["true"]
  called: other
  recipes: other
"""


@dataclass
class Listener:
    """A plugin that keeps what it hears."""

    heard: list[dict[str, Any]] = field(default_factory=list)

    def notify(self, event: dict[str, Any]) -> None:
        self.heard.append(event)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    (tmp_path / "config.yaml").write_text(CONFIG)
    return configuration.load(tmp_path / "config.yaml")


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> Listener:
    listener = Listener()
    monkeypatch.setattr(reporter, "plugins", lambda: listener)
    return listener


@pytest.fixture
def told(ledger: Ledger, config: Config, plugin: Listener) -> Callable[[], list[str]]:
    """Let the reporter look, and say what is new for each notifier."""
    seen: set[int] = set()
    own = Reporter(ledger)

    def tick() -> list[str]:
        own.tick(config)
        new = [n for n in ledger.notifications() if n.id not in seen]
        seen.update(n.id for n in new)
        return [f"{n.notifier}: {n.news['title']}" for n in new]

    return tick


Told = Callable[[], list[str]]


def finish(bench: Bench, clock: Clock, outcome: Outcome, seconds: float = 0) -> None:
    """The next task, to its end after so long."""
    task = bench.start()
    clock.now += seconds
    bench.ledger.finish(task.id, task.fence, dict.fromkeys(task.targets, outcome))


def test_a_job_is_told_when_its_last_target_is_over(told: Told, bench: Bench, clock: Clock, plugin: Listener) -> None:
    bench.want(Wish("fp16"), Wish("q8_0"))
    finish(bench, clock, Outcome(True), 2)
    finish(bench, clock, Outcome(True), 30)
    finish(bench, clock, Outcome(True, data={"nbytes": 2048, "folder": "/out/m-fp16", "files": ["a", "b"]}), 5)
    assert told() == []
    finish(bench, clock, Outcome(True, data={"nbytes": 1 << 20, "folder": "/out/m-GGUF", "files": ["m-Q8_0.gguf"]}), 5)
    assert told() == ["all: m: 2 artifacts in 42 s", "usual: m: 2 artifacts in 42 s"]
    news = bench.ledger.notifications()[0].news
    assert news["text"] == "fp16, 2.0 KiB\nq8_0, 1.0 MiB"
    assert (news["event"], news["job"], news["model"], news["recipe"], news["seconds"]) == ("done", 1, "m", "everyday", 42)
    assert [a["place"] for a in news["artifacts"]] == ["/out/m-fp16", "/out/m-GGUF/m-Q8_0.gguf"]
    (event,) = plugin.heard
    assert (event["kind"], event["id"], event["to"], event["model"]) == ("job", 1, "done", "m")
    assert [(a["label"], a["bytes"]) for a in event["artifacts"]] == [("fp16", 2048), ("q8_0", 1 << 20)]
    assert told() == [] and len(plugin.heard) == 1


def test_a_failure_says_why_and_where_to_look(told: Told, bench: Bench, clock: Clock) -> None:
    bench.want(Wish("fp16"), Wish("q8_0"))
    finish(bench, clock, Outcome(True))
    finish(bench, clock, Outcome(True))
    finish(bench, clock, Outcome(True, data={"nbytes": 2048}))
    error = QconvdError("is truncated", where="/inbox/m/model.safetensors", fix="copy it again").as_dict()
    finish(bench, clock, Outcome(False, "is truncated", error))
    assert told() == ["all: m: 1 of 2 artifacts failed", "usual: m: 1 of 2 artifacts failed"]
    news = bench.ledger.notifications()[0].news
    assert news["text"] == (
        "q8_0 failed: model.safetensors: is truncated\nfp16, 2.0 KiB\ncopy it again\n`qconvd job 1` shows it all."
    )
    assert (news["event"], news["reason"], news["fix"]) == ("failed", "model.safetensors: is truncated", "copy it again")


def test_a_job_that_is_tried_again_ends_again(told: Told, bench: Bench, clock: Clock) -> None:
    (id,) = bench.want(Wish("fp16"))
    finish(bench, clock, Outcome(False, "too odd"), 7)
    assert told()[0] == "all: m: failed"
    clock.now += 3600
    bench.ledger.retry([id])
    assert told() == []
    clock.now += 1
    bench.to_done()
    assert told()[0] == "all: m: 1 artifact in 1.0 s", "since it was begun anew"


def test_what_was_made_before_the_last_round_takes_no_time(told: Told, bench: Bench, clock: Clock) -> None:
    _, second = bench.want(Wish("fp16"), Wish("q8_0"))
    finish(bench, clock, Outcome(True), 10)
    finish(bench, clock, Outcome(True), 10)
    finish(bench, clock, Outcome(True), 10)
    finish(bench, clock, Outcome(False, "too odd"), 10)
    told()
    assert bench.ledger.notifications()[0].news["seconds"] == 40
    clock.now += 3600
    bench.ledger.retry([second])
    clock.now += 3
    bench.to_done()
    assert told()[0] == "all: m: 2 artifacts in 3.0 s"


def test_a_restart_tells_what_was_not_told_and_nothing_twice(
    ledger: Ledger, config: Config, bench: Bench, clock: Clock, plugin: Listener
) -> None:
    bench.want(Wish("fp16"))
    before = Reporter(ledger)
    before.tick(config)
    bench.to_done()
    Reporter(ledger).tick(config)
    assert [n.notifier for n in ledger.notifications()] == ["all", "usual"]
    before = Reporter(ledger)
    before.tick(config)
    ledger.request("reload")
    before.tick(config)
    assert len(ledger.notifications()) == 2 and len(plugin.heard) == 1


def test_what_is_told_and_that_it_was_is_one_transaction(
    ledger: Ledger, config: Config, bench: Bench, plugin: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.want(Wish("fp16"))
    bench.to_done()
    own, first = Reporter(ledger), ledger.notify_all

    def full(wanted: Any) -> list[int]:
        first(wanted)
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(ledger, "notify_all", full)
        with pytest.raises(OSError, match="No space"):
            own.tick(config)
    assert ledger.notifications() == [] and plugin.heard == []
    Reporter(ledger).tick(config)
    assert [n.notifier for n in ledger.notifications()] == ["all", "usual"]


def test_what_nobody_is_told_of_is_not_looked_through_again(
    ledger: Ledger, config: Config, bench: Bench, monkeypatch: pytest.MonkeyPatch, plugin: Listener
) -> None:
    monkeypatch.setattr(reporter, "LONGEST_UNWRITTEN", 3)
    own = Reporter(ledger)
    bench.want(Wish("fp16"))
    own.tick(config)
    assert ledger.told_until("event") == 0
    bench.want(Wish("fp16"), Wish("a"), Wish("b"), Wish("c"))
    own.tick(config)
    assert ledger.told_until("event") == ledger.history()[-1].id


def test_a_job_that_was_cancelled(told: Told, bench: Bench) -> None:
    bench.ledger.cancel(bench.want(Wish("fp16"), Wish("q8_0")))
    assert told() == ["all: m: cancelled"]


def test_a_target_that_no_recipe_wants_any_more_ends_its_job(told: Told, bench: Bench, clock: Clock) -> None:
    bench.want(Wish("fp16"), Wish("q8_0"))
    finish(bench, clock, Outcome(True))
    finish(bench, clock, Outcome(True))
    finish(bench, clock, Outcome(True))
    assert told() == []
    bench.want(Wish("fp16"))
    assert told()[0] == "all: m: 1 artifact in 0.0 s"


def test_a_model_that_changed_is_told_by_the_job_of_its_new_version(told: Told, bench: Bench, clock: Clock) -> None:
    bench.want(Wish("fp16"), Wish("q8_0"))
    finish(bench, clock, Outcome(True))
    finish(bench, clock, Outcome(True))
    finish(bench, clock, Outcome(True))
    bench.want(Wish("fp16"), source=bench.model(digest="sha256:b"))
    assert told() == []
    bench.to_done()
    assert told()[0] == "all: m: 1 artifact in 0.0 s"
    assert bench.ledger.notifications()[0].news["job"] == 2


def test_two_recipes_are_two_jobs_and_each_is_told_to_whom_it_concerns(told: Told, bench: Bench) -> None:
    bench.want(Wish("fp16"))
    bench.want(Wish("fp16"), Wish("q8_0"), recipe="other")
    bench.to_done()
    assert sorted(told()) == [
        "all: m: 1 artifact in 0.0 s", "all: m: 2 artifacts in 0.0 s", "other: m: 2 artifacts in 0.0 s",
        "usual: m: 1 artifact in 0.0 s", "usual: m: 2 artifacts in 0.0 s",
    ]  # fmt: skip


def test_what_waits_for_a_word_is_told_and_told_again_when_it_is_out(told: Told, bench: Bench, clock: Clock) -> None:
    (id,) = bench.want(Wish("fp16"))
    bench.ledger.publish_to(id, "everyday", [Place("folder:/srv/m", "", {"confirm": True})])
    for _ in range(3):
        finish(bench, clock, Outcome(True, data={"nbytes": 2048}))
    assert told() == ["all: m: 1 artifact waits for your word to be published"]
    assert bench.ledger.notifications()[0].news["text"] == ("fp16, 2.0 KiB\n`qconvd publish 1` publishes it.")
    bench.ledger.confirm([id])
    assert told() == []
    finish(bench, clock, Outcome(True, data={"told": "published to /srv/m"}), 3)
    assert told()[0] == "all: m: 1 artifact in 3.0 s"
    assert bench.ledger.notifications()[-1].news["text"] == "fp16, 2.0 KiB, published to /srv/m"


def test_what_is_still_to_be_published_is_not_over(told: Told, bench: Bench, clock: Clock) -> None:
    (id,) = bench.want(Wish("fp16"))
    bench.ledger.publish_to(id, "everyday", [Place("folder:/srv/m", "", {})])
    for _ in range(3):
        finish(bench, clock, Outcome(True))
    assert told() == []


def test_a_rehearsal_is_an_end(told: Told, bench: Bench, clock: Clock) -> None:
    (id,) = bench.want(Wish("fp16"))
    bench.ledger.publish_to(id, "everyday", [Place("folder:/srv/m", "", {"dry_run": True})])
    for _ in range(3):
        finish(bench, clock, Outcome(True, data={"nbytes": 2048}))
    finish(bench, clock, Outcome(True, data={"dry_run": True, "told": "would be published to /srv/m"}))
    assert told()[0] == "all: m: 1 artifact in 0.0 s"
    assert bench.ledger.notifications()[0].news["text"] == "fp16, 2.0 KiB, would be published to /srv/m"


def test_a_refused_model_and_a_full_disk_are_told_once(
    told: Told, ledger: Ledger, clock: Clock, plugin: Listener, config: Config
) -> None:
    ledger.source_refused("/inbox/x", "x", "p", QconvdError("is a web page", where="/inbox/x", fix="download it again"))
    assert told() == ["all: x is not converted"]
    assert ledger.notifications()[0].news["text"] == "is a web page\ndownload it again\n/inbox/x"
    assert plugin.heard == [], "plugins hear it as a change of the model's state"
    ledger.pause("by hand", "moving house")
    assert told() == []
    ledger.pause("disk", "less than 10GB was free for /out")
    (title,) = told()
    assert title.startswith("all: qconvd on ") and title.endswith(" is paused: a disk is nearly full")
    assert [(e["kind"], e["id"], e["to"], e["reason"]) for e in plugin.heard] == [
        ("daemon", None, "paused", "less than 10GB was free for /out")
    ]
    Reporter(ledger).tick(config)
    assert told() == [], "the same pause, after a restart"
    ledger.resume("disk")
    (title,) = told()
    assert title.startswith("all: qconvd on ") and title.endswith(" goes on")
    assert told() == [], "once"
    clock.now += 60
    ledger.pause("disk", "less than 10GB was free for /out")
    assert len(told()) == 1, "another one"


def test_names_and_reasons_hold_no_line_breaks_and_end_somewhere(told: Told, bench: Bench, clock: Clock) -> None:
    wishes = [Wish(f"f{n}") for n in range(20)]
    bench.want(*wishes, source=bench.model(name="m\r\nBcc: you\x1b[2J" + "x" * 500))
    finish(bench, clock, Outcome(False, "line\nbreak \x1b[2J" + "y" * 5000))
    (title, _) = told()
    assert "\n" not in title and "\x1b" not in title and len(title) < 200
    assert "Bcc: you\N{REPLACEMENT CHARACTER}[2J" in title
    text = bench.ledger.notifications()[0].news["text"]
    assert text.splitlines()[12:] == ["and 8 more", "`qconvd job 1` shows it all."]
    assert len(text) < 6000 and "\x1b" not in text


def test_a_plugin_hears_of_the_end_of_a_job(ledger: Ledger, config: Config, bench: Bench, monkeypatch: Any) -> None:
    """Through the real plugin manager, as `qconvd_task_event`."""
    import types

    from qconvd import api

    heard = []
    plugin = types.ModuleType("listener")
    plugin.qconvd_task_event = api.hookimpl(lambda event: heard.append(event))  # type: ignore[attr-defined]
    known = Plugins([("listener", plugin)])
    monkeypatch.setattr(reporter, "plugins", lambda: known)
    bench.want(Wish("fp16"))
    bench.to_done()
    Reporter(ledger).tick(config)
    assert [(e["kind"], e["id"], e["to"]) for e in heard] == [("job", 1, "done")]
