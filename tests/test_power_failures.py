"""The power fails at any point of a run: whatever the disk holds then, nothing half is taken for whole, and nothing is lost.

A run is recorded (power.py), the disks that it may leave are made of that (power_disk.py), and on each of them the daemon runs
again. What is promised is docs/explanation/durability.md.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import random
import shutil
import signal
import sqlite3
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import pytest

import crash
import ggml_files
from daemon_kit import Home, tiny_model
from power import LEDGER, Recorder
from power_disk import HOW, State, make, points
from qconvd.ledger import Ledger
from qconvd.quality.verify import verify_path
from warm import Warm

Moment: TypeAlias = "Callable[[Home, str, str], bool]"
"""Whether a call (its name, and the last part of its path) is the one to be killed before."""
pytestmark = pytest.mark.crash
SAMPLES = {"own": 10, "shared": 8, "killed": 3}
"""States of each pattern; all of them with `make crashes`."""


class Pattern:
    """A recorded run, and what comes of it when nobody disturbs it."""

    def __init__(self, root: Path, targets: str, after: str, model: Path | None = None, moment: Moment | None = None) -> None:
        """At `moment` all processes are killed, once, and the power stays on; another run comes to the end."""
        self.home = Home(root / "home")
        self.home.configure(targets=targets, settle="0s", watch=f"after: {after}", publish="publish: [{folder: ./published}]")
        self.model = self.home.inbox / "m"
        if model is None:
            tiny_model(self.model)
        else:
            shutil.copytree(model, self.model)
        self.source = contents(self.model)
        self.recorder = Recorder(self.home.root, root / "record")
        self.warm = Warm(self.home.config, self.recorder.arm)
        if moment is not None:
            killed = root / "killed"
            self.warm.arm = lambda: arm_to_kill(self, moment, killed)
            assert self.warm.run() == -signal.SIGKILL, problems(self.home)
            assert killed.exists(), "the moment did not come"
        assert self.warm.run() == 0, problems(self.home)
        self.files = everything(self.home)
        assert len(self.files) > 6

    def sample(self, count: int, hows: Collection[str] = HOW) -> Iterator[tuple[str, State]]:
        """Some of the states that differ, as many of each kind, with how each came about."""
        different: dict[str, tuple[int, str]] = {}
        for number, _, how, state in self._states(hows):
            different.setdefault(state.digest(), (number, how))
        kinds = [[number for number, how in different.values() if how == kind] for kind in hows]
        chance = random.Random(20240229)
        chosen = {
            n for kind in kinds for n in (kind if crash.EVERY else chance.sample(kind, min(len(kind), count // len(kinds))))
        }
        # Made when it is wanted: workers are forks of this process, and their memory has a ceiling.
        return ((f"{where}: {how}", state) for number, where, how, state in self._states(hows, chosen))

    def _states(self, hows: Collection[str], only: Collection[int] | None = None) -> Iterator[tuple[int, str, str, State]]:
        numbers = itertools.count()
        for where, disk in points(self.recorder.events()):
            for how in hows:
                number = next(numbers)
                if only is None or number in only:
                    yield number, where, how, make(disk, self.recorder, how, number)

    def fails(self, where: str, state: State) -> None:
        """The power has failed and left this."""
        state.lay(self.home.root)
        done = self.check(where)
        assert self.warm.run(armed=False) == 0, f"{where}\n{problems(self.home)}"
        assert everything(self.home) == self.files, f"{where}\n{problems(self.home)}"
        assert self.check(where) >= done, where
        assert self.home.work_left() == [], where
        assert list(self.home.state.glob(".*")) == [], where
        assert list(self.home.state.glob("tasks/*")) == [], where

    def check(self, where: str) -> set[str]:
        """What holds at any time; the targets that are done."""
        for top in (self.home.output, self.home.root / "published"):
            for place in [*top.glob("*/qconvd.json"), *top.glob("*/.qconvd/*.json")]:
                folder = place.parent if place.name == "qconvd.json" else place.parents[1]
                for report in verify_path(folder):
                    assert getattr(report, "sha256", False), f"{where}: {folder}: {report}"
        done = self.ledger(where)
        sources = [p for p in (self.model, self.home.inbox / ".qconvd-done" / "m") if p.exists()]
        if not sources:
            assert done, f"{where}: the source is gone and nothing is done"
        for place in sources:
            assert contents(place) == self.source, f"{where}: half a source is left in {place}"
        return done

    def ledger(self, where: str) -> set[str]:
        path = self.home.state / LEDGER
        if not path.exists():
            return set()
        connection = sqlite3.connect(path)
        try:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)], where
            assert connection.execute("PRAGMA foreign_key_check").fetchall() == [], where
        finally:
            connection.close()
        ledger = Ledger(path)
        try:
            done = ledger.targets("done")
        finally:
            ledger.close()
        for target in done:
            for top in (self.home.output, self.home.root / "published"):
                assert (top / target.folder / target.manifest_name).exists(), (
                    f"{where}: {target.label} is done and not in {top}"
                )
        return {target.label for target in done}


def contents(folder: Path) -> dict[str, str]:
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob("*")) if p.is_file()
    }


def everything(home: Home) -> dict[str, str]:
    """All files of artifacts, published ones and sources."""
    published = {f"published/{path}": digest for path, digest in contents(home.root / "published").items()}
    sources = {f"inbox/{path}": digest for path, digest in contents(home.inbox).items()}
    return {**home.files(), **published, **sources}


def problems(home: Home) -> str:
    texts = [f.read_text(errors="replace") for f in (home.log_path, home.root / "errors") if f.exists()]
    return "\n".join([*texts, *(f.read_text(errors="replace") for f in (home.state / "logs").glob("*.log"))])


def arm_to_kill(pattern: Pattern, moment: Moment, killed: Path) -> None:
    """Record, and kill all processes before the call of the moment, if that was not done yet."""
    pattern.recorder.arm()

    def killing(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def calling(*arguments: Any, **options: Any) -> Any:
            if not killed.exists() and moment(pattern.home, name, crash.named(arguments[0])):
                with pattern.recorder.held():  # nobody is in the middle of an event
                    killed.touch()
                    pattern.warm.power_failure(os.getpid(), signal.SIGKILL)
            return call(*arguments, **options)

        return calling

    for name in ("fsync", "rename", "replace", "unlink"):
        setattr(os, name, killing(name, getattr(os, name)))


MOMENTS: dict[str, Moment] = {
    "an artifact is in its place and its folder not synced": lambda home, call, name: (
        (call, name) == ("fsync", "models") and (home.output / "m-fp16").exists()
    ),
    "a file is copied and not synced": lambda _, call, name: (call, name) == ("fsync", ".model.safetensors.qconvd-part"),
    "a manifest is published and its folder not synced": lambda home, call, name: (
        (call, name) == ("fsync", "m-fp16") and (home.root / "published/m-fp16/qconvd.json").exists()
    ),
}


def test_artifacts_in_folders_of_their_own(tmp_path: Path) -> None:
    """And the source is deleted when they are done and published."""
    pattern = Pattern(tmp_path, "[fp16, bf16]", "delete")
    assert not any(path.startswith("inbox/") for path in pattern.files)
    for where, state in pattern.sample(SAMPLES["own"]):
        pattern.fails(where, state)


def test_artifacts_in_a_shared_folder(tmp_path: Path) -> None:
    """And the source is moved."""
    file = ggml_files.write(tmp_path / "model" / "m.ggmlv3.f16.bin", ggml_files.llama())
    pattern = Pattern(tmp_path, "[ggml: q8_0, gguf: q8_0]", "move", file.parent)
    assert any(path.startswith("inbox/.qconvd-done/") for path in pattern.files)
    for where, state in pattern.sample(SAMPLES["shared"]):
        pattern.fails(where, state)


@pytest.mark.parametrize("moment", MOMENTS.values(), ids=MOMENTS)
def test_what_a_killed_process_left_unsynced_is_synced_by_the_next(tmp_path: Path, moment: Moment) -> None:
    pattern = Pattern(tmp_path, "[fp16]", "delete", moment=moment)
    for where, state in pattern.sample(SAMPLES["killed"], ["lost"]):
        pattern.fails(where, state)
