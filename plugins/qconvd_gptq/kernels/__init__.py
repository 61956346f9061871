"""The solver's loops, in numba: factoring.py for the Hessian, grid.py finds scales, columns.py rounds. Imports nothing.

Arrays are transposed: (columns of the weight, rows of the weight). Rows of a weight are independent of each other, so they are
the lanes, and the innermost loop over them becomes SIMD.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qconvd.api import KernelCache

KERNELS = ("ordered", "corner", "inverted", "transposed", "find", "search", "columns", "pack", "pack3")
CACHE = KernelCache(Path(__file__).parent, KERNELS)


def ready(name: str) -> Any:
    """A kernel, compiled or loaded from the disk cache if it was not used before in this process."""
    from qconvd_gptq.kernels import columns, factoring, grid, words

    entries = {
        "ordered": factoring.ordered, "corner": factoring.corner, "inverted": factoring.inverted,
        "transposed": columns.transposed, "find": grid.find, "search": grid.search, "columns": columns.columns,
        "pack": words.pack, "pack3": words.pack3,
    }  # fmt: skip
    return CACHE.ready(name, entries[name])
