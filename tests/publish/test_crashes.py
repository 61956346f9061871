"""SIGKILL at every point of publishing: before each request, after each reply, write, sync, rename and commit of the ledger.

After each, one more run must have published everything, once, and the server's own bytes are those of the manifest.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.hf_api  # noqa: F401 — what is imported here, the forked workers need not import
import pytest

import crash
import qconvd.publish.hub  # noqa: F401
from daemon_kit import Home, tiny_model
from hub_server import HubServer
from qconvd.engine.manifest import parse_manifest, read_manifest
from qconvd.quality.verify import verify_path
from test_daemon_crashes import last_call, problems
from warm import Warm, fresh

pytestmark = [
    pytest.mark.crash,
    # Of huggingface_hub's own way to call httpx.
    pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"),
]
SHARES = 4
RANDOM_POINTS = 50
REPO = "alice/m-fp16"
PLACES = "publish: [{hub: {owner: alice}}, {folder: ./out}]"


class Pattern:
    """A home in which an artifact is verified or, with `begun`, nothing is made yet; what is left to do is counted."""

    def __init__(self, root: Path, *, begun: bool) -> None:
        self.root = root
        home = Home(root / "home")
        tiny_model(home.inbox / "m")
        home.configure("[fp16]", settle="0s")
        if not begun:
            warm = Warm(home.config)
            assert warm.run(armed=False) == 0, problems(warm)
        home.root.rename(root / "pattern")
        calm = self.fresh()
        with serving(root / "calm-hub") as server:
            configure(calm, server)
            assert calm.run() == 0, problems(calm)
            self.check(calm, server, "nobody killed it")
        self.calls = crash.calls(calm.log)
        assert self.calls > 60

    def fresh(self) -> Warm:
        """Always in the same place: the ledger knows the model by it."""
        return fresh(self.root / "home", self.root / "pattern")

    def crash_and_recover(self, point: int, *, power: bool) -> None:
        warm = self.fresh()
        with serving(self.root / f"hub-{point}") as server:
            configure(warm, server)
            first = warm.run(point, power=power)
            where = f"killed before call {point}{' with everything else' if power else ''}; after {last_call(warm)}"
            assert first in (0, -9), f"{where}\n{problems(warm)}"
            assert warm.run(armed=False) == 0, f"{where}\n{problems(warm)}"
            self.check(warm, server, where)
        shutil.rmtree(self.root / f"hub-{point}")

    def check(self, warm: Warm, server: HubServer, where: str) -> None:
        home = Home(warm.root, configure=False)
        assert server.repos() == [REPO], where
        assert [c["title"] for c in server.commits(REPO)][:-1] == ["Add m-fp16"], f"published once; {where}"
        manifest = parse_manifest(server.read(REPO, "qconvd.json"), "qconvd.json")
        there = server.files(REPO)
        assert {f.path: there.get(f.path) for f in manifest.files} == {f.path: f.sha256 for f in manifest.files}, where
        assert manifest == read_manifest(home.output / "m-fp16/qconvd.json"), where
        out = home.root / "out/m-fp16"
        (report,) = verify_path(out)
        assert getattr(report, "sha256", False) and (out / "README.md").exists(), where
        assert not [p for p in out.rglob(".*") if p.is_file()], f"nothing is left of copies; {where}"
        with home.ledger() as ledger:
            (target,) = ledger.targets("done")
            assert [p.state for p in ledger.publications()] == ["done"] * 2, where
            assert ledger.tasks("queued", "running") == [], where
            published = [e for e in ledger.history(target=target.id) if (e.from_state, e.to_state) == ("publishing", "done")]
            assert len(published) == 1, where
        assert not warm.doubles.exists(), f"two workers at one task; {where}"
        assert not list((home.state / "tasks").iterdir()), where


class serving:
    """A server of its own, so that every point begins with an empty Hub."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __enter__(self) -> HubServer:
        self._server = HubServer(self._folder)
        return self._server

    def __exit__(self, *_: object) -> None:
        self._server.stop()


def configure(warm: Warm, server: HubServer) -> None:
    Home(warm.root, configure=False).configure(
        "[fp16]", publish=PLACES, settle="0s", more=f"hub: {{endpoint: '{server.url}', timeout: 20s}}\n"
    )


@pytest.fixture(scope="module")
def online() -> Iterator[None]:
    """As the fixture `hub_server` does it, for the whole module."""
    from huggingface_hub import constants

    with pytest.MonkeyPatch.context() as patch:
        for name in ("HF_ENDPOINT", "CREDENTIALS_DIRECTORY", "HF_TOKEN_PATH"):
            patch.delenv(name, raising=False)
        for name, value in (("HF_TOKEN", "hf_alice"), ("HF_HUB_OFFLINE", "0"), ("HF_HUB_DISABLE_XET", "1")):
            patch.setenv(name, value)
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        yield


@pytest.fixture(scope="module")
def verified(tmp_path_factory: pytest.TempPathFactory, online: None) -> Pattern:
    return Pattern(tmp_path_factory.mktemp("verified"), begun=False)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, online: None) -> Pattern:
    return Pattern(tmp_path_factory.mktemp("whole"), begun=True)


@pytest.mark.parametrize("share", range(SHARES))
def test_one_process_is_killed_at_every_point_of_publishing(verified: Pattern, share: int) -> None:
    for point in crash.some(range(share, verified.calls, SHARES)):
        verified.crash_and_recover(point, power=False)


def test_all_processes_are_killed_at_random_points(whole: Pattern) -> None:
    """As when the power fails, from the model in the inbox to the last place."""
    for point in crash.some(random.Random(20240301).sample(range(whole.calls), RANDOM_POINTS)):
        whole.crash_and_recover(point, power=True)
