"""What the machine has: against files that look like other machines' /proc and /sys, and a driver that is made up."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from qconvd.devices import Devices, Gpu

GIB = 1 << 30


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A machine of 64 GiB, 40 of them available, whose process is in the cgroup /system.slice/qconvd.service."""
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "meminfo").write_text(f"MemTotal: {64 << 20} kB\nMemFree: 1 kB\nMemAvailable: {40 << 20} kB\nEmpty:\n")
    (tmp_path / "proc" / "self" / "cgroup").write_text("0::/system.slice/qconvd.service\n")
    (tmp_path / "cgroup" / "system.slice" / "qconvd.service").mkdir(parents=True)
    return tmp_path


def _write(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text + "\n")


def _devices(machine: Path, cuda: str | tuple[str, ...] = "none", nvml: object = None) -> Devices:
    return Devices(cuda, proc=machine / "proc", cgroup=machine / "cgroup", nvml=nvml)


def test_a_machine_without_limits(machine: Path) -> None:
    snapshot = _devices(machine).snapshot()
    assert (snapshot.memory_total, snapshot.memory_available) == (64 * GIB, 40 * GIB)
    assert snapshot.cpus == len(os.sched_getaffinity(0))


def test_cgroup_2_limits_count_and_page_cache_is_available(machine: Path) -> None:
    own = machine / "cgroup" / "system.slice" / "qconvd.service"
    _write(own, memory__max=str(8 * GIB), memory__current=str(7 * GIB), memory__stat=f"anon 5\ninactive_file {3 * GIB}")
    _write(own, cpu__max="100000 100000")
    _write(own.parent, memory__max=str(32 * GIB), memory__current=str(30 * GIB), memory__stat="", cpu__max="max 100000")
    snapshot = _devices(machine).snapshot()
    assert (snapshot.memory_total, snapshot.memory_available) == (8 * GIB, 2 * GIB), "the parent has only 2 GiB left"
    assert snapshot.cpus == 1


def test_cgroup_1_limits_count_where_only_the_containers_root_is_visible(machine: Path) -> None:
    (machine / "proc" / "self" / "cgroup").write_text("5:cpu,cpuacct:/docker/1f\n4:memory:/docker/1f\n0::/docker/1f\n")
    _write(machine / "cgroup" / "memory", memory__limit_in_bytes=str(4 * GIB), memory__usage_in_bytes=str(GIB))
    _write(machine / "cgroup" / "memory", memory__stat=f"total_inactive_file {GIB // 2}\ninactive_file 7")
    _write(machine / "cgroup" / "cpu", cpu__cfs_quota_us="50000", cpu__cfs_period_us="100000")
    snapshot = _devices(machine).snapshot()
    assert (snapshot.memory_total, snapshot.memory_available) == (4 * GIB, int(3.5 * GIB))
    assert snapshot.cpus == 1


def test_no_limit_in_cgroup_1_is_a_huge_number(machine: Path) -> None:
    (machine / "proc" / "self" / "cgroup").write_text("4:memory:/\n5:cpu:/\n")
    _write(machine / "cgroup" / "memory", memory__limit_in_bytes="9223372036854771712", memory__usage_in_bytes="5")
    _write(machine / "cgroup" / "cpu", cpu__cfs_quota_us="-1", cpu__cfs_period_us="100000")
    snapshot = _devices(machine).snapshot()
    assert snapshot.memory_total == 64 * GIB
    assert snapshot.cpus == len(os.sched_getaffinity(0))


class NVMLError(Exception):
    pass


class NVMLErrorLibraryNotFound(NVMLError):
    pass


