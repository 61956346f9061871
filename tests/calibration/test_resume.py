"""A calibration that is killed goes on at the layer where it was, with the same statistics."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import calibration_kit as kit
import crash
from qconvd.calibration.kernels import KERNELS, ready
from qconvd.checkpoints import ModelInfo
from qconvd.engine.plan import StatRequest


class Work:
    """Calibrates layer by layer and writes down what it found, as the engine's journal would."""

    def __init__(self, model: ModelInfo, folder: Path, **more: Any) -> None:
        self.model = model
        self.folder = folder
        self.more = more
        self.requests = [StatRequest(name, "hessian") for name in kit.linears(model)]
        self.spec = kit.spec_of(model, samples=5, dtype=more.pop("dtype", "float32"))

    def run(self) -> None:
        calibration = kit.calibration(self.model, self.requests, self.folder / "states", self.spec, **self.more)
        with (self.folder / "log").open("a") as log:
            for layer in range(calibration.position, calibration.layers):
                for wave in calibration.waves(layer):
                    for key, hessian in wave.items():
                        log.write(json.dumps([layer, key, hashlib.sha256(hessian.array.tobytes()).hexdigest()]) + "\n")
                    log.flush()
                calibration.finish(layer)
        calibration.close()

    def found(self) -> dict[str, str]:
        """Digests by request; the same each time that one was gathered."""
        found: dict[str, str] = {}
        for line in (self.folder / "log").read_text().splitlines():
            _, key, digest = json.loads(line)
            assert found.setdefault(key, digest) == digest, f"{key} is another the second time"
        return found

    def layers(self) -> list[int]:
        return [json.loads(line)[0] for line in (self.folder / "log").read_text().splitlines()]


@pytest.fixture(params=["float32", "bfloat16"])
def work(tmp_path: Path, request: pytest.FixtureRequest) -> Work:
    (tmp_path / "one").mkdir()
    for kernel in KERNELS:  # compiling would count among the calls that change the disk
        ready(kernel)
    return Work(kit.family(tmp_path, "llama"), tmp_path / "one", dtype=request.param)


def test_killed_before_any_call_that_changes_the_disk_it_goes_on(work: Work, tmp_path: Path) -> None:
    total = crash.count(work.run)
    wanted = work.found()
    assert len(wanted) == len(work.requests)
    for n in range(0, total, 1 if crash.EVERY else 4):
        shutil.rmtree(work.folder)
        work.folder.mkdir()
        assert crash.crashed(work.run, n)
        work.run()
        assert work.found() == wanted, f"killed before call {n}"


def test_killed_in_the_middle_of_a_layer_it_makes_that_layer_again_and_none_before(work: Work) -> None:
    work.run()
    wanted = work.found()
    shutil.rmtree(work.folder)
    work.folder.mkdir()
    calls = 0

    def kill() -> bool:
        nonlocal calls
        calls += 1
        if calls == 3:  # the text is embedded, one layer is done, and the next one has begun
            os.kill(os.getpid(), signal.SIGKILL)
        return False

    work.more = {"cancelled": kill}
    assert forked(work.run) == -signal.SIGKILL
    done = set(work.layers())
    work.more = {}
    (work.folder / "log").rename(work.folder / "first")
    work.run()
    assert done == {0} and set(work.layers()) == {1, 2}
    assert wanted.items() >= work.found().items()


@pytest.mark.parametrize("damage", ["flipped", "cut off", "longer"])
def test_states_that_are_damaged_are_not_gone_on_with(
    work: Work, tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    clean = Work(work.model, tmp_path / "clean", dtype=work.spec.dtype)
    clean.folder.mkdir()
    clean.run()
    calibration = kit.calibration(work.model, work.requests, work.folder / "states", work.spec)
    for layer in range(2):
        list(calibration.waves(layer))
        calibration.finish(layer)
    calibration.close()
    path = work.folder / "states" / "hidden-0002.bin"
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes({"flipped": data, "cut off": path.read_bytes()[:-1000], "longer": path.read_bytes() + b"x"}[damage])
    work.run()
    assert [r.getMessage() for r in caplog.records if r.levelname == "WARNING"] == [
        f"{path} is damaged: calibration starts over"
    ]
    assert work.layers()[0] == 0 and work.found() == clean.found()


def test_another_fingerprint_starts_anew(work: Work, tmp_path: Path) -> None:
    work.run()
    (work.folder / "log").unlink()
    work.spec = kit.spec_of(work.model, samples=5, seed=1)
    work.run()
    assert set(work.layers()) == {0, 1, 2}


def test_a_layer_before_may_be_asked_for_again(work: Work) -> None:
    work.run()
    wanted = work.found()
    calibration = kit.calibration(work.model, work.requests, work.folder / "states", work.spec)
    assert calibration.position == 2
    (wave,) = calibration.waves(1)
    assert {k: hashlib.sha256(h.array.tobytes()).hexdigest() for k, h in wave.items()}.items() <= wanted.items()
    calibration.close()


def test_the_folder_holds_one_layers_inputs_and_is_complete_or_not_there(work: Work) -> None:
    calibration = kit.calibration(work.model, work.requests, work.folder / "states", work.spec)
    waves = calibration.waves(0)
    next(waves)
    assert sorted(p.name for p in (work.folder / "states").iterdir()) == [
        ".hidden-0001.new", "fingerprint.json", "hidden-0000.bin",
    ]  # fmt: skip
    calibration.finish(0)
    element = 4 if work.spec.dtype == "float32" else 2
    assert sorted(p.name for p in (work.folder / "states").iterdir()) == ["fingerprint.json", "hidden-0001.bin"]
    assert (work.folder / "states" / "hidden-0001.bin").stat().st_size == 5 * 24 * 64 * element + 32
    calibration.close()


def test_the_quantized_stream_feeds_what_replaced_weights_give(work: Work, tmp_path: Path) -> None:
    """Rounded by hand in a copy of the model: its own activations are what the stream must see."""
    spec = kit.spec_of(work.model, samples=5, activations="quantized")
    quantized = kit.calibration(work.model, work.requests, work.folder / "q", spec)
    replaced = {name: rounded(work.model, name) for name in kit.linears(work.model)}
    found = {}
    for layer in range(quantized.layers):
        for wave in quantized.waves(layer):
            found |= wave
        quantized.finish(layer, {n: w for n, w in replaced.items() if f"layers.{layer}." in n})
    quantized.close()
    original = kit.gathered(kit.calibration(work.model, work.requests, work.folder / "o", kit.spec_of(work.model, samples=5)))
    copy = kit.rewritten(work.model, tmp_path / "copy", replaced)
    wanted = kit.gathered(kit.calibration(copy, work.requests, work.folder / "w", kit.spec_of(copy, samples=5)))
    first, last = "model.layers.0.self_attn.q_proj.weight:hessian", "model.layers.2.self_attn.q_proj.weight:hessian"
    np.testing.assert_array_equal(found[first].array, original[first].array)
    np.testing.assert_allclose(found[last].array, wanted[last].array, rtol=1e-4, atol=1e-4 * wanted[last].array.max())
    assert not np.allclose(found[last].array, original[last].array, rtol=1e-3)


def rounded(model: ModelInfo, name: str) -> np.ndarray:
    weights = kit.read(model, name)
    step = np.abs(weights).max() / 7
    return np.round(weights / step) * step


def forked(action: Callable[[], object]) -> int:
    """How a forked child that does it ends: its exit code, or minus the signal."""
    child = os.fork()
    if not child:
        try:
            action()
        finally:
            os._exit(0)
    status = os.waitpid(child, 0)[1]
    return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
