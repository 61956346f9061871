"""What this machine has: cores, memory, GPUs and what is free of them. Asked of the kernel and of NVML; torch is not needed."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

UNLIMITED = 1 << 60
"""A cgroup of version 1 without a limit says about 2^63."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU, or a slice of one (MIG). Memory in bytes."""

    uuid: str
    name: str
    total: int
    free: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The machine at one moment. Memory in bytes."""

    cpus: int
    memory_total: int
    memory_available: int
    gpus: tuple[Gpu, ...] = ()
    no_gpu: str = ""
    """Why there is no GPU, if there is none."""


class Devices:
    """Looks at the machine. `cuda` is `auto`, `none`, or the UUIDs of the GPUs that may be used."""

    def __init__(
        self,
        cuda: str | tuple[str, ...] = "auto",
        *,
        proc: Path = Path("/proc"),
        cgroup: Path = Path("/sys/fs/cgroup"),
        nvml: Any = None,
    ) -> None:
        self._cuda = cuda
        self._proc = proc
        self._cgroup = cgroup
        self._nvml = nvml

    def snapshot(self) -> Snapshot:
        """Never raises: what cannot be found out is taken for absent, with the reason."""
        total, available = self._memory()
        gpus, reason = self._gpus()
        return Snapshot(self._cpus(), total, available, gpus, reason)

    def _cpus(self) -> int:
        """Cores that this process may use: its affinity, cut down by the cgroup's quota."""
        count = len(os.sched_getaffinity(0))
        for folder in self._own_groups(""):
            quota, _, period = _text(folder / "cpu.max").partition(" ")
            if quota.isdecimal() and period.isdecimal():
                count = min(count, -(-int(quota) // max(1, int(period))))
        for folder in self._own_groups("cpu"):
            quota, period = _text(folder / "cpu.cfs_quota_us"), _text(folder / "cpu.cfs_period_us")
            if quota.isdecimal() and period.isdecimal():
                count = min(count, -(-int(quota) // max(1, int(period))))
        return max(1, count)

    def _memory(self) -> tuple[int, int]:
        """(total, available). Page cache of the cgroup counts as available: it goes when it is in the way."""
        info = {}
        for line in _text(self._proc / "meminfo").splitlines():
            name, _, value = line.partition(":")
            info[name] = int(value.split()[0]) * 1024 if value.split() else 0
        total, available = info.get("MemTotal", 0), info.get("MemAvailable", info.get("MemFree", 0))
        for limit, used, cache in self._memory_groups():
            if limit < UNLIMITED:
                total = min(total, limit)
                available = min(available, max(0, limit - used + cache))
        return total, available

    def _memory_groups(self) -> Iterator[tuple[int, int, int]]:
        """(limit, used, inactive page cache) of every cgroup that this process is in, of either version."""
        for controller, limit, used in (
            ("", "memory.max", "memory.current"),
            ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
        ):
            for folder in self._own_groups(controller):
                allowed = _text(folder / limit)
                if allowed.isdecimal():
                    stat = dict(
                        line.split()[:2] for line in _text(folder / "memory.stat").splitlines() if len(line.split()) > 1
                    )
                    cache = stat.get("inactive_file" if not controller else "total_inactive_file", "0")
                    yield int(allowed), int(_text(folder / used) or 0), int(cache)

    def _own_groups(self, controller: str) -> Iterator[Path]:
        """The cgroup of this process and those above it. In a container its path may not be visible; its root then is."""
        for line in _text(self._proc / "self" / "cgroup").splitlines():
            _, names, path = [*line.split(":", 2), "", ""][:3]
            if controller not in names.split(",") or (not controller and names):
                continue
            for root in (
                (self._cgroup / controller, self._cgroup / "unified") if not controller else (self._cgroup / controller,)
            ):
                place = root / path.lstrip("/")
                for folder in (place, *place.parents):
                    if root not in (folder, *folder.parents):
                        break
                    if folder.is_dir():
                        yield folder

    def _gpus(self) -> tuple[tuple[Gpu, ...], str]:
        if self._cuda == "none":
            return (), "the configuration says `cuda: none`"
        # Not before it is asked for: a machine without a driver pays nothing.
        nvml = self._nvml or importlib.import_module("pynvml")
        try:
            nvml.nvmlInit()
        except nvml.NVMLError as error:
            if isinstance(error, nvml.NVMLError_LibraryNotFound):
                return (), "no NVIDIA driver is installed"
            return (), f"the NVIDIA driver does not answer ({error})"
        try:
            found = [_gpu(nvml, handle) for handle in _handles(nvml)]
        except nvml.NVMLError as error:
            return (), f"the NVIDIA driver failed ({error})"
        finally:
            nvml.nvmlShutdown()
        if isinstance(self._cuda, tuple):
            missing = [uuid for uuid in self._cuda if uuid not in {g.uuid for g in found}]
            found = [g for g in found if g.uuid in self._cuda]
            if not found:
                return (), f"none of the GPUs that the configuration names is there: {', '.join(missing)}"
        return tuple(found), "" if found else "the NVIDIA driver knows no GPU"


def _handles(nvml: Any) -> Iterator[Any]:
    """Every GPU; of one that is cut into slices, the slices."""
    for index in range(nvml.nvmlDeviceGetCount()):
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        slices = list(_slices(nvml, handle))
        yield from slices or [handle]


def _slices(nvml: Any, handle: Any) -> Iterator[Any]:
    try:
        current, _ = nvml.nvmlDeviceGetMigMode(handle)
        count = nvml.nvmlDeviceGetMaxMigDeviceCount(handle) if current else 0
    except nvml.NVMLError:
        # Most GPUs cannot be cut.
        return
    for number in range(count):
        try:
            yield nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, number)
        except nvml.NVMLError:
            # A place that no slice is in.
            continue


def _gpu(nvml: Any, handle: Any) -> Gpu:
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    return Gpu(_str(nvml.nvmlDeviceGetUUID(handle)), _str(nvml.nvmlDeviceGetName(handle)), int(memory.total), int(memory.free))


def _str(value: str | bytes) -> str:
    """Older bindings return bytes."""
    return value.decode() if isinstance(value, bytes) else value


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
