"""The compiled casts. Imports nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qconvd.api import KernelCache

KERNEL = "casts"
CACHE = KernelCache(Path(__file__).parent, (KERNEL,))


def ready(name: str = KERNEL) -> Any:
    """The kernel, compiled or loaded from the disk cache if it was not used before in this process."""
    from qconvd_fp16.kernels.tiles import entry

    return CACHE.ready(name, entry)