class Driver:
    """NVML as nvidia-ml-py presents it. A GPU is (uuid, name, total, free, slices)."""

    NVMLError = NVMLError
    NVMLError_LibraryNotFound = NVMLErrorLibraryNotFound

    def __init__(self, *gpus: tuple[str, str | bytes, int, int, list[object]], broken: NVMLError | None = None) -> None:
        self._gpus, self._broken = gpus, broken
        self.open = 0

    def nvmlInit(self) -> None:
        if self._broken:
            raise self._broken
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlDeviceGetCount(self) -> int:
        return len(self._gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> object:
        return self._gpus[index]

    def nvmlDeviceGetUUID(self, gpu: tuple[str, ...]) -> str:
        return gpu[0]

    def nvmlDeviceGetName(self, gpu: tuple[str, ...]) -> str:
        return gpu[1]

    def nvmlDeviceGetMemoryInfo(self, gpu: tuple[int, ...]) -> object:
        if gpu[2] < 0:
            raise NVMLError("GPU is lost")
        return SimpleNamespace(total=gpu[2], free=gpu[3])

    def nvmlDeviceGetMigMode(self, gpu: tuple[object, ...]) -> tuple[int, int]:
        if gpu[4] is None:
            raise NVMLError("Not Supported")
        return bool(gpu[4]), 0

    def nvmlDeviceGetMaxMigDeviceCount(self, gpu: tuple[object, ...]) -> int:
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, gpu: tuple[list[object], ...], number: int) -> object:
        if number >= len(gpu[4]):
            raise NVMLError("Not Found")
        return gpu[4][number]


def test_gpus_by_uuid_with_their_memory(machine: Path) -> None:
    driver = Driver(("GPU-a", b"H200", 100, 60, None), ("GPU-b", "L4", 24, 24, []))  # type: ignore[arg-type]
    snapshot = _devices(machine, "auto", driver).snapshot()
    assert snapshot.gpus == (Gpu("GPU-a", "H200", 100, 60), Gpu("GPU-b", "L4", 24, 24))
    assert snapshot.no_gpu == ""
    assert driver.open == 0, "the driver is let go of after each look"
    assert _devices(machine, ("GPU-b",), driver).snapshot().gpus == (Gpu("GPU-b", "L4", 24, 24),)


def test_a_gpu_that_is_cut_into_slices_counts_as_its_slices(machine: Path) -> None:
    slices: list[object] = [("MIG-1", "H200 1g.18gb", 18, 18, []), ("MIG-2", "H200 1g.18gb", 18, 9, [])]
    snapshot = _devices(machine, "auto", Driver(("GPU-a", "H200", 100, 60, slices))).snapshot()
    assert [g.uuid for g in snapshot.gpus] == ["MIG-1", "MIG-2"]


@pytest.mark.parametrize(
    ("cuda", "driver", "reason"),
    [
        ("none", Driver(("GPU-a", "L4", 1, 1, [])), "the configuration says `cuda: none`"),
        ("auto", Driver(broken=NVMLError("Driver Not Loaded")), "the NVIDIA driver does not answer (Driver Not Loaded)"),
        ("auto", Driver(broken=NVMLErrorLibraryNotFound("NVML Shared Library Not Found")), "no NVIDIA driver is installed"),
        ("auto", Driver(), "the NVIDIA driver knows no GPU"),
        ("auto", Driver(("GPU-a", "L4", -1, 1, [])), "the NVIDIA driver failed (GPU is lost)"),
        (("GPU-z",), Driver(("GPU-a", "L4", 1, 1, [])), "none of the GPUs that the configuration names is there: GPU-z"),
    ],
)
def test_why_there_is_no_gpu(machine: Path, cuda: str | tuple[str, ...], driver: Driver, reason: str) -> None:
    snapshot = _devices(machine, cuda, driver).snapshot()
    assert (snapshot.gpus, snapshot.no_gpu) == ((), reason)


def test_this_machine_is_looked_at_without_torch() -> None:
    code = (
        "import sys; from qconvd.devices import Devices; s = Devices().snapshot(); assert s.cpus and s.memory_available, s;"
        "assert bool(s.gpus) != bool(s.no_gpu), s;"
        "assert not {'torch', 'numpy', 'numba'} & {m.partition('.')[0] for m in sys.modules}"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
