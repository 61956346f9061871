"""Who may run, who waits, and what the wait is called."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from qconvd.devices import Devices, Gpu, Snapshot
from qconvd.ledger import Ledger, Outcome, Target, Task
from qconvd.scheduler import Disk, Hold, Policy, Start, choose, disk_of, next_tasks, policy_of

GIB = 1 << 30
MACHINE = Snapshot(cpus=16, memory_total=64 * GIB, memory_available=60 * GIB, no_gpu="the NVIDIA driver does not answer")
GPU_A, GPU_B = Gpu("GPU-a", "L4", 24 * GIB, 23 * GIB), Gpu("GPU-b", "H200", 140 * GIB, 139 * GIB)
POLICY = Policy(memory=32 * GIB, threads=16, jobs=2, disk_reserve=GIB, cuda_reserve=GIB)
PLENTY = Disk(1000 * GIB)


def task(
    id: int, kind: Any = "convert", *, memory: int = GIB, least: int = 0, disk: int = 0, gpu: int = 0, **more: Any
) -> Task:
    need = {"memory": memory, "least": least or memory, "disk": disk, "gpu_memory": gpu}
    fields = {"device": "cpu", "state": "queued", "placed": {}, "not_before": 0.0, "targets": (f"t{id}",)} | more
    return Task(
        id=id, kind=kind, source=1, reason="", attempt=1, fence=1, handle="", lease_until=0, need=need, created_at=0,
        changed_at=0, **fields,
    )  # fmt: skip


def running(id: int, kind: Any = "convert", *, on: str = "", memory: int = GIB, disk: int = 0) -> Task:
    placed = {"kind": "cuda" if on else "cpu", "id": on, "memory": memory, "threads": 8}
    return task(id, kind, memory=memory, disk=disk, state="running", placed=placed)


def target(id: str, *recipes: str, measured_on: tuple[str, ...] = ()) -> Target:
    return Target(
        id=id, source=1, format="f", options={}, spec_digest="", device="cuda", state="planned", reason="", error={},
        failures=0, not_before=0, version="", label="f", plan={"measured_on": list(measured_on)}, folder="", stem="",
        manifest_name="", artifact={}, created_at=0, changed_at=0, recipes=recipes,
    )  # fmt: skip


@dataclass
class Outlook:
    """What was decided, by task id."""

    starts: dict[int, Start]
    holds: dict[int, str]
    order: list[int]


def look(
    *tasks: Task, machine: Snapshot = MACHINE, policy: Policy = POLICY, disk: Disk = PLENTY, measured_on: tuple[str, ...] = ()
) -> Outlook:
    targets = {id: target(id, "fast", measured_on=measured_on) for t in tasks for id in t.targets}
    starts, holds = choose(tasks, targets, machine, policy, disk, now=100.0)
    assert {s.task.id for s in starts} | {h.task.id for h in holds} == {t.id for t in tasks if t.state == "queued"}
    return Outlook({s.task.id: s for s in starts}, {h.task.id: h.reason for h in holds}, [s.task.id for s in starts])


def test_plans_come_first_then_verifying_then_converting_the_oldest_first() -> None:
    policy = replace(POLICY, jobs=9)
    assert look(task(1), task(2), task(3, "verify"), task(4, "plan"), policy=policy).order == [4, 3, 1, 2]


def test_a_higher_priority_goes_first_within_its_kind() -> None:
    tasks = [task(1), task(2), task(3, "plan"), task(4), task(5, "plan")]
    targets = {id: target(id, "fast") for t in tasks for id in t.targets}
    policy = replace(POLICY, jobs=9)
    starts, holds = choose(tasks, targets, MACHINE, policy, PLENTY, now=100.0, priorities={4: 5, 1: -1, 5: 1})
    assert [s.task.id for s in starts] == [5, 4, 2, 1]
    assert [h.task.id for h in holds] == [3], "one plan at a time, the one of higher priority first"


def test_jobs_at_a_time() -> None:
    outlook = look(running(1), task(2), task(3), task(4, "plan"))
    assert set(outlook.starts) == {2, 4}, "a plan takes no slot"
    assert outlook.holds == {3: "waits for a free worker; 2 may run at a time"}
    assert (outlook.starts[2].threads, outlook.starts[4].threads) == (8, 8), "a plan is made for the threads of its conversion"


def test_models_are_planned_one_after_the_other() -> None:
    assert look(task(1, "plan"), task(2, "plan")).holds == {2: "waits until another model is planned"}
    assert look(running(1, "plan"), task(2, "plan")).holds == {2: "waits until another model is planned"}


def test_two_tasks_never_get_the_same_memory() -> None:
    outlook = look(running(1, memory=20 * GIB), task(2, memory=15 * GIB), policy=replace(POLICY, jobs=9))
    assert outlook.holds == {2: "waits for 15.00 GiB of memory that other tasks hold"}
    assert look(running(1, memory=17 * GIB), task(2, memory=15 * GIB)).starts[2].memory == 15 * GIB


def test_a_large_task_is_not_overtaken_for_ever() -> None:
    outlook = look(running(1, memory=20 * GIB), task(2, memory=15 * GIB), task(3, memory=GIB), policy=replace(POLICY, jobs=9))
    assert outlook.holds[3] == "waits for memory behind an earlier task"
    assert look(running(1, memory=20 * GIB), task(2, memory=15 * GIB), task(3, "plan")).order == [3], "a plan is cheap"


def test_a_task_takes_less_than_it_likes_where_the_limit_is_low_but_not_less_than_it_can() -> None:
    low = replace(POLICY, memory=2 * GIB)
    assert look(task(1, memory=5 * GIB, least=GIB), policy=low).starts[1].memory == 2 * GIB
    assert look(task(1, memory=5 * GIB, least=3 * GIB), policy=low).holds == {
        1: "needs 3.00 GiB of memory; limits.memory allows 2.00 GiB"
    }


def test_a_missing_gpu_makes_its_task_wait_and_nobody_else() -> None:
    outlook = look(task(1, device="cuda"), task(2))
    assert outlook.holds == {1: "recipe fast asks for a GPU (device: cuda); none is visible: the NVIDIA driver does not answer"}
    assert outlook.starts[2].kind == "cpu"


def test_a_gpu_that_is_there_is_used_by_one_task_at_a_time() -> None:
    machine = replace(MACHINE, gpus=(GPU_A, GPU_B), no_gpu="")
    outlook = look(task(1, device="cuda"), task(2, device="cuda"), task(3, device="cuda"), task(4), machine=machine)
    assert [(s.kind, s.device) for s in outlook.starts.values()] == [("cuda", "GPU-b"), ("cuda", "GPU-a"), ("cpu", "")]
    assert outlook.starts[1].placed == {"kind": "cuda", "id": "GPU-b", "memory": GIB, "threads": 8}
    assert outlook.holds == {3: "waits for a GPU; all are busy with other tasks"}
    outlook = look(running(1, on="GPU-b"), task(2, device="cuda"), machine=machine)
    assert outlook.starts[2].device == "GPU-a"


def test_gpu_memory_decides_which_gpu_and_whether_any() -> None:
    machine = replace(MACHINE, gpus=(GPU_A, GPU_B), no_gpu="")
    assert look(task(1, device="cuda", gpu=100 * GIB), machine=machine).starts[1].device == "GPU-b"
    small = replace(MACHINE, gpus=(GPU_A,), no_gpu="")
    (reason,) = look(task(1, device="cuda", gpu=24 * GIB), machine=small).holds.values()
    assert reason.startswith("recipe fast needs 24.00 GiB")
    assert reason.endswith("of GPU memory; no GPU that is visible has as much")
    full = replace(MACHINE, gpus=(replace(GPU_A, free=2 * GIB),), no_gpu="")
    outlook = look(task(1, device="cuda", gpu=4 * GIB), task(2, device="cuda"), machine=full)
    assert outlook.holds == {
        1: "waits for GPU memory that other programs hold",
        2: "waits for a GPU behind an earlier task",
    }


def test_auto_takes_a_gpu_if_one_is_there_that_its_kernels_were_measured_on_and_large_enough() -> None:
    assert look(task(1, device="auto"), measured_on=("L4",)).starts[1].kind == "cpu"
    machine = replace(MACHINE, gpus=(GPU_A, GPU_B), no_gpu="")
    assert look(task(1, device="auto"), machine=machine, measured_on=("L4",)).starts[1].device == "GPU-a"
    assert look(task(1, device="auto", gpu=100 * GIB), machine=machine, measured_on=("L4",)).starts[1].kind == "cpu"
    for never in ((), ("A100",)):
        assert look(task(1, device="auto"), machine=machine, measured_on=never).starts[1].kind == "cpu"
        assert look(task(1, device="cuda"), machine=machine, measured_on=never).starts[1].device == "GPU-b"
    busy = look(running(1, on="GPU-a"), task(2, device="auto"), machine=machine, measured_on=("L4",))
    assert busy.holds == {2: "waits for a GPU; all are busy with other tasks"}


def test_auto_takes_a_gpu_only_if_all_targets_of_the_task_were_measured_on_it() -> None:
    machine = replace(MACHINE, gpus=(GPU_A, GPU_B), no_gpu="")
    both = task(1, device="auto", targets=("a", "b"))
    for first, second, expected in ((("L4", "H200"), ("L4",), "GPU-a"), (("L4",), ("H200",), "")):
        targets = {"a": target("a", measured_on=first), "b": target("b", measured_on=second)}
        (start,), _ = choose([both], targets, machine, POLICY, PLENTY, now=100.0)
        assert start.device == expected


def test_the_cpu_may_be_forbidden() -> None:
    outlook = look(task(1), task(2, "plan"), task(3, "verify"), policy=replace(POLICY, cpu=False))
    assert outlook.holds == {1: "the configuration says `devices: {cpu: false}`, and this needs the CPU"}
    assert set(outlook.starts) == {2, 3}


def test_the_disk_is_shared_out_too() -> None:
    outlook = look(task(1, disk=6 * GIB), task(2, disk=6 * GIB), disk=Disk(10 * GIB))
    assert set(outlook.starts) == {1}
    assert "of disk for its artifacts; the output's disk does not have as much free beside the" in outlook.holds[2]
    assert outlook.holds[2].endswith("of limits.disk_reserve and what running tasks need")
    outlook = look(task(1, disk=6 * GIB), task(2, disk=GIB), disk=Disk(6 * GIB))
    assert set(outlook.starts) == {2}, "what fits may go first: the disk does not get larger by waiting"
    assert look(running(1, disk=6 * GIB), task(2, disk=6 * GIB), disk=Disk(10 * GIB)).starts == {}


def test_what_a_resumed_conversion_has_reserved_is_not_asked_for_again() -> None:
    held = Disk(2 * GIB, {"t1": 8 * GIB})
    assert set(look(task(1, disk=9 * GIB), disk=held).starts) == {1}
    assert set(look(running(1, disk=9 * GIB), task(2, disk=GIB), disk=replace(held, free=4 * GIB)).starts) == {2}


def test_verifying_writes_nothing_and_goes_on_when_the_disk_is_full() -> None:
    assert set(look(task(1, "verify"), task(2, "plan"), disk=Disk(0)).starts) == {1, 2}


def test_who_backs_off_keeps_the_reason_for_it() -> None:
    outlook = look(task(1, not_before=100.5), task(2, not_before=99.5))
    assert outlook.holds == {1: ""}
    assert set(outlook.starts) == {2}


def test_what_the_configuration_leaves_open() -> None:
    limits = SimpleNamespace(memory=None, threads=None, jobs=None, disk_reserve=5)
    devices = SimpleNamespace(cpu=True, cuda_reserve=7)
    assert policy_of(limits, devices, MACHINE) == Policy(32 * GIB, 16, 2, 5, True, 7)
    small = replace(MACHINE, cpus=2)
    assert policy_of(limits, devices, small).jobs == 1
    given = SimpleNamespace(memory=GIB, threads=3, jobs=6, disk_reserve=0)
    policy = policy_of(given, devices, MACHINE)
    assert (policy.memory, policy.threads, policy.jobs, policy.threads_per_job) == (GIB, 3, 6, 1)


def test_disk_of_counts_what_lies_in_the_work_folders(tmp_path: Path) -> None:
    output = tmp_path / "out" / "deeper"
    assert disk_of(output, ["a"]).held == {"a": 0}
    assert disk_of(output, []).free > 0
    files = output / ".qconvd" / "work" / "a" / "files"
    files.mkdir(parents=True)
    (files / "x").write_bytes(b"x" * 100_000)
    with (files / "hole").open("wb") as file:
        file.truncate(1 << 30)
    assert 100_000 <= disk_of(output, ["a", "b"]).held["a"] < 200_000
    assert disk_of(output, ["b"]).held == {"b": 0}


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    ledger = Ledger(tmp_path / "state" / "ledger.sqlite")
    yield ledger
    ledger.close()


def test_the_reason_for_waiting_is_written_to_the_ledger(ledger: Ledger, tmp_path: Path) -> None:
    names = SimpleNamespace(folder="m-f", stem="model", manifest="qconvd.json")
    wish = SimpleNamespace(format="f", version="1", label="f", options={"device": "cuda"}, names=lambda *_: names)
    source = ledger.source_seen("/m", "sha256:a", "m", "p")
    (id,) = ledger.want(source.id, "fast", [wish])
    limits = SimpleNamespace(memory=GIB, threads=2, jobs=1, disk_reserve=0)
    settings = SimpleNamespace(cpu=True, cuda_reserve=0)
    (start,) = next_tasks(ledger, Devices("none"), limits, settings, tmp_path)
    plan = ledger.claim(start.task.id, start.placed)
    assert next_tasks(ledger, Devices("none"), limits, settings, tmp_path) == []
    ledger.finish(plan.id, plan.fence, {id: Outcome(True, data={"nbytes": 5})})
    assert next_tasks(ledger, Devices("none"), limits, settings, tmp_path) == []
    assert ledger.target(id).state == "planned"
    assert ledger.target(id).reason == (
        "recipe fast asks for a GPU (device: cuda); none is visible: the configuration says `cuda: none`"
    )
    assert ledger.jobs()[0].state == "waiting"


def test_a_hold_names_its_task() -> None:
    _, holds = choose([task(1, not_before=1e9)], {}, MACHINE, POLICY, PLENTY, now=0)
    assert holds == [Hold(task(1, not_before=1e9), "")]


def test_the_control_side_is_light() -> None:
    code = (
        "import sys, qconvd.scheduler, qconvd.tasks, qconvd.devices, qconvd.executors.local;"
        "print(*sorted({m.partition('.')[0] for m in sys.modules}))"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"numpy", "torch", "numba", "transformers", "tokenizers", "gguf", "safetensors", "pynvml"} & set(loaded)


def test_publishing_has_slots_of_its_own_and_takes_nothing_from_a_conversion() -> None:
    everything = POLICY.memory
    outlook = look(
        running(1, memory=everything), running(2), task(3, "publish"), task(4, "publish"), task(5, "publish"), task(6)
    )
    assert set(outlook.starts) == {3, 4}, "no worker and no memory is free, and still it goes on"
    assert outlook.starts[3].threads == 1
    assert outlook.holds == {
        5: "waits until something else is published; 2 are at a time", 6: "waits for a free worker; 2 may run at a time"
    }  # fmt: skip
    assert set(look(running(3, "publish"), running(4, "publish"), task(6, memory=everything)).starts) == {6}


def fetch(id: int, nbytes: int, **more: Any) -> Task:
    made = task(id, "fetch", memory=GIB // 2, **more)
    return replace(made, need={**made.need, "cache": nbytes})


def test_fetching_goes_on_beside_conversions_that_hold_everything() -> None:
    outlook = look(running(1, memory=32 * GIB), running(2), fetch(3, 10 * GIB), task(4))
    assert set(outlook.starts) == {3} and outlook.holds == {4: "waits for a free worker; 2 may run at a time"}


def test_models_are_fetched_as_many_at_a_time_as_the_config_says() -> None:
    one = look(fetch(1, GIB, state="running", placed={"kind": "cpu"}), fetch(2, GIB), task(3))
    assert one.holds == {2: "waits until another model is fetched; 1 at a time (hub.fetches)"} and set(one.starts) == {3}
    assert set(look(fetch(1, GIB), fetch(2, GIB), policy=replace(POLICY, fetches=2)).starts) == {1, 2}


def test_what_does_not_fit_is_not_fetched() -> None:
    small = Disk(20 * GIB)
    assert look(fetch(1, 25 * GIB), disk=small).holds == {
        1: "needs 25.00 GiB of disk to be fetched; the Hub cache's disk does not have as much free"
    }
    together = look(fetch(1, 15 * GIB), task(2, disk=10 * GIB), disk=small)
    assert set(together.starts) == {1}, "both would be on one disk"
    apart = look(fetch(1, 25 * GIB), task(2, disk=10 * GIB), disk=Disk(20 * GIB, cache=30 * GIB))
    assert set(apart.starts) == {1, 2}
