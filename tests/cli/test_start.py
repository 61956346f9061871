"""What starting costs and how it ends: imports, exit codes, messages."""

from __future__ import annotations

import fcntl
import os
import signal
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from command_line import Qconvd
from daemon_kit import Home, tiny_model

HEAVY = {
    "numpy", "numba", "torch", "transformers", "tokenizers", "gguf", "safetensors", "sentencepiece", "starlette", "uvicorn",
    "structlog",
}  # fmt: skip
PLUGINS = {"pluggy", "qconvd_fp16", "qconvd_gguf", "qconvd_ggml"}


def modules_after(code: str) -> set[str]:
    """The top-level modules that a fresh interpreter holds after some code."""
    script = f"import sys\ntry:\n    {code}\nexcept SystemExit:\n    pass\nprint(*{{m.partition('.')[0] for m in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize("arguments", [["--help"], []])
def test_help_loads_neither_pydantic_nor_plugins_nor_numpy(arguments: list[str]) -> None:
    found = modules_after(f"sys.argv = ['qconvd', *{arguments}]; from qconvd.cli import main; main()")
    assert "typer" in found
    assert not found & (HEAVY | PLUGINS | {"pydantic", "rich", "yaml"})


def test_help_says_what_each_command_does_without_cutting_it_short() -> None:
    done = subprocess.run([sys.executable, "-m", "qconvd", "--help"], capture_output=True, text=True, check=True)
    assert "..." not in done.stdout.partition("Commands:")[2]


def test_a_long_message_is_broken_between_words_on_a_terminal_only(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "qconvd", "formats", "nothing"]
    keyboard, terminal = os.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 30, 0, 0))
    assert subprocess.run(command, stderr=terminal, cwd=tmp_path, check=False).returncode == 3
    os.close(terminal)
    said = b"qconvd: there is no format\r\n'nothing'\r\n  there are: fp16, fp8, ggml,\r\n"
    said += b"  gguf, gptq, imatrix, int4,\r\n  int8\r\n"
    assert os.read(keyboard, 1000) == said
    os.close(keyboard)
    piped = subprocess.run(command, stderr=subprocess.PIPE, cwd=tmp_path, check=False)
    there = b"fp16, fp8, ggml, gguf, gptq, imatrix, int4, int8"
    assert piped.stderr == b"qconvd: there is no format 'nothing'\n  there are: %s\n" % there


def test_a_mistake_of_the_command_line_is_broken_between_words(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "qconvd", "convert", ".", "--to", "bitsandbytes"]
    keyboard, terminal = os.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 60, 0, 0))
    assert subprocess.run(command, stderr=terminal, cwd=tmp_path, check=False).returncode == 2
    os.close(terminal)
    assert os.read(keyboard, 1000).decode().splitlines()[-4:] == [
        "Error: Invalid value: --to: there is no format",
        "'bitsandbytes' (did you mean int4: bitsandbytes or int8:",
        "bitsandbytes?)",
        "  `qconvd formats` lists what there is",
    ]
    os.close(keyboard)


@pytest.mark.parametrize(("module", "code"), [("typer", -signal.SIGINT), ("qconvd.config", 130)])
def test_ctrl_c_while_it_starts_prints_nothing(module: str, code: int, tmp_path: Path) -> None:
    script = f"""
import os, runpy, signal, sys

def interrupt(event, arguments):
    if event == "import" and arguments[0] == {module!r}:
        os.kill(os.getpid(), signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)
sys.addaudithook(interrupt)
runpy.run_module("qconvd", run_name="__main__", alter_sys=True)
"""
    command = [sys.executable, "-c", script, "check", "--config", "qconvd.yaml"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (code, "", "")


@pytest.mark.parametrize("arguments", [["convert", "--help"], ["run", "--help"], ["version"]])
def test_a_command_s_help_loads_no_plugins(arguments: list[str]) -> None:
    """typer itself may use pydantic for a command's parameters; nothing of ours is loaded."""
    found = modules_after(f"sys.argv = ['qconvd', *{arguments}]; from qconvd.cli import main; main()")
    assert not found & (HEAVY | PLUGINS | {"yaml"})


@pytest.mark.parametrize(
    "code",
    [
        "from qconvd import daemon, once, config, targets, naming, schema, examination",
        "import pathlib; from qconvd.config import load; load(pathlib.Path('config.yaml'))",
        "sys.argv = ['qconvd', 'formats']; from qconvd.cli import main; main()",
        "sys.argv = ['qconvd', 'check', '--config', 'config.yaml']; from qconvd.cli import main; main()",
        "sys.argv = ['qconvd', 'doctor', '--config', 'config.yaml']; from qconvd.cli import main; main()",
    ],
)
def test_the_control_side_loads_nothing_heavy(code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])
    found = modules_after(code)
    assert "pydantic" in found
    assert not found & HEAVY


