"""Which queued task may run now, where, and why the others may not yet.

`choose` is a pure function of the tasks, the machine and the limits. Plans come first (they are cheap, and the rest waits for
them), then fetching and publishing (they wait for the network, so they go on beside whatever converts and take nothing from
it), then verifying (it ends something), then converting; within a kind the highest
priority first, then the oldest. A task that waits for what others hold
is not overtaken by a later one that needs the same, so a large one gets its turn.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Literal, Protocol

from qconvd.checkpoints.files import is_folder
from qconvd.devices import Devices, Gpu, Snapshot
from qconvd.ledger import PENDING, Ledger, Target, Task
from qconvd.quantities import show_size

PLANS = 1
"""Plan tasks at a time; they take no slot from the others."""
THREADS_PER_JOB = 8
"""A conversion makes good use of about this many threads; with more cores, more run at a time."""
PUBLISHES = 2
"""Publish tasks at a time; the Hub's client sends several files at once in each."""
ORDER = {"plan": 0, "fetch": 1, "publish": 2, "verify": 3, "convert": 4}


class LimitSettings(Protocol):
    """`limits` of the configuration."""

    @property
    def memory(self) -> int | None: ...
    @property
    def threads(self) -> int | None: ...
    @property
    def jobs(self) -> int | None: ...
    @property
    def disk_reserve(self) -> int: ...


class DeviceSettings(Protocol):
    """`devices` of the configuration."""

    @property
    def cpu(self) -> bool: ...
    @property
    def cuda_reserve(self) -> int: ...


