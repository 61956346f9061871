"""Products of columns of bfloat16 with each other, summed up in float32, on the instructions that there are for it.

The kernels are in qconvd/calibration/kernels; no result depends on how many threads share the work. Importing this imports
nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from math import prod
from threading import local
from typing import TYPE_CHECKING, TypeAlias

from qconvd.kernel_cache import is_amd

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Shared: TypeAlias = Callable[[int, Callable[[int, int], None]], None]
"""`shared(count, call)`: `call(first, last)` for parts of `range(count)`, wherever."""
SCRATCH = 8 << 20
"""Bytes of activations that are laid out for the kernel at once, at most."""
DEPTH = 512
"""Rows of a rectangular product that are laid out at once: they stay in the cache."""
_kept = local()


@cache
def bfloat16_pays() -> bool:
    """Whether products in bfloat16 take less time than in float32, and not only less memory.

    In AMX's tiles they take a quarter to a half of it, with AMD's dot product of pairs about a half; Intel's is no faster than
    what it has for float32.
    """
    from qconvd.calibration.kernels import tiled
    from qconvd.calibration.kernels.products import compiled_with

    return tiled() or (compiled_with("avx512bf16") and is_amd())


def prepare_rounded_products() -> None:
    """Compile what `add_rounded_products` needs, or load it; otherwise its first call does."""
    from qconvd.calibration.kernels import ready, tiled

    for name in ("paired_floats", _adding(), *(("turned",) if tiled() else ())):
        ready(name)


def _adding() -> str:
    """The kernel that multiplies, on this processor."""
    from qconvd.calibration.kernels import tiled

    return "add_in_tiles" if tiled() else "add_products"


def _alone(count: int, call: Callable[[int, int], None]) -> None:
    call(0, count)


def add_squares(x: NDArray[np.uint16], sums: NDArray[np.float32], shared: Shared = _alone) -> None:
    """Add X^T X to `sums`, (columns, columns), of which what is above the diagonal counts.

    `x`: (tokens, columns), bits of bfloat16, C-contiguous. The products are exact.
    """
    from qconvd.calibration.kernels import ready
    from qconvd.calibration.kernels.products import TOKENS, pairs_of_strips

    tokens, columns = x.shape
    step = max(1, SCRATCH // (x.itemsize * columns) // TOKENS) * TOKENS
    paired, add = ready("paired"), ready(_adding())
    for start in range(0, tokens, step):
        some = x[start : start + step]
        right = _strips("right", len(some), columns)
        shared(len(right), partial(paired, some, right))
        left = _left(right, shared)
        pairs = pairs_of_strips(len(right), len(right), triangle=True)
        shared(len(pairs), partial(add, left, right, sums, pairs))


def add_rounded_products(x: NDArray[np.float32], y: NDArray[np.float32], sums: NDArray[np.float32]) -> None:
    """Add X^T Y to `sums`, (columns of x, columns of y), of both rounded to bfloat16.

    `x`, `y`: (rows, columns), the same number of rows. A row of `sums` lies together. Raises ValueError where that is not so.
    """
    import numpy as np

    from qconvd.calibration.kernels import ready
    from qconvd.calibration.kernels.products import pairs_of_strips

    if len(x) != len(y) or sums.shape != (x.shape[1], y.shape[1]):
        raise ValueError(f"products of {x.shape} and {y.shape} do not go into {sums.shape}")
    if not sums.size:
        return
    if sums.strides[1] != sums.itemsize:
        raise ValueError("rows of sums do not lie together")
    paired, add = ready("paired_floats"), ready(_adding())
    for start in range(0, len(x), DEPTH):
        laid_out = []
        for name, array in (("left", x), ("right", y)):
            some = array[start : start + DEPTH]
            strips = _strips(name, len(some), some.shape[1])
            paired(some if some.strides[1] == some.itemsize else np.ascontiguousarray(some), strips)
            laid_out.append(strips)
        left, right = laid_out
        pairs = pairs_of_strips(len(left), len(right), triangle=False)
        add(_left(left, _alone), right, sums, pairs, 0, len(pairs))


def _left(strips: NDArray[np.uint32], shared: Shared) -> NDArray[np.uint32]:
    """As the kernel wants its left operand."""
    from qconvd.calibration.kernels import ready, tiled

    if not tiled():
        return strips
    from qconvd.calibration.kernels.tiles import SIDE

    count, pairs, width = strips.shape
    left = _scratch("turned", count, pairs // SIDE, width, SIDE)
    shared(count, partial(ready("turned"), strips, left))
    return left


def _strips(name: str, tokens: int, columns: int) -> NDArray[np.uint32]:
    from qconvd.calibration.kernels.products import PAIRS, WIDTH

    return _scratch(name, -(-columns // WIDTH), -(-tokens // (2 * PAIRS)) * PAIRS, WIDTH)


def _scratch(name: str, *shape: int) -> NDArray[np.uint32]:
    """Memory that this thread keeps: to get it anew for every batch costs a fifth of the products."""
    import numpy as np

    size, held = prod(shape), getattr(_kept, name, None)
    if held is None or held.size < size:
        held = np.empty(size, np.uint32)
        setattr(_kept, name, held)
    part: NDArray[np.uint32] = held[:size].reshape(shape)
    return part
