"""The running daemon: its signals, its answers, and what it does with sources and artifacts over their life."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from daemon_kit import Home, end, move_in, tiny_model
from qconvd.cli.exits import Exit

FP16_AND_GGUF = "[fp16, gguf: q8_0]"
NEEDS_GPU = "[gguf: {types: [q8_0], device: cuda}]"
HANGS_UP = """
import os, runpy, signal, sys

def hang_up(event, arguments):
    if event == "import" and arguments[0] == module:
        os.kill(os.getpid(), signal.SIGHUP)

module = sys.argv.pop(1)
sys.addaudithook(hang_up)
runpy.run_module("qconvd", run_name="__main__", alter_sys=True)
"""
"""Begins qconvd, and sends it SIGHUP when it imports a module."""


def test_once_empties_the_queue_and_ends(home: Home) -> None:
    home.configure(targets="[fp16, f32, bf16]")
    for name in ("one", "two"):
        tiny_model(home.inbox / name)
    assert home.once() == 0, home.log()
    expected = {f"{m}-{f}/{n}" for m in ("one", "two") for f in ("fp16", "f32", "bf16")
                for n in ("config.json", "model.safetensors", "qconvd.json")}  # fmt: skip
    assert set(home.files()) == expected
    assert home.log().endswith("the end: artifacts made: 6, failed: 0; left: 0\n")
    before = home.files()
    assert home.once() == 0
    assert home.log().endswith("the end: there was nothing new to do\n")
    assert home.files() == before
    with home.ledger() as ledger:
        assert len([t for t in ledger.tasks() if t.kind == "convert"]) == 2, "the targets of one source share a pass"
    assert not list((home.state / "tasks").iterdir())
    assert home.work_left() == []


def test_once_says_that_something_failed(home: Home) -> None:
    home.configure(targets=FP16_AND_GGUF)
    tiny_model(home.inbox / "odd", architecture="OddForCausalLM")
    assert home.once() == 1
    text = home.status("odd")
    assert text.startswith("odd: failed\n\n  Artifacts made: 1 of 2.\n")
    assert "OddForCausalLM" in text
    assert [t.state for t in home.targets()] == ["done", "failed"]
    assert home.log().endswith("the end: artifacts made: 1, failed: 1; left: 0\n")
    assert "task 1 (plan) did 1 of 2 targets; 1 failed\n" in home.log()
    assert "odd gguf Q8_0 failed: gguf does not know the architecture OddForCausalLM\n" in home.log()
    for words in ("is planned", "is being converted", "is converted and waits to be verified", "is verified and in its place"):
        assert f"odd fp16 {words}\n" in home.log()


def test_once_does_not_wait_for_a_gpu_that_is_not_there(home: Home, glass: Path) -> None:
    home.configure(targets=NEEDS_GPU)
    shutil.copytree(glass, home.inbox / "m")
    assert home.once() == 1
    reason = "recipe everyday asks for a GPU (device: cuda); none is visible"
    assert reason in home.log()
    assert reason in home.status("m")
    assert [t.state for t in home.targets()] == ["planned"]


def test_a_second_daemon_is_refused(home: Home) -> None:
    home.start()
    home.said("qconvd runs")
    first = home.process
    assert first is not None
    home.process = None
    assert home.start().join() not in (0, 1)
    words = f"{home.state}: another qconvd daemon (process {first.pid}) works on this state folder"
    assert words in home.log().replace("\n", "")
    home.process = first
    end(home)


def test_sighup_reads_the_configuration_and_refuses_a_bad_one(home: Home) -> None:
    move_in(home, tiny_model(home.root / "drafts" / "first"))
    home.start()
    home.done(1)
    good = home.config.read_text()
    home.config.write_text(good.replace("targets:", "tragets:").replace("everyday]", "yesterday]"))
    home.signal(signal.SIGHUP)
    home.said("the new configuration is refused, the old one stays")
    home.said("config.yaml:12:5: recipes.everyday.tragets: there is no key 'tragets' here")
    home.said("there is no recipe 'yesterday'")
    move_in(home, tiny_model(home.root / "drafts" / "second"))
    home.done(2)
    home.config.write_text(good.replace("output: ./models", "output: ./elsewhere"))
    home.signal(signal.SIGHUP)
    home.said("`state` and `output` cannot change while the daemon runs")
    end(home)


@pytest.mark.parametrize("module", ["qconvd.cli", "qconvd.config", "qconvd.daemon"])
def test_sighup_while_it_starts_is_followed_after_the_start(home: Home, module: str) -> None:
    command = [sys.executable, "-c", HANGS_UP, module, "run", "--once", "--config", str(home.config)]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=home.root, check=False)
    assert ran.returncode == 0, ran
    started, reload = ran.stderr.index("qconvd runs"), ran.stderr.index("the configuration was read again")
    assert started < reload


def test_sighup_ends_a_command_that_is_no_daemon(home: Home) -> None:
    command = [sys.executable, "-c", HANGS_UP, "qconvd.config", "check", "--config", str(home.config)]
    assert subprocess.run(command, capture_output=True, cwd=home.root, check=False).returncode == -signal.SIGHUP


def test_new_target(home: Home) -> None:
    move_in(home, tiny_model(home.root / "drafts" / "m"))
    home.start()
    home.done(1)
    before = home.files()
    home.configure(targets="[fp16, f32]")
    assert home.ask("reload").answer == "the configuration was read again"
    home.done(2)
    assert {k: v for k, v in home.files().items() if k.startswith("m-fp16/")} == before
    with home.ledger() as ledger:
        assert [t.targets for t in ledger.tasks() if t.kind == "convert"] == [(t.id,) for t in ledger.targets()]
    end(home)


def test_reconvert_gives_nothing_up_where_the_model_is_gone(home: Home) -> None:
    place = move_in(home, tiny_model(home.root / "drafts" / "m"))
    home.start()
    home.done(1)
    before = home.files()
    shutil.rmtree(place)
    request = home.ask("reconvert", ids=["1"])
    assert (request.state, request.answer) == (
        "refused", f"{place}: the model is not there any more\n  put it back there first; the artifacts stay as they are",
    )  # fmt: skip
    assert home.targets("done")
    assert home.files() == before
    end(home)


def test_a_target_that_a_recipe_drops_is_not_begun(home: Home, glass: Path) -> None:
    home.configure(targets=NEEDS_GPU)
    move_in(home, shutil.copytree(glass, home.root / "drafts" / "m"))
    home.start()
    home.says("m", "asks for a GPU")
    home.configure(targets="[f32]")
    home.signal(signal.SIGHUP)
    home.done(1)
    assert [(t.label, t.state) for t in home.targets() if t.state != "done"] == [("gguf Q8_0", "superseded")]
    end(home)


def test_artifact_deleted(home: Home) -> None:
    move_in(home, tiny_model(home.root / "drafts" / "m"))
    home.start()
    home.done(1)
    before = home.files()
    shutil.rmtree(home.output / "m-fp16")
    (home.inbox / "poke").mkdir()
    home.signal(signal.SIGHUP)
    home.said("the configuration was read again")
    assert [t.state for t in home.targets()] == ["done"]
    assert home.files() == {}
    assert home.ask("reconvert", ids=["1"]).answer == "1 artifact will be made again"
    home.wait(lambda: home.files() == before, "the artifact to be made again")
    home.done(1)
    end(home)


def test_requests_are_answered(home: Home, glass: Path, tmp_path: Path) -> None:
    home.configure(targets=NEEDS_GPU)
    model = shutil.copytree(glass, tmp_path / "elsewhere" / "m")
    home.start()
    home.said("qconvd runs")
    assert home.ask("add", path=str(model), recipe="everyday").answer == "job 1: 1 artifact will be made"
    again = "job 1: all that the recipe wants is there or on its way"
    assert home.ask("add", path=str(model), recipe="everyday").answer == again
    home.says("m", "asks for a GPU")
    assert home.ask("cancel", ids=["1", "1"]).answer == "1 artifact cancelled"
    assert home.ask("cancel", ids=["1"]).answer == "nothing to cancel"
    assert home.says("m", "m: cancelled")
    assert home.ask("retry", ids=["1"]).answer == "1 artifact will be tried again"
    for kind, arguments, answer in [
        ("retry", {"ids": ["7"]}, "there is no job 7\n  `qconvd jobs` lists them"),
        ("add", {"path": str(model), "recipe": "nothing"}, "there is no recipe 'nothing'\n  known are everyday"),
        ("add", {"path": str(tmp_path / "away"), "recipe": "everyday"}, f"{tmp_path}/away: there is nothing at this path"),
        ("dance", {}, "this daemon does not know the request 'dance'\n  restart it: it may be older than the command"),
    ]:
        request = home.ask(kind, **arguments)
        assert (request.state, request.answer) == ("refused", answer)
    (model / "model.safetensors").rename(model / "kept")
    request = home.ask("add", path=str(model), recipe="everyday")
    assert request.state == "refused"
    assert request.answer.startswith(f"{model}: has a config.json but no weights yet")
    end(home)


def test_add_tells_of_copies_and_of_what_came_to_nothing(home: Home, tmp_path: Path) -> None:
    home.configure(targets=FP16_AND_GGUF)
    odd = tiny_model(tmp_path / "elsewhere" / "odd", architecture="OddForCausalLM")
    home.start()
    home.said("qconvd runs")
    assert home.ask("add", path=str(odd), recipe="everyday").answer == "job 1: 2 artifacts will be made"
    home.says("odd", "odd: failed")
    why = "gguf Q8_0{} failed before (gguf does not know the architecture OddForCausalLM); `qconvd retry 1` tries it again"
    assert home.ask("add", path=str(odd), recipe="everyday").answer == f"job 1: {why.format('')}"
    copy = Path(shutil.copytree(odd, tmp_path / "second" / "odd"))
    assert home.ask("add", path=str(copy), recipe="everyday").answer == "\n".join([
        "job 2: 1 artifact will be made",
        f"fp16: made already from {odd}, which holds the same model",
        why.format(f" of the same model in {odd}"),
    ])  # fmt: skip
    end(home)


def test_a_copy_of_a_model_that_is_converted_waits_for_it(home: Home, tmp_path: Path) -> None:
    home.configure(settle="0s")
    first = move_in(home, tiny_model(home.root / "drafts" / "m"))
    home.start()
    frozen = home.freeze("convert")
    copy = Path(shutil.copytree(first, tmp_path / "elsewhere" / "m"))
    answer = home.ask("add", path=str(copy), recipe="everyday").answer
    assert answer == f"job 2: fp16: waits for the artifact that is made from {first}, which holds the same model"
    assert [(t.state, t.failures) for t in home.targets()] == [("converting", 0), ("waiting", 0)]
    assert home.ask("cancel", ids=["2"]).answer == "1 artifact cancelled"
    again = "job 2: fp16 was cancelled before; `qconvd retry 2` tries it again"
    assert home.ask("add", path=str(copy), recipe="everyday").answer == again
    assert home.ask("retry", ids=["2"]).answer == "1 artifact will be tried again"
    os.kill(frozen[0], signal.SIGCONT)
    one, two = home.done(2)
    assert two.reason == f"made already from {first}, which holds the same model"
    assert one.artifact == two.artifact
    with home.ledger() as ledger:
        assert [t.kind for t in ledger.tasks()] == ["plan", "convert", "verify"]
    end(home)


def test_a_cancelled_conversion_stops_and_leaves_nothing(home: Home) -> None:
    home.configure(settle="0s")
    move_in(home, tiny_model(home.root / "drafts" / "m"))
    home.start()
    frozen = home.freeze("convert")
    assert home.ask("cancel", ids=["1"]).answer == "1 artifact cancelled"
    os.kill(frozen[0], signal.SIGCONT)
    home.wait(lambda: not home.workers(), "the worker to stop")
    home.wait(lambda: not home.work_left(), "the work folder to go")
    assert [t.state for t in home.targets()] == ["cancelled"]
    assert home.files() == {}
    home.ask("retry", ids=["1"])
    home.done(1)
    end(home)


def test_removed_while_queued(home: Home, glass: Path) -> None:
    home.configure(targets=NEEDS_GPU)
    place = move_in(home, shutil.copytree(glass, home.root / "drafts" / "m"))
    home.start()
    home.says("m", "asks for a GPU")
    shutil.rmtree(place)
    home.said(f"{place} is no longer there")
    home.wait(lambda: not home.status("m"), "the status to go")
    assert [(t.state, t.reason) for t in home.targets()] == [("superseded", "the model was removed from the watched folder")]
    end(home)


def test_changed_while_read(home: Home) -> None:
    model = tiny_model(home.root / "drafts" / "m", width=1024)
    place = move_in(home, model)
    home.start()
    frozen = home.freeze("convert", reading="model.safetensors")
    new = tiny_model(home.root / "drafts" / "new", width=1024, seed=2)
    data = (new / "model.safetensors").read_bytes()
    with (place / "model.safetensors").open("r+b") as file:
        file.write(data)
    os.kill(frozen[0], signal.SIGCONT)
    home.said(f"{place} (version 2) is taken")
    home.done(1)
    with home.ledger() as ledger:
        old, fresh = ledger.targets()
        assert (old.state, fresh.state) == ("superseded", "done")
        said = [e.reason for e in ledger.history(target=old.id)]
    assert any("changed" in reason for reason in said), said
    other = Home(home.root / "other")
    shutil.copytree(new, other.inbox / "m")
    assert other.once() == 0
    assert other.files() == home.files(), "as if the first version had never been"
    end(home)


def test_removed_while_read(home: Home) -> None:
    place = move_in(home, tiny_model(home.root / "drafts" / "m", width=1024))
    home.start()
    frozen = home.freeze("verify")
    place.rename(home.root / "elsewhere")
    os.kill(frozen[0], signal.SIGCONT)
    home.said(f"{place} is no longer there")
    home.wait(lambda: home.targets("superseded"), "the target to be let go")
    home.wait(lambda: not home.status("m"), "the status to go")
    assert home.targets("superseded")[0].reason == "the model was removed from the watched folder"
    (home.root / "elsewhere").rename(place)
    assert home.done(1), "what comes back is made"
    end(home)


def test_touched_while_read(home: Home) -> None:
    place = move_in(home, tiny_model(home.root / "drafts" / "m", width=1024))
    home.start()
    frozen = home.freeze("convert", reading="model.safetensors")
    os.utime(place / "model.safetensors")
    os.kill(frozen[0], signal.SIGCONT)
    home.done(1)
    with home.ledger() as ledger:
        assert [s.version for s in ledger.sources()] == [1]
        assert len(ledger.targets()) == 1
    end(home)


def test_a_full_state_disk_is_told_and_waited_for(home: Home) -> None:
    home.start()
    home.said("qconvd runs")
    assert home.process is not None
    # No file of the daemon may grow beyond what the ledger's log has now: what comes next does not fit.
    full = (home.state / "ledger.sqlite-wal").stat().st_size
    resource.prlimit(home.process.pid, resource.RLIMIT_FSIZE, (full, resource.RLIM_INFINITY))
    move_in(home, tiny_model(home.root / "drafts" / "m"))
    home.said("cannot go on: ")
    assert home.process.poll() is None
    resource.prlimit(home.process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    home.said("goes on again")
    home.done(1)
    end(home)


def test_a_ledger_that_was_removed_ends_the_daemon_in_words(home: Home) -> None:
    home.start()
    home.said("qconvd runs")
    (home.state / "ledger.sqlite").unlink()
    assert home.join() == Exit.REFUSED
    assert f"qconvd: {home.state / 'ledger.sqlite'}: the ledger was removed while it was in use" in home.log()
    assert "Traceback" not in home.log()


def test_an_output_that_cannot_be_written_is_told(home: Home) -> None:
    home.output.write_text("a file where the output should be")
    move_in(home, tiny_model(home.root / "drafts" / "m"))
    home.start()
    home.said("no status can be written to")
    failed = home.wait(lambda: home.targets("failed"), "the conversion to say so")
    assert failed[0].reason == "the output cannot be written: Not a directory"
    assert failed[0].error["where"] == str(home.output)
    assert "write permission" in failed[0].error["fix"]
    end(home)