@dataclass(frozen=True)
class Policy:
    """What may be used, in bytes and counts, with nothing left open."""

    memory: int
    threads: int
    jobs: int
    disk_reserve: int = 0
    cpu: bool = True
    cuda_reserve: int = 0
    fetches: int = 1

    @property
    def threads_per_job(self) -> int:
        return max(1, self.threads // self.jobs)


@dataclass(frozen=True)
class Disk:
    """Free bytes of the output's filesystem, and what each target has taken of it already."""

    free: int
    held: Mapping[str, int] = field(default_factory=dict)
    cache: int | None = None
    """Free bytes where fetched models go, if that is another filesystem than the output's."""


@dataclass(frozen=True)
class Start:
    """A task to start now, with what it gets."""

    task: Task
    kind: Literal["cpu", "cuda"]
    device: str
    """A GPU's UUID, or empty."""
    memory: int
    threads: int

    @property
    def placed(self) -> dict[str, str | int]:
        """What `Ledger.claim` keeps, so that `choose` knows later what is taken."""
        return {"kind": self.kind, "id": self.device, "memory": self.memory, "threads": self.threads}


@dataclass(frozen=True)
class Hold:
    """A task that has to wait, and why. The reason holds no number that changes by the second."""

    task: Task
    reason: str


def next_tasks(
    ledger: Ledger,
    devices: Devices,
    limits: LimitSettings,
    settings: DeviceSettings,
    output: Path,
    now: float | None = None,
    *,
    cache: Path | None = None,
    fetches: int = 1,
    paused: str = "",
) -> list[Start]:
    """Make the tasks that are due, and say which to start now. Those that must wait get their reason written down.

    While it is `paused`, which is the reason then, none is started.
    """
    ledger.make_tasks()
    tasks = ledger.tasks("queued", "running")
    if not any(t.state == "queued" for t in tasks):
        return []
    if paused:
        due = (t for t in tasks if t.state == "queued" and t.not_before <= (time.time() if now is None else now))
        _explain(ledger, [Hold(task, paused) for task in due])
        return []
    snapshot = devices.snapshot()
    targets = {t.id: t for t in ledger.targets(*PENDING)}
    disk = disk_of(output, [id for t in tasks if t.kind == "convert" for id in t.targets], cache)
    starts, holds = choose(
        tasks, targets, snapshot, policy_of(limits, settings, snapshot, fetches), disk, time.time() if now is None else now,
        ledger.priorities(),
    )  # fmt: skip
    _explain(ledger, holds)
    return starts


def _explain(ledger: Ledger, holds: Iterable[Hold]) -> None:
    """Write down why tasks wait: in one step, for there may be a thousand."""
    told = [hold for hold in holds if hold.reason]
    if not told:
        return
    with ledger.transaction():
        for hold in told:
            ledger.explain(hold.task.id, hold.reason)


def choose(
    tasks: Sequence[Task],
    targets: Mapping[str, Target],
    snapshot: Snapshot,
    policy: Policy,
    disk: Disk,
    now: float,
    priorities: Mapping[int, int] = MappingProxyType({}),
) -> tuple[list[Start], list[Hold]]:
    """Decide about every queued task. `tasks` holds the running ones too; `priorities` are by task, 0 for those not named."""
    room = _Room(snapshot, policy, disk)
    for task in tasks:
        if task.state == "running":
            room.take(task)
    starts, holds = [], []
    queued = (t for t in tasks if t.state == "queued")
    for task in sorted(queued, key=lambda t: (ORDER[t.kind], -priorities.get(t.id, 0), t.id)):
        if task.not_before > now:
            # Its reason says what went wrong; that is worth more than "it waits".
            holds.append(Hold(task, ""))
            continue
        placed = room.place(task, targets)
        if isinstance(placed, str):
            holds.append(Hold(task, placed))
        else:
            starts.append(placed)
    return starts, holds


def policy_of(limits: LimitSettings, settings: DeviceSettings, snapshot: Snapshot, fetches: int = 1) -> Policy:
    """Fill in what the configuration leaves open: half of the memory, every core, a job per eight threads."""
    threads = limits.threads or snapshot.cpus
    return Policy(
        memory=limits.memory or snapshot.memory_total // 2,
        threads=threads,
        jobs=limits.jobs or max(1, threads // THREADS_PER_JOB),
        disk_reserve=limits.disk_reserve,
        cpu=settings.cpu,
        cuda_reserve=settings.cuda_reserve,
        fetches=fetches,
    )


def disk_of(output: Path, targets: Iterable[str], cache: Path | None = None) -> Disk:
    """The output's filesystem as it is now, and that of the Hub cache. One that is not there lies where its parent does."""
    free, device = free_space(output)
    other = free_space(cache) if cache is not None else (free, device)
    held = {t: _allocated(output / ".qconvd" / "work" / t) for t in targets}
    return Disk(free, held, other[0] if other[1] != device else None)


def free_space(folder: Path) -> tuple[int, int]:
    """Free bytes of a folder's filesystem, and which that is. A folder that is not there lies where its parent does."""
    there = next((p for p in (folder, *folder.parents) if is_folder(p)), Path("/"))
    status = os.statvfs(there)
    return status.f_bavail * status.f_frsize, there.stat().st_dev


class _Room:
    """What is left while tasks are placed one after the other."""

    def __init__(self, snapshot: Snapshot, policy: Policy, disk: Disk) -> None:
        self._snapshot = snapshot
        self._policy = policy
        self._disk = disk
        self._memory = policy.memory
        self._own = {"plan": PLANS, "fetch": policy.fetches, "publish": PUBLISHES}
        """Slots that are nobody else's."""
        self._jobs = policy.jobs
        self._free = disk.free - policy.disk_reserve
        self._cache = None if disk.cache is None else disk.cache - policy.disk_reserve
        self._gpus = {g.uuid: g for g in snapshot.gpus}
        self._busy: set[str] = set()
        self._queued_for: set[str] = set()
        """What an earlier task waits for: `memory`, `jobs`, `gpu`."""

    def take(self, task: Task) -> None:
        """A running task keeps what it has. What a fetch has still to write is asked of the disk itself, not reckoned here."""
        if task.kind in ("fetch", "publish"):
            self._own[task.kind] -= 1
            return
        self._memory -= int(task.placed.get("memory", task.need.get("memory", 0)))
        self._free -= self._missing(task)
        if task.kind == "plan":
            self._own["plan"] -= 1
        elif task.placed.get("kind") == "cuda":
            self._busy.add(str(task.placed.get("id", "")))
        else:
            self._jobs -= 1

    def place(self, task: Task, targets: Mapping[str, Target]) -> Start | str:
        """Give the task what it needs, or say why not."""
        gpu: Gpu | None = None
        if task.kind == "fetch":
            return self._fetch(task)
        if task.kind == "publish":
            return self._publish(task)
        if task.kind == "convert":
            where = self._device(task, targets)
            if isinstance(where, str):
                return where
            gpu = where[0]
        if reason := self._slot(task, gpu):
            return reason
        memory = self._memory_for(task)
        if isinstance(memory, str):
            return memory
        if reason := self._no_disk(task):
            return reason
        self._memory -= memory
        self._free -= self._missing(task)
        if task.kind == "plan":
            self._own["plan"] -= 1
        elif gpu:
            self._busy.add(gpu.uuid)
        else:
            self._jobs -= 1
        # A plan says what its conversion needs with the threads that this will get.
        threads = 1 if task.kind == "verify" else self._policy.threads_per_job
        return Start(task, "cuda" if gpu else "cpu", gpu.uuid if gpu else "", memory, threads)

    def _publish(self, task: Task) -> Start | str:
        """As of a fetch, its memory counts for nobody."""
        if self._own["publish"] <= 0:
            return f"waits until something else is published; {PUBLISHES} are at a time"
        self._own["publish"] -= 1
        return Start(task, "cpu", "", task.need.get("memory", 0), 1)

    def _fetch(self, task: Task) -> Start | str:
        """Its memory is small and counts for nobody: a large conversion may hold all there is, and the next model comes."""
        if self._own["fetch"] <= 0:
            return f"waits until another model is fetched; {self._policy.fetches} at a time (hub.fetches)"
        need = task.need.get("cache", 0)
        if need > max(0, self._free if self._cache is None else self._cache):
            return f"needs {show_size(need)} of disk to be fetched; the Hub cache's disk does not have as much free"
        self._own["fetch"] -= 1
        if self._cache is None:
            self._free -= need
        else:
            self._cache -= need
        return Start(task, "cpu", "", task.need.get("memory", 0), 1)

    def _device(self, task: Task, targets: Mapping[str, Target]) -> tuple[Gpu | None] | str:
        """A GPU that is free and large enough, none for the CPU, or why neither."""
        gpus = [g for g in self._gpus.values() if task.device == "cuda" or _measured(g, task, targets)]
        if task.device == "cpu" or (task.device == "auto" and not gpus):
            return (None,) if self._policy.cpu else "the configuration says `devices: {cpu: false}`, and this needs the CPU"
        who = _who(task, targets)
        if not gpus:
            return f"{who} asks for a GPU (device: cuda); none is visible: {self._snapshot.no_gpu}"
        need = task.need.get("gpu_memory", 0)
        large = [g for g in gpus if g.total - self._policy.cuda_reserve >= need]
        if not large:
            if task.device == "auto" and self._policy.cpu:
                return (None,)
            return f"{who} needs {show_size(need)} of GPU memory; no GPU that is visible has as much"
        if "gpu" in self._queued_for:
            return "waits for a GPU behind an earlier task"
        free = [g for g in large if g.uuid not in self._busy and g.free - self._policy.cuda_reserve >= need]
        if not free:
            self._queued_for.add("gpu")
            others = [g for g in large if g.uuid not in self._busy]
            return (
                "waits for GPU memory that other programs hold" if others else "waits for a GPU; all are busy with other tasks"
            )
        return (max(free, key=lambda g: g.free),)

    def _slot(self, task: Task, gpu: Gpu | None) -> str:
        if task.kind == "plan":
            return "" if self._own["plan"] > 0 else "waits until another model is planned"
        if gpu is None and (self._jobs <= 0 or "jobs" in self._queued_for):
            self._queued_for.add("jobs")
            return f"waits for a free worker; {self._policy.jobs} may run at a time"
        return ""

    def _memory_for(self, task: Task) -> int | str:
        """Bytes for the task: what it asks for, and where the limit is lower than that, the limit."""
        wanted = task.need.get("memory", 0)
        least = task.need.get("least", wanted)
        if least > self._policy.memory:
            return f"needs {show_size(least)} of memory; limits.memory allows {show_size(self._policy.memory)}"
        wanted = min(wanted, self._policy.memory)
        if "memory" in self._queued_for and task.kind != "plan":
            return "waits for memory behind an earlier task"
        if wanted > self._memory:
            self._queued_for.add("memory")
            return f"waits for {show_size(wanted)} of memory that other tasks hold"
        return wanted

    def _no_disk(self, task: Task) -> str:
        missing = self._missing(task)
        if missing <= max(0, self._free) or not missing:
            return ""
        reserve = self._policy.disk_reserve
        return (
            f"needs {show_size(missing)} of disk for its artifacts; the output's disk does not have as much free"
            + (f" beside the {show_size(reserve)} of limits.disk_reserve" if reserve else "")
            + (" and what running tasks need" if self._free < self._disk.free - reserve else "")
        )

    def _missing(self, task: Task) -> int:
        """Bytes that a conversion has still to write: a resumed one has reserved its part already."""
        if task.kind != "convert":
            return 0
        return max(0, task.need.get("disk", 0) - sum(self._disk.held.get(t, 0) for t in task.targets))


def _measured(gpu: Gpu, task: Task, targets: Mapping[str, Target]) -> bool:
    """Whether `device: auto` may choose this GPU: all that the task needs was measured on one like it."""
    return all(id in targets and gpu.name in targets[id].plan.get("measured_on", ()) for id in task.targets)


def _who(task: Task, targets: Mapping[str, Target]) -> str:
    recipes = sorted({r for id in task.targets if id in targets for r in targets[id].recipes})
    return f"recipe {recipes[0]}" if len(recipes) == 1 else f"recipes {', '.join(recipes)}" if recipes else "the target"


def _allocated(folder: Path) -> int:
    """Bytes on disk below a folder; 0 if it is not there."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                total += (Path(place) / name).lstat().st_blocks * 512
            except OSError:
                continue
    return total
