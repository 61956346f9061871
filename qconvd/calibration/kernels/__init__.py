"""X^T X of activations in bfloat16, in numba. Importing this imports nothing.

oneDNN multiplies bfloat16 at twice the rate of float32, but gives bfloat16: too coarse for a Hessian. The same instruction with
sums in float32 is used here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qconvd.kernel_cache import KernelCache

KERNELS = ("paired", "add_products")
CACHE = KernelCache(Path(__file__).parent, KERNELS)


def ready(name: str) -> Any:
    """A kernel, compiled or loaded from the disk cache if it was not used before in this process."""
    from qconvd.calibration.kernels import products

    return CACHE.ready(name, getattr(products, name))
