"""SIGKILL at every point of a run: before and after each write, sync, rename and removal, and each commit of the ledger.

The points are found by counting the calls of a run that is left alone, in the daemon, in the runners and in the workers. A
kill before call n+1 is a kill after call n with all that the process did in between. After each, one more run must bring
every target to its end, once, with the same bytes, and leave nothing else behind.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import crash
import ggml_files
from daemon_kit import Home, tiny_model
from warm import Warm, fresh

pytestmark = pytest.mark.crash
SHARES = 4
RANDOM_POINTS = {"tiny": 36, "both": 14, "ggml": 4}


class Pattern:
    """A home before its first run, and what a run that nobody disturbs makes of it."""

    def __init__(self, root: Path, targets: str, model: Path | None = None) -> None:
        self.home = Home(root / "pattern")
        self.home.configure(targets=targets, settle="0s")
        if model is None:
            tiny_model(self.home.inbox / "m")
        else:
            shutil.copytree(model, self.home.inbox / "m")
        self.root = root
        warm = fresh(root / "calm", self.home.root)
        assert warm.run() == 0, problems(warm)
        self.calls = crash.calls(warm.log)
        self.files = Home(warm.root).files()
        self.targets = len(Home(warm.root).targets("done"))
        assert self.targets and self.calls > 100

    def crash_and_recover(self, name: str, crash_at: int, power: bool) -> None:
        warm = fresh(self.root / name, self.home.root)
        first = warm.run(crash_at, power=power)
        where = f"killed before call {crash_at}{' with everything else' if power else ''}; after {last_call(warm)}"
        assert first in (0, -9), f"{where}\n{problems(warm)}"
        assert warm.run(armed=False) == 0, f"{where}\n{problems(warm)}"
        home = Home(warm.root)
        assert home.files() == self.files, where
        assert home.work_left() == [], where
        assert sorted(p.name for p in (home.output / ".qconvd").iterdir()) in (["work"], []), where
        assert not list((home.state / "tasks").iterdir()), where
        assert [p.name for p in home.state.glob(".*")] == [], where
        assert not warm.doubles.exists(), f"two workers at one task; {where}"
        with home.ledger() as ledger:
            done = [e.target for e in ledger.history() if e.to_state == "done" and e.target]
        assert len(done) == len(set(done)) == self.targets, where
        shutil.rmtree(warm.root)


def last_call(warm: Warm) -> str:
    lines = warm.log.read_text().splitlines() if warm.log.exists() else []
    return lines[-1].strip() if lines else "nothing"


def problems(warm: Warm) -> str:
    texts = [f.read_text(errors="replace") for f in (warm.root / "daemon.log", warm.root / "errors") if f.exists()]
    return "\n".join([*texts, *(f.read_text(errors="replace") for f in (warm.state / "logs").glob("*.log"))])


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Pattern:
    return Pattern(tmp_path_factory.mktemp("tiny"), "[fp16]")


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory, glass: Path) -> Iterator[Pattern]:
    """A folder of its own and a shared one, from a real model."""
    yield Pattern(tmp_path_factory.mktemp("both"), "[fp16, gguf: q8_0]", glass)


@pytest.fixture(scope="module")
def ggml(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pattern]:
    """From a GGML file to another and to a GGUF."""
    file = ggml_files.write(tmp_path_factory.mktemp("m") / "m" / "m.ggmlv3.f16.bin", ggml_files.llama())
    yield Pattern(tmp_path_factory.mktemp("ggml"), "[ggml: q8_0, gguf: q8_0]", file.parent)


@pytest.mark.parametrize("share", range(SHARES))
def test_one_process_is_killed_at_every_point(tiny: Pattern, share: int) -> None:
    """The daemon dies and its worker lives on, or the worker dies under a daemon that lives on."""
    for point in range(share, tiny.calls, SHARES):
        tiny.crash_and_recover(f"crash-{point}", point, power=False)


@pytest.mark.parametrize("which", RANDOM_POINTS)
def test_all_processes_are_killed_at_random_points(which: str, request: pytest.FixtureRequest) -> None:
    """As when the power fails."""
    pattern: Pattern = request.getfixturevalue(which)
    for point in random.Random(20240229).sample(range(pattern.calls), RANDOM_POINTS[which]):
        pattern.crash_and_recover(f"power-{point}", point, power=True)