def test_python_dash_m() -> None:
    done = subprocess.run([sys.executable, "-m", "qconvd", "version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("qconvd ")


def test_no_command_shows_the_help(qconvd: Qconvd) -> None:
    said = qconvd()
    assert said.code == 2
    assert "Commands:" in said.out + said.err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["frobnicate"], 2, "No such command 'frobnicate'"),
        (["convert"], 2, "MODEL"),
        (["inspect", "nowhere"], 3, "nowhere: there is nothing at this path"),
        (["check"], 78, "qconvd: there is no config file\n  looked for config.yaml, "),
        (["check", "--config", "gone.yaml"], 78, "qconvd: gone.yaml: cannot be read: No such file or directory"),
        (["verify", "nowhere"], 3, "qconvd: nowhere: there is no such file or folder\n  look at the spelling of the path"),
    ],
)
def test_exit_codes(qconvd: Qconvd, arguments: list[str], code: int, message: str) -> None:
    said = qconvd(*arguments)
    assert said.code == code
    assert message in said.err
    assert "Traceback" not in said.err
    assert said.out == ""


def test_every_mistake_of_a_config_is_printed(qconvd: Qconvd) -> None:
    Path("config.yaml").write_text("output: ./m\nrecipes: {r: {targets: [fp61]}}\nlimits: {thread: 1}\n")
    said = qconvd("check")
    assert said.code == 78
    assert said.err.splitlines() == [
        "qconvd: 2 mistakes",
        "config.yaml:2:25: recipes.r.targets[0]: there is no format 'fp61' (did you mean fp16?)",
        "config.yaml:3:10: limits.thread: there is no key 'thread' here (did you mean threads?)",
    ]


