"""A ledger and tasks, and the worker that does them as a process."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

from qconvd import checkpoints
from qconvd.executors.base import environment
from qconvd.ledger import Ledger, Task
from qconvd.targets import resolve_list
from qconvd.tasks import EXIT_ERROR, DeviceSpec, LimitsSpec, TaskResult, TaskSpec, read_result, settle, spec_of, write_spec

LIMITS = LimitsSpec(memory=512 << 20, threads=2)


class Shop:
    """A ledger, a copy of a model, and tasks that are run one by one, each in a process."""

    def __init__(self, folder: Path, model: Path, targets: str) -> None:
        self.state, self.output, self.model = folder / "state", folder / "out", folder / "inbox" / "glass"
        self.model.parent.mkdir(parents=True)
        shutil.copytree(model, self.model)
        self.ledger = Ledger(self.state / "ledger.sqlite")
        info = checkpoints.inspect(self.model)
        self.source = self.ledger.source_seen(str(self.model), checkpoints.identity(info), info.name, "p")
        self.targets = self.ledger.want(self.source.id, "everyday", resolve_list(targets))

    def claim(self) -> TaskSpec:
        self.ledger.make_tasks()
        self.task = self.ledger.claim(self.ledger.tasks("queued")[0].id)
        return self.spec(self.task)

    def spec(self, task: Task, device: DeviceSpec | None = None) -> TaskSpec:
        return spec_of(
            task, self.source, [self.ledger.target(t) for t in task.targets], output=self.output, state=self.state,
            limits=LIMITS, device=device or DeviceSpec(), laid=self.ledger.laid,
        )  # fmt: skip

    def run(self, spec: TaskSpec, *wrapper: str) -> subprocess.CompletedProcess[bytes]:
        command = [*wrapper, sys.executable, "-P", "-m", "qconvd.worker", str(write_spec(spec))]
        return subprocess.run(command, capture_output=True, env=environment("cpu", "", 2), check=False)

    def step(self) -> TaskResult:
        """One task from claim to settle."""
        spec = self.claim()
        done = self.run(spec)
        result = read_result(spec.folder)
        assert result is not None, done.stderr.decode()
        assert done.returncode == (0 if result.ok else EXIT_ERROR), done.stderr.decode()
        self.settle(result, done.returncode)
        return result

    def settle(self, result: TaskResult | None, code: int) -> None:
        from qconvd.executors.base import Status

        settle(self.ledger, self.task, Status("succeeded" if code == 0 else "failed", code), result, time.time())

    def work(self, target: str) -> Path:
        return self.output / ".qconvd" / "work" / target
