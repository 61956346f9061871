"""Commands that speak with the daemon, or look at what it left."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from command_line import Qconvd
from daemon_kit import Home, copy_in, tiny_model
from qconvd.ledger import Ledger


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """A home whose daemon converted one model and refused another, and ended. Nobody changes its ledger."""
    home = Home(tmp_path_factory.mktemp("done"))
    copy_in(home, tiny_model(home.root / "away" / "tiny"))
    adapter = home.inbox / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base", "peft_type": "LORA"}')
    (adapter / "adapter_model.safetensors").write_bytes(b"\2\0\0\0\0\0\0\0{}")
    assert home.once() == 1, home.log()
    return home


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Home]:
    """A home with a running daemon and an empty inbox."""
    home = Home(tmp_path / "home").start()
    home.said("qconvd runs")
    yield home
    home.stop()


def test_jobs(qconvd: Qconvd, done: Home) -> None:
    said = qconvd("jobs", "--config", done.config)
    assert said.code == 0
    heading, row = said.out.splitlines()
    assert heading.split() == ["JOB", "MODEL", "RECIPE", "STATE", "DONE", "REASON"]
    assert row.split()[:5] == ["1", "tiny", "everyday", "done", "1/1"]
    (job,) = qconvd("jobs", "--config", done.config, "--json").json
    assert (job["model"], job["state"], job["targets"][0]["folder"]) == ("tiny", "done", "tiny-fp16")


def test_job(qconvd: Qconvd, done: Home) -> None:
    said = qconvd("job", "1", "--config", done.config)
    assert said.code == 0
    assert f"source  {done.inbox}/tiny" in said.out
    states = [line.split() for line in said.out.split("WHEN")[1].splitlines()[1:]]
    assert [words[3] for words in states if words][-1] == "done"
    history = qconvd("job", "1", "--config", done.config, "--json").json["history"]
    assert history[0]["to"] == "waiting"
    assert {"planned", "converting", "verifying", "ready", "done"} <= {event["to"] for event in history}


def test_logs(qconvd: Qconvd, done: Home) -> None:
    said = qconvd("logs", "1", "--config", done.config)
    assert said.code == 0
    assert "task 1: plan" in said.out
    assert "@@q" not in said.out
    assert '@@q {"event": "planned"' in qconvd("logs", "1", "--events", "--follow", "--config", done.config).out


def test_status_without_a_daemon(qconvd: Qconvd, done: Home) -> None:
    said = qconvd("status", "--config", done.config)
    assert said.code == 0
    assert said.out.startswith("No daemon runs; `qconvd run` starts one.\nJobs: 1 done.\n")
    assert f"{done.inbox}/adapter is not converted: " in said.out
    data = qconvd("status", "--config", done.config, "--json").json
    assert (data["daemon"], data["jobs"], data["running"]) == (None, {"done": 1}, [])
    assert data["refused"][0]["path"] == f"{done.inbox}/adapter"


@pytest.mark.parametrize("command", ["jobs", "status"])
def test_where_no_daemon_ran(qconvd: Qconvd, command: str, tmp_path: Path) -> None:
    Path("config.yaml").write_text("output: ./m\nrecipes: {r: {targets: [fp16]}}\n")
    said = qconvd(command)
    assert said.code == 3
    assert said.err == f"qconvd: {tmp_path}/state: no daemon has run with this config yet\n  start one with `qconvd run`\n"
    assert not Path("state").exists()


@pytest.mark.parametrize("arguments", [["job", "99"], ["retry", "99"], ["logs", "99"]])
def test_jobs_that_are_not_there(qconvd: Qconvd, done: Home, arguments: list[str]) -> None:
    said = qconvd(*arguments, "--config", done.config)
    assert (said.code, said.err) == (3, "qconvd: there is no job 99\n  `qconvd jobs` lists them\n")


def test_add_to_a_running_daemon(qconvd: Qconvd, daemon: Home) -> None:
    away = tiny_model(daemon.root / "away" / "far", seed=5)
    said = qconvd("add", away, "--recipe", "everyday", "--config", daemon.config)
    assert (said.code, said.out) == (0, "1 artifact will be made\n")
    daemon.done(1)
    assert (daemon.output / "far-fp16" / "model.safetensors").exists()
    again = qconvd("add", away, "--recipe", "everyday", "--config", daemon.config)
    assert (again.code, again.out) == (0, "all that the recipe wants is there or on its way\n")


def test_reconvert_and_retry(qconvd: Qconvd, daemon: Home) -> None:
    copy_in(daemon, tiny_model(daemon.root / "away" / "tiny"))
    daemon.done(1)
    shutil.rmtree(daemon.output / "tiny-fp16")
    assert qconvd("retry", "1", "--config", daemon.config).out == "nothing to try again\n"
    assert qconvd("reconvert", "1", "--config", daemon.config).out == "1 artifact will be made again\n"
    daemon.wait(lambda: (daemon.output / "tiny-fp16" / "qconvd.json").exists(), "the artifact to be there again")
    assert qconvd("cancel", "1", "--config", daemon.config).code == 0


def test_status_of_a_running_daemon(qconvd: Qconvd, daemon: Home) -> None:
    assert daemon.process is not None
    said = qconvd("status", "--config", daemon.config)
    assert said.out.startswith(f"The daemon runs (process {daemon.process.pid}).\nJobs: none yet.\n")


def test_reload(qconvd: Qconvd, daemon: Home) -> None:
    text = daemon.config.read_text()
    assert qconvd("reload", "--config", daemon.config).out == "the configuration was read again\n"
    daemon.config.write_text(text.replace("state: ./state", "state: ./state\nfrob: 1"))
    said = qconvd("reload", "--config", daemon.config)
    assert said.code == 78
    assert "frob: there is no key 'frob' here" in said.err


def test_a_second_daemon_is_refused(qconvd: Qconvd, daemon: Home) -> None:
    assert daemon.process is not None
    said = qconvd("run", "--config", daemon.config)
    assert said.code == 3
    assert f"another qconvd daemon (process {daemon.process.pid}) works on this state folder" in said.err


def test_a_request_waits_for_the_next_daemon(qconvd: Qconvd, tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    away = tiny_model(tmp_path / "away" / "later")
    said = qconvd("add", away, "--recipe", "everyday", "--config", home.config)
    assert said.code == 0
    assert said.out == f"No daemon runs on {home.state}; it will be done when one is started (`qconvd run`).\n"
    assert home.once() == 0, home.log()
    assert (home.output / "later-fp16" / "qconvd.json").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--recipe", "evryday"], 3, "there is no recipe 'evryday' (did you mean everyday?)\n  its recipes: everyday"),
        ([], 2, "--recipe"),
    ],
)
def test_add_refuses(qconvd: Qconvd, tmp_path: Path, arguments: list[str], code: int, message: str) -> None:
    home = Home(tmp_path / "home")
    said = qconvd("add", tiny_model(tmp_path / "tiny"), *arguments, "--config", home.config)
    assert said.code == code
    assert message in said.err
    assert not home.state.exists()


def test_add_of_what_is_no_model(qconvd: Qconvd, tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    Path("empty").mkdir()
    said = qconvd("add", "empty", "--recipe", "everyday", "--config", home.config)
    assert (said.code, said.err) == (3, f"qconvd: {tmp_path}/empty: the folder is empty\n")


def test_run_once_with_nothing_to_do(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    assert home.once() == 0
    ledger = Ledger(home.state / "ledger.sqlite")
    assert ledger.jobs() == []
    ledger.close()


def test_run_says_what_is_not_there(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    home.inbox.rmdir()
    home.start()
    home.said(f"the watched folder {home.inbox} does not exist yet; it is taken up when it does")
    assert home.stop() == 0


@pytest.mark.parametrize("arguments", [["jobs"], ["status"], ["job", "1"], ["retry", "1"]])
def test_a_damaged_ledger_is_told_in_words(qconvd: Qconvd, tmp_path: Path, arguments: list[str]) -> None:
    home = Home(tmp_path)
    tiny_model(home.inbox / "m")
    assert home.once() == 0
    with (home.state / "ledger.sqlite").open("r+b") as file:
        file.seek(4096)  # the first page says that it is a ledger
        file.write(b"\xa5" * 20 * 4096)
    said = qconvd(*arguments, "--config", str(home.config))
    assert said.code == 3
    assert "the ledger cannot be used: database disk image is malformed" in said.err
    assert "restore it, or move it away to begin anew" in said.err
