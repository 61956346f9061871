"""Conversions to GGML and from it that are killed: nothing half-made is in its place, the next run ends in the same bytes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

import crash
import ggml_models
from converted import converted
from ggml_files import llama, write

GOALS = [("ggml", "q4_0"), ("gguf", "Q8_0"), ("fp16", "f32")]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint, and a GGML file."""
    folder = tmp_path_factory.mktemp("sources")
    ggml = write(folder / "m.ggmlv3.f16.bin", llama())
    return {"checkpoint": ggml_models.make(folder / "m", "llama"), "ggml": ggml}


def make(source: Path, out: Path, form: str, kind: str) -> None:
    """The engine's part: everything up to the manifest."""
    converted(source, out, form, **({"dtype": kind} if form == "fp16" else {"types": [kind]}))


def held(out: Path) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for p in sorted((out / "files").rglob("*")) if p.is_file()}


@pytest.mark.parametrize(("start", "form", "kind"), [("checkpoint", "ggml", "q4_0"), *(("ggml", *goal) for goal in GOALS)])
def test_a_crash_at_any_call_is_mended_by_running_again(
    sources: dict[str, Path], start: str, form: str, kind: str, tmp_path: Path
) -> None:
    source = sources[start]
    make(source, tmp_path / "whole", form, kind)
    expected = held(tmp_path / "whole")
    total = crash.count(lambda: make(source, tmp_path / "count", form, kind))
    assert total > 10
    killed = 0
    for point in crash.some(range(total)):
        out = tmp_path / str(point)
        killed += crash.crashed(lambda out=out: make(source, out, form, kind), point)
        make(source, out, form, kind)
        assert held(out) == expected, f"after a crash at call {point}"
    assert killed > len(crash.some(range(total))) / 2


def published(out: Path) -> dict[str, bytes]:
    """What people see of artifacts: everything but folders of work and manifests."""
    found = {str(p.relative_to(out)): p for p in sorted(out.rglob("*")) if p.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if ".qconvd/" not in name}


def test_the_command_and_its_worker_are_killed_while_they_work(sources: dict[str, Path], tmp_path: Path) -> None:
    """`qconvd convert` as people start it, from a GGML file to a GGML and a GGUF."""

    def command(out: Path) -> list[str]:
        return [sys.executable, "-m", "qconvd", "convert", str(sources["ggml"]), "--to", "ggml-q8_0,q8_0", "--out", str(out)]

    scratch = {**os.environ, "TMPDIR": str(tmp_path)}
    whole = subprocess.run(command(tmp_path / "whole"), env=scratch, capture_output=True, check=False)
    assert whole.returncode == 0, whole.stderr.decode()
    expected = published(tmp_path / "whole")
    assert [Path(name).name for name in expected] == ["m.ggmlv3.q8_0.bin", "m-Q8_0.gguf"]
    out = tmp_path / "out"
    process = subprocess.Popen(command(out), env=scratch, stderr=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("converting"):
            break
    for folder in Path("/proc").iterdir():  # the workers first: a killed command takes them with it
        if folder.name.isdigit() and int(folder.name) != process.pid and mentions(folder, f"{tmp_path}/qconvd-"):
            with suppress(ProcessLookupError):
                os.kill(int(folder.name), signal.SIGKILL)
    process.kill()
    process.communicate()
    assert published(out).items() <= expected.items(), "what is in its place is whole"
    again = subprocess.run(command(out), env=scratch, capture_output=True, check=False)
    assert again.returncode == 0, again.stderr.decode()
    assert published(out) == expected


def mentions(folder: Path, words: str) -> bool:
    try:
        return words.encode() in (folder / "cmdline").read_bytes()
    except OSError:
        return False
