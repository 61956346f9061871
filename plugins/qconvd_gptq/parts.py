"""Large matrix products in parts, on threads of our own.

The BLAS of workers has one thread: OpenBLAS's wait by spinning, for each other and for whatever else wants the cores, and with
two of them the solver took 4 to 50 times the CPU on a busy machine. The parts are the same however many threads there are,
and so is the result.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

PART = 512
"""Rows or columns of a part: enough for a product to be efficient."""
WORTH = 1 << 26
"""Multiplications, some milliseconds of them."""


def in_parts(count: int, each: int, call: Callable[[int, int], None]) -> None:
    """`call(first, last)` for parts of `range(count)`, which must be independent of each other; returns when all are done.

    `each` is how many multiplications one of `count` takes: what takes few is done as a whole.
    """
    if count * each < WORTH:
        call(0, count)
        return
    parts = [(first, min(count, first + PART)) for first in range(0, count, PART)]
    if len(parts) < 2 or _threads() < 2:
        for part in parts:
            call(*part)
        return
    for done in [_pool().submit(call, *part) for part in parts]:
        done.result()


def _threads() -> int:
    """What this process may take, as its environment says it to numerical libraries."""
    given = os.environ.get("NUMBA_NUM_THREADS", "")
    return int(given) if given.isdecimal() else len(os.sched_getaffinity(0))


@cache
def _pool() -> ThreadPoolExecutor:
    """One for all linears that are solved at once."""
    return ThreadPoolExecutor(_threads(), "products")
