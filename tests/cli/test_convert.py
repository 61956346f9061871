"""`qconvd convert`: a real model through the real workers."""

from __future__ import annotations

import errno
import fcntl
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
from safetensors.numpy import save_file

from command_line import Qconvd
from qconvd.engine.manifest import manifests_in
from qconvd.plugins import plugins
from qconvd.targets import resolve_list

TO = "fp16,q8_0,q4_0"
T = TypeVar("T")


def files(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def converted(glass: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """glass in three targets, made by the command as a script would call it. Read only: copy it before you change it."""
    out = tmp_path_factory.mktemp("converted")
    command = [sys.executable, "-m", "qconvd", "convert", str(glass), "--to", TO, "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (out.parent / "out.txt").write_text(done.stdout)
    (out.parent / "err.txt").write_text(done.stderr)
    return out


def test_the_artifacts_are_there_and_nothing_else(converted: Path) -> None:
    assert sorted(files(converted)) == [
        "glass_en-GGUF/.qconvd/glass_en-Q4_0.json",
        "glass_en-GGUF/.qconvd/glass_en-Q8_0.json",
        "glass_en-GGUF/glass_en-Q4_0.gguf",
        "glass_en-GGUF/glass_en-Q8_0.gguf",
        "glass_en-fp16/config.json",
        "glass_en-fp16/model.safetensors",
        "glass_en-fp16/qconvd.json",
        "glass_en-fp16/tokenizer.json",
        "glass_en-fp16/tokenizer_config.json",
    ]
    assert not list(converted.glob(".*"))


def test_what_was_planned_was_made_to_the_byte(qconvd: Qconvd, glass: Path, converted: Path) -> None:
    for artifact in qconvd("plan", glass, "--to", TO, "--json").json["artifacts"]:
        folder = converted / Path(artifact["artifact"]).parts[0]
        for file in artifact["files"]:
            assert (folder / file["path"]).stat().st_size == file["bytes"], file


def test_it_says_what_it_made(converted: Path) -> None:
    lines = (converted.parent / "out.txt").read_text().splitlines()
    assert lines[0].split() == ["TARGET", "SIZE", "BYTES", "BITS/WEIGHT", "ERROR"]
    assert lines[1].split()[:5] == ["fp16", "1.7", "MiB", f"{_bytes(converted / 'glass_en-fp16'):,}", "16.04"]
    assert lines[1].split()[-1] == "exact"
    assert re.search(r"^gguf Q8_0 .* 0\.\d+ %$", lines[3])
    assert lines[4] == f"  {converted}/glass_en-GGUF/glass_en-Q8_0.gguf"
    assert lines[-1].startswith("Made and verified 3 of 3 in ")
    told = (converted.parent / "err.txt").read_text().splitlines()
    assert told[0] == "planning fp16, gguf Q8_0, gguf Q4_0"
    assert "gguf Q8_0: 1.0 MiB (1,097,696 bytes)" in told
    assert any(line.startswith("gguf Q8_0: 4 of 38 tensors of the Q8_0 file are F16") for line in told)
    assert "converting fp16, gguf Q8_0, gguf Q4_0" in told
    assert [line for line in told if line.endswith("is done")] == ["fp16 is done", "gguf Q8_0 is done", "gguf Q4_0 is done"]


def test_an_artifact_that_is_named_is_a_model_like_another(qconvd: Qconvd, converted: Path, tmp_path: Path) -> None:
    said = qconvd("convert", converted / "glass_en-fp16", "--to", "gguf:f16", "--out", "further")
    assert said.code == 0, said.err
    assert set(files(tmp_path / "further")) == {
        "glass_en-fp16-GGUF/.qconvd/glass_en-fp16-F16.json", "glass_en-fp16-GGUF/glass_en-fp16-F16.gguf",
    }  # fmt: skip


def test_the_artifacts_verify(qconvd: Qconvd, converted: Path) -> None:
    said = qconvd("verify", converted / "glass_en-GGUF")
    assert said.code == 0
    assert "glass_en-Q8_0: right (1 file, 38 tensors, 1.0 MiB)" in said.out
    data = qconvd("verify", converted / "glass_en-fp16", "--json").json
    assert (data["ok"], data["artifacts"][0]["sha256"]) == (True, True)
    assert data["artifacts"][0]["artifact"] == "glass_en-fp16"


def test_verify_takes_the_output_folder(qconvd: Qconvd, converted: Path) -> None:
    said = qconvd("verify", converted)
    assert (said.code, said.err) == (0, "")
    rights = [line.split()[0] for line in said.out.splitlines() if ": right (" in line]
    assert rights == ["glass_en-Q4_0:", "glass_en-Q8_0:", "glass_en-fp16:"]
    assert said.out.partition("\n\nAll of them:\n")[2].splitlines() == [
        "  every size and SHA-256 is the manifest's; code that did not write it parses it",
        "  not checked: names, shapes and places of the tensors: there is no plan to hold",
        "  them against",
        "  not checked: the weights themselves: the model they came from is not at hand",
        "",
        "3 of 3 artifacts are right.",
    ]


def test_a_damaged_artifact_does_not_verify(qconvd: Qconvd, converted: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(converted / "glass_en-GGUF", tmp_path / "x")
    with (folder / "glass_en-Q8_0.gguf").open("r+b") as file:
        file.seek(-100, os.SEEK_END)
        last = file.read(1)
        file.seek(-100, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))
    (folder / ".qconvd" / "glass_en-Q4_0.json").write_text("{}")
    (folder / ".qconvd" / "glass_en-Z.json").write_bytes((folder / ".qconvd" / "glass_en-Q8_0.json").read_bytes())
    said = qconvd("verify", folder)
    assert said.code == 1
    first, second, third = said.err.removeprefix("qconvd: ").split("qconvd: ")
    assert first == (f"glass_en-Q4_0 failed verification: {folder}/.qconvd/glass_en-Q4_0.json: is no manifest of qconvd\n")
    assert f"glass_en-Q8_0 failed verification: {folder}/glass_en-Q8_0.gguf: has other bytes than were written" in second
    assert third.startswith("glass_en-Z failed verification: ")
    assert "glass_en-Q8_0: WRONG\n" in said.out
    assert said.out.endswith("0 of 3 artifacts are right.\n")
    said = qconvd("verify", folder, "--json")
    assert (said.code, said.err, said.json["ok"]) == (1, "", False)
    assert [a["ok"] for a in said.json["artifacts"]] == [False, False, False]
    error = said.json["artifacts"][1]["error"]
    assert (error["error"], error["where"]) == ("BadCheckpoint", f"{folder}/glass_en-Q8_0.gguf")
    assert error["fix"] == "convert it again"


def test_one_damaged_artifact_of_several(qconvd: Qconvd, converted: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(converted / "glass_en-GGUF", tmp_path / "x")
    (folder / "glass_en-Q4_0.gguf").unlink()
    said = qconvd("verify", folder)
    assert said.code == 1
    assert said.err == (
        f"qconvd: glass_en-Q4_0 failed verification: {folder}/glass_en-Q4_0.gguf: "
        "is missing, and the manifest names it\n  convert it again\n"
    )
    assert "glass_en-Q8_0: right (1 file, 38 tensors, 1.0 MiB)" in said.out
    assert said.out.endswith("1 of 2 artifacts are right.\n")


def test_what_is_there_is_not_made_again(qconvd: Qconvd, glass: Path, converted: Path, tmp_path: Path) -> None:
    out = shutil.copytree(converted, tmp_path / "out")
    before = {p: p.stat().st_ino for p in out.rglob("*")}
    said = qconvd("convert", glass, "--to", TO, "--out", out)
    assert said.code == 0
    assert said.err == ""
    sentence = (
        "fp16, gguf Q8_0, gguf Q4_0 were there already, made from this model with these options; --force makes them again."
    )
    assert sentence in " ".join(said.out.split())
    assert {p: p.stat().st_ino for p in out.rglob("*")} == before


def test_force_makes_the_same_bytes_again(qconvd: Qconvd, glass: Path, converted: Path, tmp_path: Path) -> None:
    out = shutil.copytree(converted, tmp_path / "out")
    before = (out / "glass_en-fp16" / "model.safetensors").stat().st_ino
    said = qconvd("convert", glass, "--to", TO, "--out", out, "--force", "--json")
    assert said.code == 0
    assert said.err == ""
    assert [a["new"] for a in said.json["artifacts"]] == [True, True, True]
    assert files(out) == files(converted)
    assert (out / "glass_en-fp16" / "model.safetensors").stat().st_ino != before


@pytest.mark.parametrize("harm", ["removed", "cut off"])
def test_what_is_not_whole_any_more_is_made_again(
    qconvd: Qconvd, glass: Path, converted: Path, tmp_path: Path, harm: str
) -> None:
    out = shutil.copytree(converted, tmp_path / "out")
    for path in (out / "glass_en-GGUF" / "glass_en-Q8_0.gguf", out / "glass_en-fp16" / "model.safetensors"):
        path.unlink() if harm == "removed" else os.truncate(path, 1000)
    said = qconvd("convert", glass, "--to", TO, "--out", out, "--json")
    assert said.code == 0
    assert sorted(a["new"] for a in said.json["artifacts"]) == [False, True, True]
    assert files(out) == files(converted)


def test_targets_without_commas_are_told_so(qconvd: Qconvd, glass: Path) -> None:
    said = qconvd("plan", glass, "--to", "q8_0 q4_0")
    assert said.code == 2
    assert "there is no format 'q8_0 q4_0'; targets have commas between them: q8_0,q4_0" in " ".join(said.err.split())


def test_a_plan_without_a_config_file_wants_to_know_what_to_make(qconvd: Qconvd, glass: Path) -> None:
    said = qconvd("plan", glass)
    assert said.code == 78
    assert "there is no config file\n  say what to make with --to, e.g. --to q8_0; looked for config.yaml, " in said.err


def test_a_file_of_somebody_s_in_a_shared_folder_is_no_hindrance(qconvd: Qconvd, glass: Path) -> None:
    Path("out/glass_en-GGUF").mkdir(parents=True)
    Path("out/glass_en-GGUF/glass_en-F16.gguf").write_text("mine")
    assert qconvd("convert", glass, "--to", "q8_0", "--out", "out").code == 0
    assert Path("out/glass_en-GGUF/glass_en-F16.gguf").read_text() == "mine"
    said = qconvd("convert", glass, "--to", "gguf: f16", "--out", "out")
    assert said.code != 0
    assert "glass_en-F16.gguf: is there already and belongs to something else; it is left as it is" in said.err
    assert Path("out/glass_en-GGUF/glass_en-F16.gguf").read_text() == "mine"


def test_a_folder_that_is_somebody_s_is_left_alone(qconvd: Qconvd, glass: Path) -> None:
    Path("out/glass_en-fp16").mkdir(parents=True)
    Path("out/glass_en-fp16/mine.txt").write_text("mine")
    for arguments in ((), ("--force",)):
        said = qconvd("convert", glass, "--to", "fp16", "--out", "out", *arguments)
        assert said.code == 3
        assert "glass_en-fp16: is there already and was not made by qconvd; it is left as it is" in said.err
    assert files(Path("out")) == {"glass_en-fp16/mine.txt": b"mine"}


def test_other_options_under_one_name_want_force(qconvd: Qconvd, glass: Path, converted: Path, tmp_path: Path) -> None:
    out = shutil.copytree(converted, tmp_path / "out")
    Path("config.yaml").write_text("output: ./m\nrecipes: {r: {targets: [{fp16: {on_overflow: clamp}}]}}\n")
    said = qconvd("convert", glass, "--recipe", "r", "--out", out)
    assert said.code == 3
    assert f"{out}/glass_en-fp16: is there already, made with other options\n  give --force to replace it" in said.err
    assert files(out) == files(converted)
    assert qconvd("convert", glass, "--recipe", "r", "--out", out, "--force").code == 0
    assert manifests_in(out / "glass_en-fp16")[0].options == {"on_overflow": "clamp"}


def test_another_model_of_that_name_wants_force(qconvd: Qconvd, converted: Path, tmp_path: Path) -> None:
    from models import cached, make_glass

    other = shutil.copytree(cached("glass_en", make_glass), tmp_path / "glass_en")
    text = (other / "tokenizer_config.json").read_text()
    (other / "tokenizer_config.json").chmod(0o644)
    (other / "tokenizer_config.json").write_text(text + " ")
    out = shutil.copytree(converted, tmp_path / "out")
    said = qconvd("convert", other, "--to", "q8_0", "--out", out)
    assert said.code == 3
    assert "is there already, made from another model, or from another version of this one" in said.err


def test_names(qconvd: Qconvd, glass: Path) -> None:
    said = qconvd("convert", glass, "--to", "q8_0,q5_0", "--out", "out", "--name", "Glass 7B", "--names", "gguf-my-repo")
    assert said.code == 0, said.err
    assert [p for p in files(Path("out")) if p.endswith(".gguf")] == [
        "Glass 7B-Q5_0-GGUF/glass 7b-q5_0.gguf", "Glass 7B-Q8_0-GGUF/glass 7b-q8_0.gguf"
    ]  # fmt: skip


def test_one_that_cannot_be_made_does_not_hold_up_the_others(qconvd: Qconvd, glass: Path, tmp_path: Path) -> None:
    odd = shutil.copytree(glass, tmp_path / "odd")
    (odd / "config.json").chmod(0o644)
    (odd / "config.json").write_text('{"architectures": ["OddForCausalLM"], "model_type": "odd"}')
    said = qconvd("convert", odd, "--to", "fp16,q8_0", "--out", "out")
    assert said.code == 1
    assert "gguf Q8_0 was not made: " in said.err
    assert "OddForCausalLM" in said.err
    assert "Made and verified 1 of 2" in said.out
    assert {p.split("/")[0] for p in files(Path("out"))} == {"odd-fp16"}


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "say what to make, e.g. --to fp16,q8_0,q4_0, or --recipe NAME"),
        (["--to", "fp61"], 2, "--to: there is no format 'fp61' (did you mean fp16?)"),
        (["--to", "fp16", "--memory", "much"], 2, "--memory: 'much' is not a size; write for example 20GiB, 5 GB or 512MiB"),
        (["--to", "fp16", "--names", "x"], 2, "--names: there is no profile 'x'; there are default, thebloke"),
        (["--to", "fp16", "--device", "gpu"], 2, "gpu"),
        (["--to", "fp16", "--out", "file"], 3, "file: cannot be written: Not a directory\n  choose another --out"),
        (["--to", "fp16", "--memory", "10MiB"], 3, "of memory; --memory allows 10.0 MiB\n  give a larger --memory"),
    ],
)
def test_refusals(qconvd: Qconvd, glass: Path, arguments: list[str], code: int, message: str) -> None:
    Path("file").touch()
    said = qconvd("convert", glass, *arguments)
    assert said.code == code
    assert message in said.err
    assert [p for p in Path().iterdir() if p.name != "file"] == []


def test_a_gpu_is_not_asked_for_where_a_format_has_no_kernels(qconvd: Qconvd, glass: Path) -> None:
    said = qconvd("convert", glass, "--to", "q8_0,int4:32g", "--device", "cuda")
    assert said.code == 2
    assert "--device cuda: int4 has no kernels for a GPU; leave `device` out, or say `cpu`" in said.err
    assert list(Path().iterdir()) == []


@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there_is_not_replaced_by_the_cpu(qconvd: Qconvd, glass: Path) -> None:
    said = qconvd("convert", glass, "--to", "q8_0", "--device", "cuda")
    assert said.code == 3
    assert "gguf Q8_0 was not made: this asks for a GPU (device: cuda); none is visible: " in said.err
    assert "NVIDIA driver" in said.err  # is not installed, or does not answer
    assert list(Path().iterdir()) == []


def test_what_the_plan_refuses_ends_as_plan_does(qconvd: Qconvd, glass: Path, tmp_path: Path) -> None:
    silent = shutil.copytree(glass, tmp_path / "silent", ignore=shutil.ignore_patterns("tokenizer*"))
    said = [qconvd(*command) for command in (("plan", silent, "--to", "gptq"), ("convert", silent, "--to", "gptq"))]
    assert [s.code for s in said] == [3, 3]
    for each in said:
        assert "calibration needs the model's tokenizer, and there is none" in each.err + each.out


def test_no_model(qconvd: Qconvd) -> None:
    Path("empty").mkdir()
    said = qconvd("convert", "empty", "--to", "fp16", "--out", "out")
    assert said.code == 3
    assert "empty: the folder is empty" in said.err
    assert not Path("out").exists()


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_goes_on_where_it_stopped(
    qconvd: Qconvd, glass: Path, converted: Path, tmp_path: Path, stop: signal.Signals
) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "qconvd", "convert", str(glass), "--to", TO, "--out", str(out)]
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    # What it is at when it is stopped is not over before that.
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(
        "import sys, time\n"
        "if 'convert' in sys.orig_argv:\n"
        "    from qconvd import worker\n"
        "    def run(spec, emit, cancelled, real=worker.run):\n"
        "        while spec.kind == 'verify' and not cancelled():\n"
        "            time.sleep(0.02)\n"
        "        return real(spec, emit, cancelled)\n"
        "    worker.run = run\n"
    )
    python_path = os.pathsep.join([str(tmp_path / "site"), *filter(None, [os.environ.get("PYTHONPATH")])])
    # numpy, which that imports, starts no threads then: the worker is a fork of the command.
    env = {**os.environ, "TMPDIR": str(scratch), "PYTHONPATH": python_path, "OPENBLAS_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=env)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("verifying"):
            break
    process.send_signal(stop)
    _, rest = process.communicate(timeout=90)
    assert process.returncode == 130, rest
    assert rest.endswith("Stopped. What was done is kept: run the same command again and it goes on from there.\n")
    assert list(scratch.iterdir()) == [], "the temporary ledger is gone"
    assert at_work(scratch, process.pid) == [], "no worker is left"
    kept = {p: p.stat().st_ino for p in out.rglob("files/*.gguf")}
    assert kept, "what was converted is kept"
    said = qconvd("convert", glass, "--to", TO, "--out", out)
    assert said.code == 0, said.err
    assert files(out) == files(converted)
    assert set(kept.values()) <= {p.stat().st_ino for p in out.rglob("*.gguf")}, "the files are those of the first run"


def test_killed_it_leaves_no_worker_and_the_next_one_clears_up(
    qconvd: Qconvd, glass: Path, converted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, scratch = tmp_path / "out", tmp_path / "scratch"
    scratch.mkdir()
    command = [sys.executable, "-m", "qconvd", "convert", str(glass), "--to", TO, "--out", str(out)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "TMPDIR": str(scratch)})
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("converting"):
            break
    nursery, _, worker = wait_for(lambda: found if len(found := at_work(scratch, process.pid)) == 3 else [])
    assert b"convert" in (nursery / "cmdline").read_bytes(), "it is a fork of the command"
    os.kill(int(worker.name), signal.SIGSTOP)
    process.kill()
    process.wait()
    process.stderr.close()  # it would end when the last of them has
    os.kill(int(worker.name), signal.SIGCONT)
    wait_for(lambda: not at_work(scratch, process.pid))
    (left,) = scratch.iterdir()
    assert left.name.startswith("qconvd-")
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    assert qconvd("convert", glass, "--to", TO, "--out", out).code == 0
    assert files(out) == files(converted)
    assert list(scratch.iterdir()) == [], "its own folder and the one that was left"


def wait_for(what: Callable[[], T]) -> T:
    """Wait for what must happen; the limit only keeps a broken test from hanging."""
    for _ in range(3000):
        if found := what():
            return found
        time.sleep(0.01)
    raise AssertionError("it did not happen")


def at_work(scratch: Path, command: int) -> list[Path]:
    """What a command with this TMPDIR has started, the youngest last: the nursery, a runner, its worker."""
    found = [p for p in Path("/proc").iterdir() if p.name.isdigit() and int(p.name) != command]
    return sorted((p for p in found if _began_with(p, f"TMPDIR={scratch}")), key=lambda p: int(p.name))


def test_another_run_at_the_same_target_is_waited_for(qconvd: Qconvd, glass: Path, tmp_path: Path) -> None:
    """The lock of the work folder is held for as long as another worker is at it."""
    from qconvd import checkpoints
    from qconvd.once import Conversion

    (target,) = resolve_list("fp16")
    conversion = Conversion(glass, [target], tmp_path / "out")
    conversion.identity, conversion.called = checkpoints.identity(checkpoints.inspect(glass)), "glass_en"
    work = conversion.work(target)
    work.mkdir(parents=True)
    command = [sys.executable, "-m", "qconvd", "convert", str(glass), "--to", "fp16", "--out", str(tmp_path / "out")]
    with (work / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("waiting: another worker still has the work folder"):
                break
        assert process.poll() is None
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "Made and verified 1 of 1" in out


def test_on_a_terminal_there_are_bars(glass: Path, tmp_path: Path) -> None:
    leader, follower = pty.openpty()
    command = [sys.executable, "-m", "qconvd", "convert", str(glass), "--to", "q8_0", "--out", str(tmp_path)]
    env = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=follower, env=env)
    os.close(follower)
    shown = b""
    while True:
        try:
            shown += os.read(leader, 65536)
        except OSError as error:
            # Linux says EIO when the other side of a terminal is closed.
            assert error.errno == errno.EIO
            break
    os.close(leader)
    process.communicate(timeout=30)
    assert process.returncode == 0
    assert "━" in shown.decode()
    assert b"verifying" in shown
    assert b"done" in shown


def test_a_plugin_that_breaks_in_the_worker(
    qconvd: Qconvd, glass: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "qconvd_fp16.py").write_text("raise RuntimeError('boom')\n")
    # The worker finds this module, and this process has long loaded the real one.
    assert "fp16" in plugins().formats
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    said = qconvd("convert", glass, "--to", "fp16", "--out", "out")
    assert said.code == 3
    assert "fp16 was not made: no plugin provides the format 'fp16'; the plugin fp16 cannot be loaded: Runtime" in said.err
    assert not Path("out/.qconvd").exists()


def test_a_worker_that_is_killed_leaves_its_log(
    qconvd: Qconvd, glass: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(
        "import os, sys\n"
        "if 'qconvd.executors.nursery' in sys.orig_argv:\n"
        "    import qconvd.worker\n"
        "    def main(argv):\n"
        "        print('last words', flush=True)\n"
        "        os.kill(os.getpid(), 9)\n"
        "    qconvd.worker.main = main\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    said = qconvd("convert", glass, "--to", "fp16", "--out", "out")
    assert said.code == 1
    found = re.search(r"fp16 was not made: was killed \(out of memory\?\)\n  the worker's log is (\S+)", said.err)
    assert found, said.err
    assert "last words" in Path(found[1]).read_text()


@pytest.mark.parametrize("kind", ["plan", "convert"])
def test_a_target_that_kills_its_worker_takes_no_other_with_it(
    qconvd: Qconvd, glass: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str
) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(
        "import json, os, sys\n"
        "if 'qconvd.executors.nursery' in sys.orig_argv:\n"
        "    from qconvd import worker\n"
        "    def main(argv, real=worker.main):\n"
        "        spec = json.load(open(argv[-1]))\n"
        f"        if spec['kind'] == '{kind}' and any(t['format'] == 'gguf' for t in spec['targets']):\n"
        "            os.kill(os.getpid(), 9)\n"
        "        return real(argv)\n"
        "    worker.main = main\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"), prepend=os.pathsep)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    said = qconvd("convert", glass, "--to", "fp16,gguf:q8_0,bf16", "--out", "out")
    assert said.code == 1
    assert re.findall(r"(\S+) was not made: (.*)", said.err) == [("Q8_0", "was killed (out of memory?)")]
    assert sorted(p.parent.name for p in Path("out").glob("*/qconvd.json")) == ["glass_en-bf16", "glass_en-fp16"]


def _bytes(folder: Path) -> int:
    return sum(f.bytes for f in manifests_in(folder)[0].files)


def _began_with(process: Path, variable: str) -> bool:
    try:
        return variable.encode() in (process / "environ").read_bytes().split(b"\0")
    except OSError:
        return False


def test_a_lone_gguf_becomes_another_in_parts(qconvd: Qconvd, glass: Path, tmp_path: Path) -> None:
    assert qconvd("convert", glass, "--to", "gguf:f16", "--out", tmp_path / "first").code == 0
    source = tmp_path / "Glass-Chat.F16.gguf"
    (tmp_path / "first" / "glass_en-GGUF" / "glass_en-F16.gguf").rename(source)
    to = "gguf: {types: [q8_0], split_max_tensors: 20}"
    said = qconvd("convert", source, "--to", to, "--out", tmp_path / "out")
    assert said.code == 0, said.err
    made = tmp_path / "out" / "Glass-Chat-GGUF"
    assert sorted(p.name for p in made.glob("*.gguf")) == [f"Glass-Chat-Q8_0-0000{i}-of-00002.gguf" for i in (1, 2)]
    assert (made / ".qconvd" / "Glass-Chat-Q8_0.json").is_file()
    assert "Glass-Chat-Q8_0: right (2 files, 38 tensors" in qconvd("verify", made).out


def test_options_on_the_command_line_are_a_recipes(qconvd: Qconvd, glass: Path) -> None:
    assert [t.label for t in resolve_list("fp16, gguf:{types: [q8_0, q4_0], pure: true},bf16")] == [
        "fp16", "gguf Q8_0", "gguf Q4_0", "bf16",
    ]  # fmt: skip
    said = qconvd("plan", glass, "--to", "gguf:{types: [q8_0")
    assert said.code == 2
    assert "--to: 'gguf:{types: [q8_0' is not YAML: " in said.err
    assert "write it as in a recipe, e.g. --to 'gguf: {types: [q4_0], pure: true}'" in said.err


def test_weights_that_are_too_large_are_told(qconvd: Qconvd, tmp_path: Path) -> None:
    """Of fp16 by themselves, of GPTQ because no scale in float16 reaches them."""
    tensors = {f"model.layers.{i}.mlp.up_proj.weight": np.ones((64, 64), np.float32) for i in range(2)}
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5:7] = 4e6
    (tmp_path / "m").mkdir()
    save_file(tensors, tmp_path / "m" / "model.safetensors", {"format": "pt"})
    (tmp_path / "m" / "config.json").write_text('{"architectures": ["LlamaForCausalLM"], "model_type": "llama"}')
    said = qconvd("convert", tmp_path / "m", "--to", "fp16, gptq: {method: rtn, group_size: 32}", "--out", tmp_path / "out")
    assert said.code == 0, said.err
    name = "model.layers.1.mlp.up_proj.weight"
    told = " ".join(said.err.split())
    for label in ("fp16", "gptq 4bit-32g-rtn"):
        assert f"{label}: 2 weights are too large for the type, and wrong in the result: {name}." in told
