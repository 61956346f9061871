"""How much memory a worker may take, and what is reserved for it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from qconvd import checkpoints
from qconvd.engine.working_memory import working_memory
from qconvd.memory_limit import ceiling
from qconvd.targets import resolve_list
from qconvd.tasks import EXIT_ERROR, DeviceSpec, read_result, write_spec
from worker_kit import LIMITS, Shop


def test_a_plan_may_not_eat_the_machine(shop: Shop) -> None:
    spec = shop.claim()
    code = (
        "import sys, qconvd.worker as worker, qconvd.checkpoints as checkpoints\n"
        "if sys.argv.pop(1) == 'model': checkpoints.inspect = lambda path: bytearray(5 << 30)\n"
        "else: worker._planned = lambda *a: bytearray(5 << 30)\n"
        "sys.exit(worker.main(sys.argv))"
    )
    path = str(write_spec(spec))
    for where in ("model", "target"):
        done = subprocess.run([sys.executable, "-c", code, where, path], capture_output=True, check=False)
        assert done.returncode == EXIT_ERROR, done.stderr.decode()
        result = read_result(spec.folder)
        assert result is not None
        error = result.error if where == "model" else result.targets[shop.targets[0]].error
        assert error["what"] == "planning needs more than the 4.00 GiB of memory that it may take"


HOARD = """
import qconvd_fp16.format as format
HELD = []
def hoard(*_):
    while len(HELD) < 200:
        HELD.append(bytearray(64 << 20))
    raise AssertionError("nobody stopped it")
class Hoarder:
    encode = hoard
if {kind!r} == "convert":
    format.PlainCast.encoder = lambda self, plan, device: Hoarder()
else:
    format.PlainCast.decode = hoard
"""


@pytest.mark.parametrize(("kind", "doing"), [("convert", "converting"), ("verify", "verifying")])
def test_a_worker_that_runs_away_is_stopped_and_says_so(
    tmp_path: Path, shop: Shop, monkeypatch: pytest.MonkeyPatch, kind: str, doing: str
) -> None:
    """A format that takes 12 GiB: what it does not touch costs this machine nothing."""
    while (spec := shop.claim()).kind != kind:
        done = shop.run(spec)
        shop.settle(read_result(spec.folder), done.returncode)
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(HOARD.format(kind=kind))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "site"), *filter(None, [os.environ.get("PYTHONPATH")])]))
    done = shop.run(spec)
    assert done.returncode == EXIT_ERROR, done.stderr.decode()
    result = read_result(spec.folder)
    assert result is not None
    (target,) = result.targets.values()
    assert target.error["what"] == (
        f"{doing} needs more memory than limits.memory allows: 512.0 MiB were reserved, and even 2.28 GiB were not enough"
    )
    assert target.error["fix"] == (
        "raise limits.memory (--memory); if the plan reserves no more then, its format is wrong about what it needs"
    )
    assert not target.retry
    assert b"MemoryError" in done.stderr, "the log has the traceback"


def test_the_ceiling_is_no_hindrance_and_a_gpu_has_none(shop: Shop) -> None:
    spec = shop.claim()
    assert ceiling(spec) == 4 << 30
    convert = spec.model_copy(update={"kind": "convert"})
    assert ceiling(convert) == (2 * 512 + 1024 + 128 + 8 * (2 * 2 + 16)) << 20
    assert ceiling(convert.model_copy(update={"device": DeviceSpec(kind="cuda", id="GPU-1")})) is None


def test_plan_tells_the_memory_that_the_scheduler_reserves(tmp_path: Path, glass: Path) -> None:
    from qconvd.preview import preview
    from qconvd.scheduler import Policy

    shop = Shop(tmp_path, glass, "fp16,q4_0")
    assert shop.step().ok
    shop.ledger.make_tasks()
    (task,) = shop.ledger.tasks("queued")
    policy = Policy(memory=LIMITS.memory, threads=LIMITS.threads, jobs=1)
    shown = [preview(checkpoints.inspect(shop.model), target, policy).memory for target in resolve_list("fp16,q4_0")]
    assert max(shown) == task.need["memory"]
    shop.ledger.close()


def test_memory_is_predicted_from_pieces_not_from_tensors() -> None:
    from qconvd.api import ContainerSpec, FileSpec, NameParts, OutputTensor, Plan, Read, RowSplit, Unit, Whole

    def plan(rows: Any, memory: dict[str, int]) -> Plan:
        x = Read("w", "BF16", (8192, 8192))
        unit = Unit("w", 0, (x,), (OutputTensor("w", "F16", (8192, 8192), 2 << 26),), rows, memory=memory)
        files = (FileSpec("{stem}.safetensors", 9, ()),)
        return Plan(ContainerSpec("safetensors"), files, (unit,), NameParts("fp16", "fp16"))

    rows, whole = plan(RowSplit(), {"cpu": 0}), plan(Whole(), {"cpu": 0, "cuda": 5})
    assert working_memory(rows, 1)["cpu"] == working_memory(rows, 1)["least"] == 64 << 20
    assert working_memory(rows, 15)["cpu"] == (16 << 20) * 16 * 8 // 7
    assert working_memory(rows, 15)["cuda"] == 0
    assert working_memory(whole, 1)["least"] == (6 << 26) * 2 * 8 // 7
    assert working_memory(whole, 1)["cuda"] == (6 << 26) + 5


def test_what_is_freed_is_kept_for_the_next_array_of_its_size() -> None:
    script = """
import resource, sys, threading
import numpy as np
from qconvd.memory_limit import keep_freed_arrays, keep_freed_memory
how, size = sys.argv[1], int(sys.argv[2])
{"all": keep_freed_memory, "arrays": keep_freed_arrays, "nothing": int}[how]()
def use():
    for _ in range(10):
        [np.ones(size, np.uint8) for _ in range(4)]
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
thread = threading.Thread(target=use)
thread.start() if sys.argv[3] == "thread" else use()
thread.join() if sys.argv[3] == "thread" else None
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""

    def faults(how: str, size: int, where: str = "here") -> int:
        command = [sys.executable, "-c", script, how, str(size), where]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    assert faults("all", 40 << 20) < faults("nothing", 40 << 20) / 5
    assert faults("arrays", 31 << 20) < faults("nothing", 31 << 20) / 5
    assert faults("arrays", 8 << 20, "thread") < faults("nothing", 8 << 20, "thread") / 5
    assert faults("arrays", 40 << 20) > faults("all", 40 << 20) * 5, "large ones go back"
