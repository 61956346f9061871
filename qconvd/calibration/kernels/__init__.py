"""Products of bfloat16, in numba: products.py, and tiles.py where the processor has AMX. Importing this imports nothing.

oneDNN multiplies bfloat16 at twice the rate of float32, but gives bfloat16: too coarse for a Hessian. The same instruction with
sums in float32 is used here.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from qconvd.kernel_cache import KernelCache, has_tiles

KERNELS = ("paired", "paired_floats", "add_products", *(("turned", "add_in_tiles") if has_tiles() else ()))
CACHE = KernelCache(Path(__file__).parent, KERNELS)


@cache
def tiled() -> bool:
    """Whether products are made in AMX's tiles: there are any, and kernels are compiled for them."""
    from qconvd.calibration.kernels.products import compiled_with

    return has_tiles() and compiled_with("amx-bf16")


def ready(name: str) -> Any:
    """A kernel, compiled or loaded from the disk cache if it was not used before in this process."""
    from qconvd.calibration.kernels import products

    if name in ("turned", "add_in_tiles"):
        from qconvd.calibration.kernels import tiles

        return CACHE.ready(name, getattr(tiles, name))
    return CACHE.ready(name, getattr(products, name))
