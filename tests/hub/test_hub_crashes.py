"""SIGKILL while a model comes from the Hub: at every call that changes the disk, and around every reply of the server.

After each, one more run must fetch and convert the model once, with the same bytes, and leave nothing else behind: no half
downloads in the Hub cache, no drafts, no second commit of an artifact.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import random
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

import crash
from daemon_kit import Home, tiny_model
from hub_server import HubServer
from warm import Warm, fresh

pytestmark = pytest.mark.crash
CONFIG = """\
watch: [{{hub: alice/m, recipes: r}}]
output: ./models
state: ./state
recipes: {{r: {{targets: [fp16]}}}}
limits: {{stop_grace: 5s, disk_reserve: 0, jobs: 1, threads: 1}}
devices: {{cuda: none}}
web: {{listen: off}}
hub: {{endpoint: '{url}', cache: ./cache, timeout: 10s}}
"""
SHARES = 3
RANDOM_POINTS = 50


class Pattern:
    """A home before its first run, and what a run that nobody disturbs makes of it."""

    def __init__(self, root: Path, server: HubServer) -> None:
        self.root, self.server = root, server
        server.push("alice/m", tiny_model(root / "model"), texts={"README.md": "# A card", "tokenizer_config.json": "{}"})
        self.home = root / "pattern"
        self.home.mkdir()
        (self.home / "config.yaml").write_text(CONFIG.format(url=server.url))
        calm = fresh(root / "calm", self.home)
        server.forget()
        assert calm.run() == 0, problems(calm)
        self.calls, self.requests = crash.calls(calm.log), len(server.log())
        self.files = made(calm)
        assert self.calls > 50 and self.requests > 5 and "m-fp16/model.safetensors" in self.files

    def recovers(self, warm: Warm, where: str) -> None:
        """One more run brings everything to its end, once."""
        assert warm.run(armed=False) == 0, f"{where}\n{problems(warm)}"
        home = Home(warm.root)
        assert made(warm) == self.files, where
        assert not warm.doubles.exists(), f"two workers at one task; {where}"
        assert not list((home.state / "tasks").iterdir()), where
        with home.ledger() as ledger:
            done = [e.target for e in ledger.history() if e.to_state == "done" and e.target]
            (snapshot,) = ledger.snapshots()
        assert len(done) == 1 and snapshot.state == "here", where
        there = sorted(p.name for p in Path(snapshot.heads).parent.iterdir())
        assert there == ["fetched.json", "heads", "lock", "model"], where
        assert not list((warm.root / "cache").rglob("*.incomplete")), where
        for path, sha256 in self.server.files("alice/m").items():
            if path != ".gitattributes":
                assert hashlib.sha256((Path(snapshot.folder) / path).read_bytes()).hexdigest() == sha256, where
        assert len(snapshot.fetched) == len(snapshot.files), f"what was fetched is known to be ours; {where}"
        shutil.rmtree(warm.root)


def made(warm: Warm) -> dict[str, str]:
    return Home(warm.root).files()


def problems(warm: Warm) -> str:
    texts = [f.read_text(errors="replace") for f in (warm.root / "daemon.log", warm.root / "errors") if f.exists()]
    return "\n".join([*texts, *(f.read_text(errors="replace") for f in (warm.state / "logs").glob("*.log"))])


@pytest.fixture(scope="module")
def pattern(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pattern]:
    for module in ("huggingface_hub.hf_api", "huggingface_hub.file_download"):
        importlib.import_module(module)  # once for all the forked processes
    from huggingface_hub import constants

    root = tmp_path_factory.mktemp("hub-crashes")
    server = HubServer(root / "server")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("HF_HUB_OFFLINE", False), ("HF_HUB_DISABLE_XET", True)):
            patch.setattr(constants, name, value)
            patch.setenv(name, str(int(value)))
        for variable in ("HF_TOKEN", "HF_ENDPOINT", "CREDENTIALS_DIRECTORY", "HF_TOKEN_PATH"):
            patch.delenv(variable, raising=False)
        patch.setenv("HF_HOME", str(root / "hf"))
        yield Pattern(root, server)
    server.stop()


@pytest.mark.parametrize("share", range(SHARES))
def test_one_process_is_killed_at_every_point(pattern: Pattern, share: int) -> None:
    """The daemon dies and its worker lives on, or the worker dies under a daemon that lives on."""
    for point in crash.some(range(share, pattern.calls, SHARES)):
        warm = fresh(pattern.root / f"crash-{point}", pattern.home)
        assert warm.run(point) in (0, -signal.SIGKILL), problems(warm)
        pattern.recovers(warm, f"killed before call {point}; after {last_call(warm)}")


def test_all_processes_are_killed_at_random_points(pattern: Pattern) -> None:
    """As when the power fails."""
    points = range(pattern.calls)
    for point in crash.some(random.Random(20240229).sample(points, min(RANDOM_POINTS, len(points)))):
        warm = fresh(pattern.root / f"power-{point}", pattern.home)
        warm.run(point, power=True)
        pattern.recovers(warm, f"all killed before call {point}; after {last_call(warm)}")


@pytest.mark.parametrize("when", ["before", "after"])
def test_all_processes_are_killed_around_every_reply(pattern: Pattern, when: str) -> None:
    for number in crash.some(range(pattern.requests)):
        warm = fresh(pattern.root / f"reply-{when}-{number}", pattern.home)
        pattern.server.fault("^", "hold", skip=number, when=when)
        running = threading.Thread(target=warm.run)
        running.start()
        while not pattern.server.held() and running.is_alive():
            running.join(0.02)
        kill_all(warm)
        pattern.server.calm()
        running.join()
        pattern.recovers(warm, f"killed {when} reply {number}")


def last_call(warm: Warm) -> str:
    lines = warm.log.read_text().splitlines() if warm.log.exists() else []
    return lines[-1].strip() if lines else "nothing"


def kill_all(warm: Warm) -> None:
    for file in (warm.state / "tasks").glob("*/pid.json"):
        with suppress(OSError, ValueError, KeyError):
            os.killpg(int(json.loads(file.read_text())["pid"]), signal.SIGKILL)
    with suppress(OSError, ValueError):
        os.kill(int((warm.root / "daemon.pid").read_text()), signal.SIGKILL)
