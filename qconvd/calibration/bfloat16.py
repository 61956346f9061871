"""Whether a model is run in bfloat16, and X^T X of what it then computes."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise

import numpy as np
import torch

from qconvd import kernel_cache
from qconvd.calibration.products import add_squares
from qconvd.engine.plan import CalibrationSpec, Device


def multiplies_bfloat16() -> bool:
    """Whether this processor and torch do."""
    return kernel_cache.multiplies_bfloat16() and torch.backends.mkldnn.is_available()


def computed_in(spec: CalibrationSpec, device: Device) -> torch.dtype:
    """The type of weights and activations while the model is run."""
    if spec.dtype != "auto":
        return torch.bfloat16 if spec.dtype == "bfloat16" else torch.float32
    return torch.bfloat16 if device.kind == "cuda" or multiplies_bfloat16() else torch.float32


def add_products(x: torch.Tensor, sums: torch.Tensor) -> None:
    """Add X^T X to `sums`, (columns, columns) float32, of which what is above the diagonal counts.

    `x`: (tokens, columns) bfloat16. The products are exact, and the sums are the same for any number of threads.
    """
    add_squares(x.contiguous().view(torch.int16).numpy().view(np.uint16), sums.numpy(), _shared)


def _shared(count: int, call: Callable[[int, int], None]) -> None:
    """`call(first, last)` for parts of `range(count)`, on as many threads as torch takes."""
    threads = torch.get_num_threads()
    divided = min(count, threads)
    parts = list(pairwise(count * i // divided for i in range(divided + 1)))
    others = [_pool(threads).submit(call, *part) for part in parts[1:]]
    call(*parts[0])
    for other in others:
        other.result()


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, "calibrate-products")
