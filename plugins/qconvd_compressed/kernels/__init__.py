"""The arithmetic over weights, in numba: integers.py, floats.py (FP8), codebook.py (nf4, fp4) and reading.py.

Imports nothing.

Every kernel takes 16-bit weights as they are stored. Nothing is contracted or reordered: bytes and error figures are the same
on any CPU.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qconvd.api import KernelCache

KERNELS = ("integers", "llm_int8", "floats", "codebook", "codebook_error", "codebook_largest", "codebook_held")
CACHE = KernelCache(Path(__file__).parent, KERNELS)


def ready(name: str) -> Any:
    """A kernel, compiled or loaded from the disk cache if it was not used before in this process."""
    from qconvd_compressed.kernels import codebook, floats, integers, reading

    entries = {
        "integers": integers.integers, "llm_int8": integers.llm_int8, "floats": floats.floats,
        "codebook": codebook.codebook, "codebook_error": codebook.codebook_error,
        "codebook_largest": reading.codebook_largest, "codebook_held": reading.codebook_held,
    }  # fmt: skip
    return CACHE.ready(name, entries[name])
