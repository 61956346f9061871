"""The Hessian of a linear, ordered, damped and factored once for all linears and variants that share it.

With H = A D A^T, A unit upper triangular in the order of solving, the squared error of the output is
sum_j D_j * |(E A)_j|^2 for E = W - Q. So column j is best rounded from w_j + sum_{i<j} A_ij * E_i: the feedback of GPTQ
(Frantar et al., arXiv 2210.17323) in the form that QuIP's authors showed to be equal (Chee et al., arXiv 2307.13304). It needs
one factorisation and no inverse of the Hessian, where the usual way takes Cholesky, inverse, Cholesky; float32 is enough.

Columns are kept last first, so that A is the plain lower factor of LAPACK.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from qconvd.api import Hessian, QconvdError
from qconvd_gptq.kernels import ready
from qconvd_gptq.parts import in_parts

Order: TypeAlias = Literal["none", "activation"]
MOST_DAMP = 1.0
BLOCK = 256
"""Columns of a factor that are computed at a time."""
CORNER = 64
"""Columns that a kernel factors one by one."""


@dataclass(frozen=True, slots=True)
class Factor:
    """What solving needs of a Hessian. Read-only, shared by threads."""

    columns: NDArray[np.int64]
    """(K,): the columns of the weight, the one that is solved last first."""
    ratio: NDArray[np.float32]
    """(K, K), unit lower triangular: `ratio[i, j]` is how much of the error of column i column j < i takes."""
    pivots: NDArray[np.float32]
    """(K,): what the squared error of a column counts once those before it are fed back (D)."""
    dead: int
    """Columns that calibration never saw anything in."""
    damp: float
    """The share of the mean diagonal that was added: what was asked for, or more if the factorisation failed with that."""


def factor(hessian: Hessian, order: Order, damp: float, where: str) -> Factor:
    """The factor of a Hessian, made once. Raises `QconvdError` naming the linear `where` if there is no sense in it."""
    return hessian.once(("gptq", order, damp), lambda: _factor(hessian.array, order, damp, where))


def _factor(h: NDArray[np.float32], order: Order, damp: float, where: str) -> Factor:
    diagonal = h.diagonal()
    # The sum alone takes a third of the time.
    with np.errstate(over="ignore", invalid="ignore"):
        total = h.sum()
    if not np.isfinite(total) and not np.isfinite(h).all():
        raise QconvdError(
            "the activations that calibration saw are not finite (NaN or infinite)",
            where=where,
            fix="the model overflows on the calibration text; calibrate with other text, or take `method: rtn`",
        )
    solved = np.argsort(-diagonal, kind="stable") if order == "activation" else np.arange(len(h))
    columns = np.ascontiguousarray(solved[::-1], np.int64)
    mean = float(diagonal.mean(dtype=np.float64)) or 1.0
    h, ratio, pivots = np.ascontiguousarray(h), np.empty(h.shape, np.float32), np.empty(len(h), np.float32)
    while True:
        # A column without activations stands for itself: rounded to nearest, feeding nothing back.
        kernel: Any = ready("ordered")
        kernel(h, columns, np.float32(damp * mean), np.float32(mean), ratio)
        if factored(ratio, pivots):
            break
        if damp >= MOST_DAMP:
            raise QconvdError(
                f"the Hessian cannot be factored, even with {damp:g} of its mean diagonal added",
                where=where,
                fix="calibrate with more text, or take `method: rtn`",
            )
        damp = min(MOST_DAMP, max(10 * damp, 1e-3))
    for array in (columns, ratio, pivots):
        array.flags.writeable = False
    return Factor(columns, ratio, pivots, int((diagonal <= 0).sum()), damp)


def factored(a: NDArray[np.float32], pivots: NDArray[np.float32]) -> bool:
    """Make `a`, a lower triangle, the unit lower L of L D L^T; D goes to `pivots`. False if float32 finds none.

    By blocks of columns and these by halves, so that nearly all of it is matrix products.
    """
    for start in range(0, len(a), BLOCK):
        end = min(len(a), start + BLOCK)
        if start:
            done = a[start:end, :start].T * pivots[:start, None]
            in_parts(len(a) - start, done.size, partial(_subtract, a[start:], slice(start, end), done))
        inverse = np.empty((end - start, end - start), np.float32)
        if not _corner(a[start:end, start:end], pivots[start:end], inverse):
            return False
        below = inverse.T / pivots[start:end]
        in_parts(len(a) - end, below.size, partial(_multiply, a[end:, start:end], below))
    return True


def _corner(a: NDArray[np.float32], pivots: NDArray[np.float32], inverse: NDArray[np.float32]) -> bool:
    """The same of a block, by halves, and the inverse of its L."""
    half = _half(len(a))
    if not half:
        kernel: Any = ready("corner")
        return bool(kernel(a, pivots, inverse))
    upper, lower, below = a[:half, :half], a[half:, half:], a[half:, :half]
    if not _corner(upper, pivots[:half], inverse[:half, :half]):
        return False
    a[:half, half:] = 0
    below[:] = below @ (inverse[:half, :half].T / pivots[:half])
    lower -= (below * pivots[:half]) @ below.T
    if not _corner(lower, pivots[half:], inverse[half:, half:]):
        return False
    _join(below, inverse, half)
    return True


def inverse_of(a: NDArray[np.float32]) -> NDArray[np.float32]:
    """Of a unit lower triangle."""
    inverse = np.empty(a.shape, np.float32)
    _inverse(a, inverse)
    return inverse


def _inverse(a: NDArray[np.float32], inverse: NDArray[np.float32]) -> None:
    half = _half(len(a))
    if not half:
        kernel: Any = ready("inverted")
        kernel(a, inverse)
        return
    _inverse(a[:half, :half], inverse[:half, :half])
    _inverse(a[half:, half:], inverse[half:, half:])
    _join(a[half:, :half], inverse, half)


def _join(below: NDArray[np.float32], inverse: NDArray[np.float32], half: int) -> None:
    """The rest of an inverse, from those of both halves and what is below the first."""
    inverse[half:, :half] = -(inverse[half:, half:] @ below) @ inverse[:half, :half]
    inverse[:half, half:] = 0


def _half(columns: int) -> int:
    """Where a block is divided; 0 if the kernel takes it as it is."""
    return 0 if columns <= CORNER else -(-columns // (2 * CORNER)) * CORNER


def _subtract(a: NDArray[np.float32], columns: slice, done: NDArray[np.float32], first: int, last: int) -> None:
    """Take from some columns what those before them give, in some rows."""
    a[first:last, columns] -= a[first:last, : len(done)] @ done


def _multiply(a: NDArray[np.float32], by: NDArray[np.float32], first: int, last: int) -> None:
    a[first:last] = a[first:last] @ by
