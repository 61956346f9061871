"""How much memory a worker may take at the very most: one that runs away fails in words and does not take the machine down.

RLIMIT_DATA counts private memory that can be written, whether it was touched or not: heaps, arrays, the stacks of threads. It
does not count what libraries only reserve (as RLIMIT_AS would), nor page cache. docs/decisions/0003-workers-have-a-ceiling.md.
"""

from __future__ import annotations

import ctypes
import resource
from collections.abc import Mapping

from qconvd.errors import QconvdError
from qconvd.quantities import show_size
from qconvd.tasks import TaskSpec

GIB = 1 << 30
PLAN_LIMIT = 4 * GIB
"""The largest tokenizers take about one GiB as Python objects."""
BESIDE = GIB
"""The interpreter, numpy, compiling the kernels: 0.3 GiB, measured with a cold cache."""
PER_TARGET = 128 << 20
"""A plan whose metadata holds a vocabulary of 262,144 tokens and its merges, as Python objects."""
STACK = 8 << 20
OTHER_THREADS = 16
DOING = {
    "plan": "planning", "fetch": "fetching", "convert": "converting", "verify": "verifying", "publish": "publishing"
}  # fmt: skip


def ceiling(spec: TaskSpec) -> int | None:
    """Bytes of private memory that a task may map; None for one on a GPU, whose driver maps what it likes."""
    if spec.kind in ("plan", "fetch", "publish"):
        return PLAN_LIMIT
    if spec.device.kind == "cuda":
        return None
    threads = spec.limits.threads * 2 + OTHER_THREADS
    return 2 * spec.limits.memory + BESIDE + PER_TARGET * len(spec.targets) + STACK * threads


def limit_memory(spec: TaskSpec) -> None:
    """Hold this process to its ceiling, or to a lower one that it was started with."""
    most = ceiling(spec)
    if most is None:
        return
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (most if hard == resource.RLIM_INFINITY else min(hard, most), hard))


def keep_freed_memory() -> None:
    """Have malloc keep what is freed, and not ask the kernel for every large array anew, page by page and zeroed.

    For a process whose one thread makes arrays of the same sizes over and over, as verification does: it takes no more at its
    peak. glibc gives back arrays of 32 MiB and more whatever it is told otherwise. Other C libraries have no such setting.
    """
    _set_malloc({_MMAP_MAX: 0, _TRIM_THRESHOLD: 0x7FFFFFFF})


def keep_freed_arrays() -> None:
    """The same for arrays of less than 32 MiB, which calibration makes for every batch of every layer, in threads of its own.

    What is larger, as Hessians may be, goes back at once; of the rest, what is above `KEPT` at the end of the heap. There is
    one heap for all threads that begin after this: those of their own glibc gives back whenever nothing is in them.
    """
    _set_malloc({_MMAP_THRESHOLD: 32 << 20, _TRIM_THRESHOLD: KEPT, _ARENA_MAX: 1})


def _set_malloc(settings: Mapping[int, int]) -> None:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for setting, value in settings.items():
            mallopt(setting, value)


KEPT = 128 << 20
"""Bytes at the end of the heap that a process keeps though they are free."""
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -3, -4, -8
"""Of malloc.h."""


def too_much(spec: TaskSpec) -> QconvdError:
    """What a MemoryError under the ceiling means."""
    where = str(spec.source.path)
    most = ceiling(spec)
    if spec.kind in ("plan", "fetch", "publish"):
        what = f"{DOING[spec.kind]} needs more than the {show_size(PLAN_LIMIT)} of memory that it may take"
        return QconvdError(what, where=where, fix="look at the sizes of the tokenizer and of the header")
    what = f"{DOING[spec.kind]} needs more memory than limits.memory allows: {show_size(spec.limits.memory)} were reserved"
    if most is not None:
        what += f", and even {show_size(most)} were not enough"
    fix = "raise limits.memory (--memory); if the plan reserves no more then, its format is wrong about what it needs"
    return QconvdError(what, where=where, fix=fix)
