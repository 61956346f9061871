"""What is removed when it was kept for long enough."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from qconvd import config
from qconvd.errors import ConfigError
from qconvd.ledger import Ledger, Outcome
from qconvd.retention import Retention

CONFIG = """
watch: [{{folder: ./inbox, recipes: [r], after: move}}]
output: ./models
keep: {keep}
recipes: {{r: {{targets: [fp16]}}}}
"""


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    ledger = Ledger(tmp_path / "state" / "ledger.sqlite")
    yield ledger
    ledger.close()


def load(folder: Path, keep: str) -> config.Config:
    (folder / "config.yaml").write_text(CONFIG.format(keep=keep))
    return config.load(folder / "config.yaml")


def wanted(ledger: Ledger, *names: str) -> list[str]:
    """A target for each name, of one source."""
    source = ledger.source_seen("/inbox/m", "sha256:a", "m", "p")
    wishes: list[Any] = []
    for name in names:
        placed = SimpleNamespace(folder=name, stem="model", manifest="qconvd.json")
        wishes.append(SimpleNamespace(format=name, version="1", label=name, options={}, names=lambda *_, p=placed: p))
    return ledger.want(source.id, "r", wishes)


def test_nothing_is_removed_unless_the_config_says_so(ledger: Ledger, tmp_path: Path) -> None:
    (tmp_path / "state" / "logs").mkdir()
    (tmp_path / "state" / "logs" / "7.log").touch()
    Retention(ledger, lambda: time.time() + 1e9).tick(load(tmp_path, "{}"))
    assert (tmp_path / "state" / "logs" / "7.log").exists()


def test_logs_of_ended_tasks(ledger: Ledger, tmp_path: Path) -> None:
    wanted(ledger, "one")
    (task,) = ledger.make_tasks()
    logs = tmp_path / "state" / "logs"
    logs.mkdir()
    for name in (f"{task.id}.log", "77.log", "job-1.log", "notes.txt"):
        (logs / name).touch()
    loaded = load(tmp_path, "{logs: 30d}")
    Retention(ledger).tick(loaded)
    assert len(list(logs.iterdir())) == 4, "they are not old"
    Retention(ledger, lambda: time.time() + 31 * 86400).tick(loaded)
    assert sorted(p.name for p in logs.iterdir()) == sorted([f"{task.id}.log", "notes.txt"])


def test_models_that_were_moved_away(ledger: Ledger, tmp_path: Path) -> None:
    done = tmp_path / "inbox" / ".qconvd-done"
    (done / "m").mkdir(parents=True)
    (done / "m" / "model.safetensors").touch()
    (done / "lone.gguf").touch()
    (tmp_path / "elsewhere").mkdir()
    (done / "link").symlink_to(tmp_path / "elsewhere")
    loaded = load(tmp_path, "{moved: 14d}")
    Retention(ledger, lambda: time.time() + 13 * 86400).tick(loaded)
    assert len(list(done.iterdir())) == 3
    Retention(ledger, lambda: time.time() + 15 * 86400).tick(loaded)
    assert list(done.iterdir()) == []
    assert (tmp_path / "elsewhere").exists(), "a link is removed, not what it leads to"


def test_logs_may_lie_behind_a_link(ledger: Ledger, tmp_path: Path) -> None:
    (elsewhere := tmp_path / "var-log").mkdir()
    (elsewhere / "7.log").touch()
    loaded = load(tmp_path, "{logs: 30d}")
    loaded.state.mkdir(exist_ok=True)
    (loaded.state / "logs").symlink_to(elsewhere)
    Retention(ledger, lambda: time.time() + 31 * 86400).tick(loaded)
    assert list(elsewhere.iterdir()) == []


def test_no_link_makes_it_empty_another_folder(ledger: Ledger, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    (precious / "sub").mkdir(parents=True)
    (tmp_path / "inbox").mkdir(exist_ok=True)
    (tmp_path / "inbox" / ".qconvd-done").symlink_to(precious)
    Retention(ledger, lambda: time.time() + 15 * 86400).tick(load(tmp_path, "{moved: 14d}"))
    assert [p.name for p in precious.iterdir()] == ["sub"]


@pytest.mark.parametrize("written", ["14", "'14'", "1.5"])
def test_days_must_be_written_as_days(ledger: Ledger, tmp_path: Path, written: str) -> None:
    with pytest.raises(ConfigError, match=r"keep\.moved: 1.* has no unit; write for example 30d or 12h"):
        load(tmp_path, f"{{moved: {written}}}")


def test_work_files_of_what_failed(ledger: Ledger, tmp_path: Path) -> None:
    crashed, waiting = wanted(ledger, "one", "two")
    for attempt in range(3):
        ledger.retry([crashed])
        ledger.make_tasks()
        for task in ledger.tasks("queued"):
            if crashed in task.targets:
                held = ledger.claim(task.id)
                ledger.finish(held.id, held.fence, {t: Outcome(False, f"crash {attempt}", retry=True) for t in held.targets})
    states = {t.id: t.state for t in ledger.targets()}
    assert states[crashed] == "failed"
    ledger.retry([waiting])
    work = tmp_path / "models" / ".qconvd" / "work"
    for id in (crashed, waiting):
        (work / id).mkdir(parents=True)
    loaded = load(tmp_path, "{work: 7d}")
    retention = Retention(ledger, lambda: time.time() + 6 * 86400)
    retention.tick(loaded)
    assert {p.name for p in work.iterdir()} == {crashed, waiting}
    Retention(ledger, lambda: time.time() + 8 * 86400).tick(loaded)
    assert [p.name for p in work.iterdir()] == [waiting]
