"""A daemon and its workers are killed wherever that may hurt; afterwards everything is made once, with the same bytes.

The places are not listed by hand: a run that is left alone counts its calls that change the disk or the ledger, and then a run
is killed before each of them (which is after the one before). Once only the process that makes the call dies, once all do, as
in a power failure. And fifty times real processes are killed at a random moment.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import pytest

import crash
from daemon_kit import Home, tiny_model
from warm import Warm, fresh

pytestmark = pytest.mark.crash
SHARES = 8
"""The calls are shared out among this many tests, so that they run side by side."""
POINTS = 50


def prepare(root: Path) -> Home:
    """A home with one tiny model that wants an artifact with a folder of its own and one in a shared folder."""
    home = Home(root)
    home.configure(targets="[fp16, gguf: q8_0]", settle="0s", interval="1s")
    model = tiny_model(root / "draft", width=32)
    small_tokenizer(model)
    model.rename(home.inbox / "m")
    return home


def small_tokenizer(folder: Path) -> None:
    """32 tokens: four special ones, the space mark and letters."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

    special = ["<pad>", "<unk>", "<bos>", "<eos>"]
    tokens = [*special, "▁", *"abcdefghijklmnopqrstuvwxyz", "th"]
    tokenizer = Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, [("t", "h")], unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"}')


@pytest.fixture(scope="module")
def pattern(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home before its first run; the kernels are compiled and loaded, so that forked workers do not do it again."""
    import numpy as np

    from qconvd_ggml.kernels import encode

    encode("Q8_0", np.zeros((1, 32), np.uint16), "BF16")
    root = tmp_path_factory.mktemp("pattern") / "home"
    prepare(root)
    return root


@pytest.fixture(scope="module")
def undisturbed(pattern: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Mapping[str, str], int]:
    """What a run that is left alone makes, {file: sha256}, and how many calls it counts."""
    warm = fresh(tmp_path_factory.mktemp("alone") / "home", pattern)
    assert warm.run() == 0, (warm.root / "daemon.log").read_text()
    made = Home(warm.root).files()
    assert {"m-fp16/model.safetensors", "m-fp16/qconvd.json", "m-GGUF/m-Q8_0.gguf"} <= made.keys()
    total = crash.calls(warm.log)
    assert total > 200, "the calls are no longer counted"
    names = {line.split()[1] for line in warm.log.read_text().splitlines()}
    assert {"fsync", "fdatasync", "rename", "sqlite.commit"} <= names
    return made, total


def mended(warm: Warm, made: Mapping[str, str], at: str) -> None:
    """Run again, undisturbed, and look at everything that is there."""

    def said() -> str:
        return f"{at}\n{(warm.root / 'daemon.log').read_text()[-3000:]}"

    home = Home.__new__(Home)
    home.root, home.inbox, home.output, home.state = warm.root, warm.root / "inbox", warm.root / "models", warm.state
    assert warm.run(armed=False) == 0, said()
    errors = warm.root / "errors"
    assert not errors.exists(), f"{at}\n{errors.read_text()}"
    assert home.files() == made, said()
    assert home.work_left() == [], said()
    assert not warm.doubles.exists(), f"two workers on one task, {said()}"
    assert {t.state for t in home.targets()} == {"done"}, said()
    assert (home.output / "m.status.txt").read_text().startswith("m: done"), said()
    drafts = [p for p in (home.output / ".qconvd").rglob("*") if p.is_file()]
    assert drafts == [], said()


@pytest.mark.parametrize("share", range(SHARES))
def test_killed_before_any_call_that_changes_the_disk(
    pattern: Path, undisturbed: tuple[Mapping[str, str], int], tmp_path: Path, share: int
) -> None:
    made, total = undisturbed
    for number in range(share, total, SHARES):
        warm = fresh(tmp_path / "home", pattern)
        warm.run(number)
        mended(warm, made, f"killed at call {number} of {total}: {last_call(warm)}")


@pytest.mark.parametrize("share", range(SHARES))
def test_a_power_failure_before_any_call_that_changes_the_disk(
    pattern: Path, undisturbed: tuple[Mapping[str, str], int], tmp_path: Path, share: int
) -> None:
    made, total = undisturbed
    for number in range(share, total, SHARES):
        warm = fresh(tmp_path / "home", pattern)
        warm.run(number, power=True)
        mended(warm, made, f"power failure at call {number} of {total}: {last_call(warm)}")


def last_call(warm: Warm) -> str:
    lines = warm.log.read_text().splitlines() if warm.log.exists() else []
    return lines[-1].strip() if lines else "before the first"


@pytest.mark.parametrize("share", range(5))
def test_real_processes_killed_at_random_moments(
    pattern: Path, undisturbed: tuple[Mapping[str, str], int], tmp_path: Path, share: int
) -> None:
    made, _ = undisturbed
    moments = random.Random(share)
    for point in range(POINTS // 5):
        warm = fresh(tmp_path / f"home-{point}", pattern)
        home = Home.__new__(Home)
        home.__dict__.update(
            root=warm.root, inbox=warm.root / "inbox", output=warm.root / "models", state=warm.state,
            log_path=warm.root / "daemon.log", env={}, process=None,
        )  # fmt: skip
        home.start("--once")
        time.sleep(moments.uniform(0.1, 3.0))
        assert home.process is not None
        home.process.kill()
        home.process.wait()
        if moments.random() < 0.5:
            for pid in home.workers():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        home.process = None
        assert home.once() == 0, home.log()
        assert home.files() == made, home.log()
        assert home.work_left() == [], home.log()
        assert {t.state for t in home.targets()} == {"done"}
        home.wait(lambda home=home: not home.workers(), "the workers to be gone")
