"""The log of a daemon that runs: every line of it, from the first to the last."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from daemon_kit import Home, end, tiny_model


def lines(home: Home) -> list[dict[str, Any]]:
    return [json.loads(line) for line in home.log().splitlines()]


def actions(home: Home) -> list[str]:
    return [line["action"] for line in lines(home)]


def test_each_line_is_json_with_an_action_and_what_it_is_about(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.configure("[fp16, gguf: q8_0]", more="log: {format: json}\n")
    tiny_model(home.inbox / "m\n\x1b[31mERROR")
    assert home.once() == 1
    found = lines(home)
    assert all({"time", "level", "logger", "action", "message"} <= line.keys() for line in found)
    (failed,) = [line for line in found if line["action"] == "target.failed"]
    (target,) = home.targets("failed")
    source = home.sources()[0]
    assert failed["level"] == "error" and "no tokenizer" in failed["message"]
    assert {k: failed[k] for k in ("jobs", "target", "artifact")} == {"jobs": [1], "target": target.id, "artifact": "gguf Q8_0"}
    assert failed["source"] == f"{home.inbox}/m\\n\\x1b[31mERROR" and "\n" in source.locator
    started = [line for line in found if line["action"] == "task.started"]
    assert [(s["kind"], s["task"], s["jobs"], s["device"], s["attempt"]) for s in started] == [
        ("plan", 1, [1], "cpu", 1), ("convert", 2, [1], "cpu", 1), ("verify", 3, [1], "cpu", 1)
    ]  # fmt: skip
    wanted = ["watch.armed", "daemon.ready", "model.taken", "target.failed", "target.done", "once.done"]
    assert [a for a in actions(home) if a in wanted] == wanted


def test_a_reload_takes_another_format_over(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.start()
    home.said("qconvd runs")
    home.configure(more="log: {format: json, level: warning}\n")
    home.ask("reload")
    home.configure(more="log: {format: json, level: info}\n")
    home.signal(signal.SIGHUP)
    home.said("config.reloaded")
    home.configure(more="log: {format: jsn}\n")
    home.signal(signal.SIGHUP)
    home.said("did you mean json")
    end(home)
    text = home.log().splitlines()
    first = next(i for i, line in enumerate(text) if line.startswith("{"))
    assert all(not line.startswith("{") for line in text[:first])
    found = [json.loads(line) for line in text[first:]]
    assert [f["action"] for f in found][-5:] == [
        "config.reloaded", "config.refused", "config.refused", "daemon.stopping", "daemon.stopped"
    ]  # fmt: skip


def test_what_keeps_a_daemon_from_starting_is_a_line_of_its_log(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.start()
    home.said("qconvd runs")
    command = [sys.executable, "-m", "qconvd", "run", "--config", str(home.config), "--log-format"]
    second = subprocess.run([*command, "json"], capture_output=True, text=True, check=False)
    assert second.returncode == 3
    *_, last = map(json.loads, second.stderr.splitlines())
    assert (last["action"], last["level"], last["error"]) == ("daemon.refused", "critical", "QconvdError")
    third = subprocess.run([*command, "human"], capture_output=True, text=True, check=False)
    assert (third.returncode, third.stderr) == (3, f"qconvd: {last['message']}\n")
    end(home)


def test_colours_are_for_terminals_whose_users_want_them(tmp_path: Path) -> None:
    home = Home(tmp_path)
    command = [sys.executable, "-m", "qconvd", "run", "--once", "--config", str(home.config)]

    def shown(**env: str) -> str:
        ours, theirs = pty.openpty()
        clean = {k: v for k, v in os.environ.items() if k != "NO_COLOR"}
        subprocess.run(command, stderr=theirs, env={**clean, "TERM": "xterm", **env}, check=True)
        os.close(theirs)
        text = b""
        try:
            while piece := os.read(ours, 1 << 16):
                text += piece
        except OSError:
            pass
        os.close(ours)
        return text.decode()

    assert "\x1b[2m" in shown()
    assert "\x1b" not in (plain := shown(NO_COLOR="1")) and "qconvd runs" in plain
    assert "\x1b" not in shown(TERM="dumb")


def test_a_defect_in_a_thread_is_a_line(tmp_path: Path) -> None:
    code = (
        "import threading; from qconvd.config.log import Log; from qconvd.logs.setup import DaemonLog\n"
        "import warnings; DaemonLog().apply(Log(format='json')); warnings.warn('old')\n"
        "t = threading.Thread(target=lambda: 1 / 0, name='web'); t.start(); t.join(); raise ValueError('oh')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    warned, thread, whole = map(json.loads, done.stderr.splitlines())
    assert warned["action"] == "library.py" and "UserWarning: old" in warned["message"]
    assert (thread["action"], thread["message"]) == ("daemon.thread_ended", "a defect ends the thread web")
    assert thread["exception"].endswith("ZeroDivisionError: division by zero")
    assert (whole["action"], whole["exception"].splitlines()[-1]) == ("daemon.defect", "ValueError: oh")
