"""A worker that is stopped while it does what asks nobody whether to go on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from qconvd.executors.base import environment
from qconvd.tasks import EXIT_CANCELLED, LimitsSpec, write_spec
from worker_kit import Shop

NEVER_ENDING = """\
import sys, time
print("importing torch", flush=True)
while True:
    try:
        time.sleep(0.05)
    except Exception:  # as real ones do, so that an exception would not end it
        pass
"""
GPTQ = "gptq: {group_size: 32, calibration: {samples: 2, length: 64}}"


@pytest.mark.parametrize("kind", ["plan", "convert"])
def test_importing_torch_ends_with_the_signal(tmp_path: Path, glass: Path, kind: str) -> None:
    shop = Shop(tmp_path, glass, GPTQ)
    if kind == "convert":
        assert shop.step().ok
    (tmp_path / "slow" / "torch").mkdir(parents=True)
    (tmp_path / "slow" / "torch" / "__init__.py").write_text(NEVER_ENDING)
    env = environment("cpu", "", 1)
    env["PYTHONPATH"] = f"{tmp_path / 'slow'}:{env.get('PYTHONPATH', '')}"
    spec = shop.claim().model_copy(update={"limits": LimitsSpec(memory=1 << 30, threads=2)})
    assert spec.kind == kind
    command = [sys.executable, "-P", "-m", "qconvd.worker", str(write_spec(spec))]
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as worker:
        assert worker.stdout is not None
        try:
            assert any("importing torch" in line for line in worker.stdout)
            worker.terminate()
            assert worker.wait(60) == EXIT_CANCELLED
        finally:
            worker.kill()
    if kind == "convert":  # and the next one goes on
        assert shop.run(spec).returncode == 0