def test_who_reads_may_stop_reading() -> None:
    command = f"{sys.executable} -m qconvd schema | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("{\n", "")


@pytest.mark.parametrize(
    ("arguments", "code", "error"),
    [
        (["inspect", "nowhere"], 3, {"error": "NotAModel", "what": "there is nothing at this path", "fix": ""}),
        (["plan", "nowhere", "--to", "fp16"], 3, {"error": "NotAModel", "what": "there is nothing at this path", "fix": ""}),
        (["convert", "nowhere", "--to", "fp16"], 3, {"error": "NotAModel", "what": "there is nothing at this path", "fix": ""}),
        (["verify", "nowhere"], 3, {"error": "QconvdError", "what": "there is no such file or folder"}),
        (["check", "--config", "gone.yaml"], 78, {"error": "ConfigError", "where": "gone.yaml"}),
        (["job", "7", "--config", "gone.yaml"], 78, {"what": "cannot be read: No such file or directory"}),
        (["inspect"], 2, {"error": "UsageError", "what": "Missing argument 'MODEL'.", "where": ""}),
        (["plan", "x", "--frob"], 2, {"error": "UsageError", "fix": "`--help` after the command lists what it takes"}),
    ],
)
def test_errors_for_scripts(qconvd: Qconvd, arguments: list[str], code: int, error: dict[str, str]) -> None:
    said = qconvd(*arguments, "--json")
    assert said.code == code
    assert {"error", "what", "where", "fix"} == said.json.keys()
    assert error.items() <= said.json.items()
    assert said.err == qconvd(*arguments).err
    assert qconvd(*arguments).out == ""


def test_every_mistake_of_a_config_for_scripts(qconvd: Qconvd) -> None:
    Path("config.yaml").write_text("outptu: ./models\nrecipes: {r: {targets: [fp61]}}\n")
    said = qconvd("check", "--json")
    assert said.code == 78
    first, *_, last = said.json["problems"]
    assert first == "config.yaml:1:1: outptu: there is no key 'outptu' here (did you mean output?)"
    assert "fp61" in last
    assert said.json["what"] == "\n".join(said.json["problems"])


def test_a_stream_that_is_full_is_told_without_a_traceback() -> None:
    command = f"{sys.executable} -m qconvd schema > /dev/full"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert done.stderr == "qconvd: what it prints cannot be written: No space left on device\n"
    assert done.returncode == 1


def test_streams_that_are_closed_do_no_harm(tmp_path: Path) -> None:
    """Their numbers must not go to the next files that are opened: the lock, the ledger, a log."""
    home = Home(tmp_path)
    tiny_model(home.inbox / "m")
    for closed in ("<&- >&- 2>&-", "2>&-", "<&-"):
        command = f"{sys.executable} -m qconvd run --once --config {home.config} {closed}"
        assert subprocess.run(command, shell=True, capture_output=True, check=False).returncode == 0, closed
    assert (home.output / "m-fp16" / "model.safetensors").is_file()
    assert (home.state / "lock").read_text().strip().isdigit()


@pytest.mark.parametrize("closed", ["<&- >&- 2>&-", ">&-", "2>&-", "<&-"])
def test_a_conversion_does_without_streams(tmp_path: Path, closed: str) -> None:
    """Its workers are forks of it: what it opened in their stead must not be closed there."""
    tiny_model(tmp_path / "m")
    command = f"{sys.executable} -m qconvd convert m --to fp16 --out out {closed}"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "m-fp16" / "model.safetensors").is_file()


def test_nothing_is_imported_from_the_current_folder(tmp_path: Path) -> None:
    """Python would with -m, and a fork of the command would, too."""
    tiny_model(tmp_path / "m")
    for name in ("typer", "numpy", "yaml", "safetensors", "qconvd_fp16"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('from the current folder')\n")
    command = [sys.executable, "-m", "qconvd", "convert", "m", "--to", "fp16", "--out", "out"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_names_are_utf8_whatever_the_locale_says(tmp_path: Path) -> None:
    home = Home(tmp_path)
    tiny_model(home.inbox / "日本")
    home.env = {"LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    assert home.once() == 0, home.log()
    assert (home.output / "日本-fp16" / "model.safetensors").is_file()
    assert f"{home.inbox / '日本'} is taken" in home.log()
    command = [sys.executable, "-m", "qconvd", "inspect", str(home.inbox / "日本")]
    done = subprocess.run(command, env={**os.environ, **home.env}, capture_output=True, check=True)
    assert "日本" in done.stdout.decode()


@pytest.mark.parametrize("key", ["folder", "output", "state"])
def test_a_folder_that_cannot_even_be_looked_for(qconvd: Qconvd, key: str) -> None:
    """A name of 300 bytes stands for all that makes `Path.exists` raise, such as a folder below one that may not be read."""
    place = {"folder": "./inbox", "output": "./models", "state": "./state"} | {key: f"./{'x' * 300}/y"}
    Path("config.yaml").write_text(
        f"watch: [{{folder: {place['folder']}, recipes: [r]}}]\noutput: {place['output']}\nstate: {place['state']}\n"
        "recipes: {r: {targets: [fp16]}}\n"
    )
    for command in ("check", "doctor", "jobs"):
        said = qconvd(command)
        assert "Traceback" not in said.err, said.err
    assert "x" * 300 in qconvd("check").out


def test_a_current_folder_that_was_removed(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    script = f"import os, sys; os.chdir({str(gone)!r}); os.rmdir({str(gone)!r}); os.execv(sys.executable, sys.argv[1:])"
    command = [sys.executable, "-c", script, sys.executable, "-m", "qconvd", "status"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (3, "qconvd: the current folder is not there any more\n  change to another one\n")
