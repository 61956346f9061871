"""Commands that speak with the daemon, or look at what it left."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from command_line import Qconvd
from daemon_kit import PATIENCE, Home, copy_in, move_in, tiny_model
from qconvd.client import http
from qconvd.client.http import OverHttp
from qconvd.client.ledger import OverLedger
from qconvd.ledger import Ledger

TIME = r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d "


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """A home whose daemon converted one model and refused another, and ended. Nobody changes its ledger."""
    home = Home(tmp_path_factory.mktemp("done"))
    copy_in(home, tiny_model(home.root / "away" / "tiny"))
    adapter = home.inbox / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base", "peft_type": "LORA"}')
    (adapter / "adapter_model.safetensors").write_bytes(b"\2\0\0\0\0\0\0\0{}")
    (tiny_model(home.inbox / "half") / "model.safetensors").unlink()
    assert home.once() == 1, home.log()
    return home


@pytest.fixture(params=["ledger", "http"])
def daemon(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Home]:
    """A home with a running daemon and an empty inbox, which is asked through its ledger, or over HTTP."""
    home = Home(tmp_path / "home")
    over_http = request.param == "http"
    home.web = "{listen: '127.0.0.1:0'}" if over_http else "{listen: off}"
    home.configure()
    wrongly: list[str] = []
    monkeypatch.setattr(http, "SHORT", PATIENCE)  # a busy machine may take longer than a person should wait
    _watch(monkeypatch, home, OverLedger if over_http else OverHttp, wrongly)
    home.start()
    home.said("qconvd runs")
    yield home
    home.stop()
    assert wrongly == [], "asked in the other way"


def _watch(monkeypatch: pytest.MonkeyPatch, home: Home, way: type, wrongly: list[str]) -> None:
    """Note when a home whose daemon runs is asked in a way."""
    begin = way.__init__

    def begun(self: object, *arguments: object) -> None:
        if home.process is not None and home.process.poll() is None:
            wrongly.append(way.__name__)
        begin(self, *arguments)

    monkeypatch.setattr(way, "__init__", begun)


def test_jobs(qconvd: Qconvd, done: Home) -> None:
    said = qconvd("jobs", "--config", done.config)
    assert said.code == 0
    assert said.out == (
        "JOB  MODEL    RECIPE    STATE       DONE\n"
        "  1  tiny     everyday  done         1/1\n"
        "  -  half     everyday  incomplete\n"
        "    has a config.json but no weights yet\n"
        "    add the model's safetensors\n"
        "  -  adapter            refused\n"
        "    is an adapter (LoRA) for 'org/base', not a whole model\n"
        "    merge it into its base model first (with peft: merge_and_unload) and give\n    qconvd the merged model\n"
    )
    job, half, adapter = qconvd("jobs", "--config", done.config, "--json").json
    assert (job["model"], job["state"], job["targets"][0]["folder"]) == ("tiny", "done", "tiny-fp16")
    assert (half["job"], half["model"], half["state"], half["targets"]) == (None, "half", "incomplete", [])
    assert (adapter["job"], adapter["state"], adapter["source"]) == (None, "refused", f"{done.inbox}/adapter")
    assert half["reason"] == "has a config.json but no weights yet"


def test_job(qconvd: Qconvd, done: Home) -> None:
    said = qconvd("job", "1", "--config", done.config)
    assert said.code == 0
    assert f"source  {done.inbox}/tiny" in said.out
    states = [line.split() for line in said.out.split("WHEN")[1].splitlines()[1:]]
    assert [words[3] for words in states if words][-1] == "done"
    assert f"output  {done.output}\n" in said.out
    assert "  fp16  done   97.7 KiB  tiny-fp16/\n" in re.sub(r"done +[0-9.]+ KiB", "done   97.7 KiB", said.out)
    history = qconvd("job", "1", "--config", done.config, "--json").json["history"]
    assert history[0]["to"] == "waiting"
    assert {"planned", "converting", "verifying", "ready", "done"} <= {event["to"] for event in history}


def test_logs(qconvd: Qconvd, done: Home) -> None:
    said = qconvd("logs", "1", "--config", done.config)
    assert said.code == 0
    size = re.findall(r"planned, (.+) \(", said.out)[0]
    assert re.sub(TIME, "AT ", re.sub(r"\(.* bytes\)", "(N bytes)", said.out), flags=re.MULTILINE).splitlines() == [
        "AT fp16 is waiting to be planned",
        "── task 1: plan fp16 ──", f"fp16: planned, {size} (N bytes)",
        "AT fp16 is planned",
        "── task 2: convert fp16 ──", "AT fp16 is being converted", f"fp16: converted, {size}, exact",
        "AT fp16 is converted and waits to be verified",
        "── task 3: verify fp16 ──", f"fp16: verified and in its place, {done.output}/tiny-fp16",
        "AT fp16 is verified and in its place", "AT fp16 is done",
    ]  # fmt: skip
    assert '@@q {"event": "planned"' in qconvd("logs", "1", "--events", "--follow", "--config", done.config).out


def test_status_without_a_daemon(qconvd: Qconvd, done: Home) -> None:
    said = qconvd("status", "--config", done.config)
    assert said.code == 0
    assert said.out.startswith("No daemon runs; `qconvd run` starts one.\nJobs: 1 done.\n")
    words = " ".join(said.out.split())
    assert f"{done.inbox}/adapter is not converted: " in words
    incomplete = f"{done.inbox}/half waited when the daemon ended: has a config.json but no weights yet"
    assert f"{incomplete} add the model's safetensors" in words
    assert all(len(line) <= 80 or "/" in line for line in said.out.splitlines())
    data = qconvd("status", "--config", done.config, "--json").json
    assert (data["pid"], data["jobs"], data["running"]) == (None, {"done": 1}, [])
    assert data["refused"][0]["path"] == f"{done.inbox}/adapter"
    assert [(x["kind"], x["path"]) for x in data["seen"]] == [("incomplete", f"{done.inbox}/half")]


@pytest.mark.parametrize("command", ["jobs", "status"])
def test_where_no_daemon_ran(qconvd: Qconvd, command: str, tmp_path: Path) -> None:
    Path("config.yaml").write_text("output: ./m\nrecipes: {r: {targets: [fp16]}}\n")
    said = qconvd(command)
    assert said.code == 3
    assert said.err == f"qconvd: {tmp_path}/state: no daemon has run with this config yet\n  start one with `qconvd run`\n"
    assert not Path("state").exists()


def test_a_state_folder_that_cannot_be_looked_into(qconvd: Qconvd, tmp_path: Path) -> None:
    # A name that is too long hides it from root, too.
    name = "s" * 300
    Path("config.yaml").write_text(f"state: ./{name}\noutput: ./m\nrecipes: {{r: {{targets: [fp16]}}}}\n")
    fix = "read it as root or a member of its group, or ask a running daemon: --url http://127.0.0.1:8484"
    assert qconvd("status").err == f"qconvd: {tmp_path}/{name}: cannot be read: File name too long\n  {fix}\n"


@pytest.mark.parametrize("arguments", [["job", "99"], ["retry", "99"], ["logs", "99"]])
def test_jobs_that_are_not_there(qconvd: Qconvd, done: Home, arguments: list[str]) -> None:
    said = qconvd(*arguments, "--config", done.config)
    assert (said.code, said.err) == (3, "qconvd: there is no job 99\n  `qconvd jobs` lists them\n")


def test_add_to_a_running_daemon(qconvd: Qconvd, daemon: Home) -> None:
    away = tiny_model(daemon.root / "away" / "far", seed=5)
    said = qconvd("add", away, "--recipe", "everyday", "--config", daemon.config)
    assert (said.code, said.out) == (0, "job 1: 1 artifact will be made\n")
    daemon.done(1)
    assert (daemon.output / "far-fp16" / "model.safetensors").exists()
    # The config has one recipe.
    again = qconvd("add", away, "--config", daemon.config)
    assert (again.code, again.out) == (0, "job 1: all that the recipe wants is there or on its way\n")


def test_pause_resume_and_priority(qconvd: Qconvd, daemon: Home) -> None:
    on = ("--config", daemon.config)
    assert qconvd("pause", "new disk", *on).out == "paused: no task is started until `qconvd resume`\n"
    copy_in(daemon, tiny_model(daemon.root / "away" / "tiny"))
    daemon.says("tiny", "paused (by hand): new disk")
    assert "\nPaused (by hand): new disk.\n" in qconvd("status", *on).out
    (pause,) = qconvd("status", "--json", *on).json["pauses"]
    assert (pause["cause"], pause["reason"]) == ("by hand", "new disk")
    assert qconvd("priority", "1", "-5", *on).out == "job 1 has priority -5\n"
    assert "priority  -5\n" in qconvd("job", "1", *on).out
    assert qconvd("jobs", "--json", *on).json[0]["priority"] == -5
    said = qconvd("priority", "1", "5000", *on)
    assert (said.code, said.err) == (3, "qconvd: 5000 is no priority\n  write a whole number from -1000 to 1000\n")
    assert qconvd("priority", "9", "1", *on).err == "qconvd: there is no job 9\n  `qconvd jobs` lists them\n"
    assert qconvd("priority", "1", "high", *on).code == 2
    assert qconvd("resume", *on).out == "goes on\n"
    daemon.done(1)
    assert qconvd("resume", *on).code == 3


def test_the_ledger_is_copied_and_forgets_beside_a_daemon(qconvd: Qconvd, daemon: Home) -> None:
    on = ("--config", daemon.config)
    copy_in(daemon, tiny_model(daemon.root / "away" / "tiny"))
    daemon.done(1)
    said = qconvd("ledger", "backup", daemon.root / "copy", *on)
    assert (said.code, said.err) == (0, "")
    assert re.fullmatch(rf"Copied the ledger to {daemon.root}/copy \([0-9.]+ [KM]iB\)\.\n", said.out)
    assert qconvd("ledger", "prune", *on).out == "There is nothing that old to forget.\n"
    logs = daemon.state / "logs"
    daemon.wait((logs / "job-1.log").exists, "the job's log")
    assert sorted(p.name for p in logs.iterdir()) == ["1.log", "2.log", "3.log", "job-1.log"]
    said = qconvd("ledger", "prune", "--older-than", "0s", *on)
    assert re.fullmatch(r"Forgot \d+ changes of state, 3 tasks with their logs\.\n", said.out), said
    assert [p.name for p in logs.iterdir()] == ["job-1.log"]
    assert [t.state for t in daemon.targets()] == ["done"]
    assert qconvd("reconvert", "1", *on).out == "1 artifact will be made again\n"
    daemon.wait(lambda: (logs / "6.log").exists() and daemon.targets("done"), "it to be made again")
    wrong = qconvd("ledger", "prune", "--older-than", "long", *on)
    assert (wrong.code, wrong.err) == (
        3, "qconvd: --older-than: 'long' is not a duration; write for example 30s, 5m or 2h\n"
    )  # fmt: skip


def test_reconvert_and_retry(qconvd: Qconvd, daemon: Home) -> None:
    copy_in(daemon, tiny_model(daemon.root / "away" / "tiny"))
    daemon.done(1)
    shutil.rmtree(daemon.output / "tiny-fp16")
    assert qconvd("retry", "1", "--config", daemon.config).out == "nothing to try again\n"
    assert qconvd("reconvert", "1", "--config", daemon.config).out == "1 artifact will be made again\n"
    daemon.wait(lambda: (daemon.output / "tiny-fp16" / "qconvd.json").exists(), "the artifact to be there again")
    assert qconvd("cancel", "1", "--config", daemon.config).code == 0


def test_a_daemon_that_is_a_service_is_started_as_one(
    qconvd: Qconvd, done: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    other = done.root / "other.yaml"
    other.write_text(done.config.read_text())
    assert qconvd("service", "install", "--user", "--config", other).code == 0
    assert qconvd("status", "--config", done.config).out.startswith("No daemon runs; `qconvd run` starts one.\n")
    assert qconvd("service", "install", "--user", "--config", done.config).code == 0
    assert qconvd("status", "--config", done.config).out.startswith(
        "No daemon runs; `systemctl --user start qconvd` starts one.\n"
    )


def test_what_failed_is_told_with_its_place(qconvd: Qconvd, daemon: Home) -> None:
    (daemon.output / "tiny-fp16").mkdir(parents=True)
    (daemon.output / "tiny-fp16" / "theirs.txt").write_text("theirs")
    copy_in(daemon, tiny_model(daemon.root / "away" / "tiny"))
    reason = "tiny-fp16: is there already and was not made by qconvd; it is left as it is"
    assert f"\n    {reason}\n" in daemon.says("tiny", "tiny: failed")
    assert "\nJobs: 1 failed. `qconvd jobs` says why.\n" in qconvd("status", "--config", daemon.config).out
    for command in (["jobs"], ["job", "1"]):
        assert f"    {reason}\n" in qconvd(*command, "--config", daemon.config).out


def test_status_of_a_running_daemon(qconvd: Qconvd, daemon: Home) -> None:
    assert daemon.process is not None
    said = qconvd("status", "--config", daemon.config)
    assert said.out.startswith(f"The daemon runs (process {daemon.process.pid}).\nJobs: none yet.\n")


def test_status_tells_what_the_daemon_waits_for(qconvd: Qconvd, daemon: Home) -> None:
    daemon.configure(match="match: {max_parameters: 1K}")
    assert qconvd("reload", "--config", daemon.config).code == 0
    half = tiny_model(daemon.root / "away" / "half")
    (half / "model.safetensors").unlink()
    half = move_in(daemon, half)
    big = copy_in(daemon, tiny_model(daemon.root / "away" / "big"))
    daemon.says("half", "half: waiting")
    daemon.says("big", "big: not converted")

    def seen() -> list[dict[str, str]]:
        found = qconvd("status", "--config", daemon.config, "--json").json["seen"]
        return found if sorted(s["kind"] for s in found) == ["incomplete", "unwanted"] else []

    daemon.wait(seen, "both to be seen")
    words = " ".join(qconvd("status", "--config", daemon.config).out.split())
    assert f"{half} waits: has a config.json but no weights yet add the model's safetensors" in words
    reason = "the recipe everyday does not take it: its 6.2K parameters are more than 1.0K"
    assert re.sub(r"its \S+ parameters", "its 6.2K parameters", words).endswith(
        f"{big} is not converted: {reason} add a recipe that takes it to config.yaml, or change its `match`"
    )
    daemon.inbox.rename(daemon.root / "away" / "inbox")
    daemon.said("cannot be read")
    unreadable = f"{daemon.inbox} cannot be read: No such file or directory"
    daemon.wait(lambda: unreadable in " ".join(qconvd("status", "--config", daemon.config).out.split()), "status to say so")


def test_logs_of_what_no_worker_has_seen(qconvd: Qconvd, daemon: Home) -> None:
    first = tiny_model(daemon.root / "away" / "m")
    assert qconvd("add", first, "--recipe", "everyday", "--config", daemon.config).code == 0
    daemon.done(1)
    other = tiny_model(daemon.root / "elsewhere" / "m", seed=2)
    reason = f"the artifact would overwrite that of another model, {first}: both are called m-fp16"
    assert qconvd("add", other, "--recipe", "everyday", "--config", daemon.config).out == f"job 2: fp16: {reason}\n"
    said = qconvd("logs", "2", "--config", daemon.config)
    assert said.err == f"No worker of this job has written anything.\n  fp16 is failed: {reason}\n"
    assert re.sub(TIME, "", said.out, flags=re.MULTILINE).splitlines()[-1] == f"fp16 failed: {reason}"
    said = qconvd("job", "2", "--config", daemon.config)
    words = " ".join(said.out.split())
    assert f"fp16 failed m-fp16/ {reason} rename one of the two models, or remove the other one" in words


def test_logs_tell_what_the_worker_could_not(qconvd: Qconvd, daemon: Home) -> None:
    copy_in(daemon, tiny_model(daemon.root / "away" / "m"))
    daemon.freeze("convert")
    daemon.kill_workers()
    daemon.wait(lambda: daemon.targets()[0].failures, "the crash to be noticed")
    told = re.sub(TIME, "", qconvd("logs", "1", "--config", daemon.config).out, flags=re.MULTILINE)
    started, _, ended = told.partition("── task 2: convert fp16 ──\nfp16 is being converted\n")
    how = "(the worker is gone and left no record of how it ended|.*was killed .*)"
    assert started and re.search(rf"^── task 2 ended: {how} ──$", ended, re.MULTILINE), told


def break_config(daemon: Home, how: str) -> str:
    """Spoil the config on disk; what the commands say of it."""
    text = daemon.config.read_text()
    if how == "key":
        daemon.config.write_text(text.replace("targets:", "tragets:").replace("everyday]", "yesterday]"))
        return "has 2 mistakes (`qconvd check` tells)"
    if how == "yaml":
        daemon.config.write_text(text.replace("recipes: [everyday]", "recipes: [everyday"))
        return "has 1 mistake (`qconvd check` tells)"
    if how == "bytes":
        daemon.config.write_bytes(b"# \xff\n" + text.encode())
        return "is not UTF-8 text"
    daemon.config.unlink()
    return "cannot be read: No such file or directory"


def test_a_config_that_is_broken_by_now(qconvd: Qconvd, daemon: Home) -> None:
    copy_in(daemon, tiny_model(daemon.root / "away" / "tiny"))
    daemon.done(1)
    whole, ways = daemon.config.read_bytes(), ("key", "yaml", "bytes", "gone")
    assert daemon.process is not None
    for how in ways:
        daemon.config.write_bytes(whole)
        notice = f"qconvd: {daemon.config} {break_config(daemon, how)}; the daemon runs on with what it read before\n"
        for arguments, words in [
            (["status"], f"The daemon runs (process {daemon.process.pid}).\nJobs: 1 done."),
            (["jobs"], "  1  tiny   everyday  done    1/1"),
            (["job", "1"], "recipe  everyday"),
            (["logs", "1"], "── task 1: plan fp16 ──"),
            (["retry", "1"], "nothing to try again"),
        ]:
            said = qconvd(*arguments, "--config", daemon.config)
            assert (said.code, said.err) == (0, notice), arguments
            assert words in said.out
        assert qconvd("reload", "--config", daemon.config).code == 78
        assert qconvd("check", "--config", daemon.config).code == 78
    assert daemon.stop() == 0
    for how in ways:
        daemon.config.write_bytes(whole)
        what = break_config(daemon, how)
        said = qconvd("status", "--config", daemon.config)
        assert said.err == f"qconvd: {daemon.config} {what}; no daemon can be started with it\n"
        assert said.out.startswith("No daemon runs; `qconvd run` starts one.\nJobs: 1 done.")


def test_a_broken_config_that_no_daemon_was_started_with(qconvd: Qconvd, daemon: Home) -> None:
    other = daemon.root / "other.yaml"
    other.write_text("state: ./state\nfrob: 1\n")
    said = qconvd("jobs", "--config", other)
    assert said.code == 78
    assert "frob: there is no key 'frob' here" in said.err


def test_replaced_jobs_are_counted(qconvd: Qconvd, daemon: Home) -> None:
    model = tiny_model(daemon.root / "away" / "m")
    qconvd("add", model, "--recipe", "everyday", "--config", daemon.config)
    daemon.done(1)
    shutil.copy(tiny_model(daemon.root / "away" / "n", seed=2) / "model.safetensors", model)
    qconvd("add", model, "--recipe", "everyday", "--config", daemon.config)
    daemon.wait(lambda: daemon.targets("superseded"), "the first version to be replaced")
    said = qconvd("jobs", "--config", daemon.config)
    assert [line.split()[0] for line in said.out.splitlines()] == ["JOB", "2"]
    assert said.err == "1 job that was replaced, or whose model is gone, is not shown; --all shows it.\n"
    shown = qconvd("jobs", "--all", "--config", daemon.config)
    assert [line.split()[0] for line in shown.out.splitlines() if not line.startswith("    ")] == ["JOB", "1", "2"]
    assert shown.err == ""


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
        (["--recipe", "evryday"], 3, "there is no recipe 'evryday' (did you mean everyday?)\n  its recipes: small, everyday"),
        ([], 2, "say what to make of it: --recipe, with one of small, everyday"),
    ],
)
def test_add_refuses(qconvd: Qconvd, tmp_path: Path, arguments: list[str], code: int, message: str) -> None:
    home = Home(tmp_path / "home")
    home.config.write_text(
        home.config.read_text().replace("recipes:\n  everyday:", "recipes:\n  small: {targets: [bf16]}\n  everyday:")
    )
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
    said = f"the watched folder {home.inbox} cannot be read: No such file or directory; it is tried again at each scan"
    home.said(said)
    assert home.stop() == 0
    assert home.log().count(str(home.inbox)) == 1


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
