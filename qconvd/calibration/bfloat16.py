"""Whether a model is run in bfloat16, and X^T X of what it then computes."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from itertools import pairwise
from math import prod
from threading import local

import numpy as np
import torch
from numpy.typing import NDArray

from qconvd import kernel_cache
from qconvd.engine.plan import CalibrationSpec, Device

SCRATCH = 8 << 20
"""Bytes of activations that are laid out for the kernel at once, at most."""
_kept = local()


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
    from qconvd.calibration.kernels import ready
    from qconvd.calibration.kernels.products import TOKENS, WIDTH

    bits = np.ascontiguousarray(x.contiguous().view(torch.int16).numpy().view(np.uint16))
    tokens, columns = bits.shape
    strips = -(-columns // WIDTH)
    step = max(1, SCRATCH // (bits.itemsize * columns) // TOKENS) * TOKENS
    paired, add = ready("paired"), ready("add_products")
    for start in range(0, tokens, step):
        some = bits[start : start + step]
        laid_out = _scratch(strips, -(-len(some) // 2), WIDTH)
        _shared(strips, partial(paired, some, laid_out))
        _shared(strips * (strips + 1) // 2, partial(add, laid_out, sums.numpy()))


def _scratch(*shape: int) -> NDArray[np.uint32]:
    """Memory that this thread keeps: to get it anew for every batch costs a fifth of the products."""
    size = prod(shape)
    if (held := getattr(_kept, "scratch", None)) is None or held.size < size:
        held = _kept.scratch = np.empty(size, np.uint32)
    part: NDArray[np.uint32] = held[:size].reshape(shape)
    return part


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
