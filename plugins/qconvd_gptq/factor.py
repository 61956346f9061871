"""The Hessian of a linear, ordered, damped and factored once for all linears and variants that share it.

With H = A D A^T, A unit upper triangular in the order of solving, the squared error of the output is
sum_j D_j * |(E A)_j|^2 for E = W - Q. So column j is best rounded from w_j + sum_{i<j} A_ij * E_i: the feedback of GPTQ
(Frantar et al., arXiv 2210.17323) in the form that QuIP's authors showed to be equal (Chee et al., arXiv 2307.13304). It needs
one Cholesky factorisation and no inverse at all, where the usual way takes Cholesky, inverse, Cholesky; float32 is enough.

Columns are kept last first, so that A is the plain lower factor of LAPACK.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from qconvd.api import Hessian, QconvdError
from qconvd_gptq.parts import in_parts

Order: TypeAlias = Literal["none", "activation"]
MOST_DAMP = 1.0
BLOCK = 256
"""Columns of a Cholesky factor that are computed at a time."""


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
    if not np.isfinite(h).all():
        raise QconvdError(
            "the activations that calibration saw are not finite (NaN or infinite)",
            where=where,
            fix="the model overflows on the calibration text; calibrate with other text, or take `method: rtn`",
        )
    solved = np.argsort(-diagonal, kind="stable") if order == "activation" else np.arange(len(h))
    columns = np.ascontiguousarray(solved[::-1], np.int64)
    dead = diagonal[columns] <= 0
    mean = float(diagonal.mean(dtype=np.float64)) or 1.0
    while True:
        flipped = h[np.ix_(columns, columns)] if order == "activation" else h[::-1, ::-1].copy()
        flipped[np.diag_indices(len(h))] += np.float32(damp * mean)
        # A column without activations stands for itself: rounded to nearest, feeding nothing back.
        flipped[dead, dead] = np.float32(mean)
        if _cholesky(flipped):
            break
        del flipped
        if damp >= MOST_DAMP:
            raise QconvdError(
                f"the Hessian cannot be factored, even with {damp:g} of its mean diagonal added",
                where=where,
                fix="calibrate with more text, or take `method: rtn`",
            )
        damp = min(MOST_DAMP, max(10 * damp, 1e-3))
    pivots = flipped.diagonal().copy()
    flipped /= pivots
    for array in (columns, flipped, pivots):
        array.flags.writeable = False
    return Factor(columns, flipped, pivots * pivots, int(dead.sum()), damp)


def _cholesky(a: NDArray[np.float32]) -> bool:
    """Make `a` its lower Cholesky factor, in place; False if it has none in float32.

    By blocks of columns, nearly all of it as matrix products: numpy's own takes three times the memory and eight times as long.
    """
    for start in range(0, len(a), BLOCK):
        end = min(len(a), start + BLOCK)
        if start:
            done, columns = a[start:end, :start].T.copy(), slice(start, end)  # a copy: these rows are written to
            in_parts(len(a) - start, done.size, partial(_subtract, a[start:], columns, done))
        try:
            corner = np.linalg.cholesky(a[start:end, start:end])
            below = np.linalg.inv(corner).T
        except np.linalg.LinAlgError:
            return False
        pivots = corner.diagonal()
        if not (np.isfinite(pivots).all() and (pivots > 0).all()):
            return False
        a[start:end, start:end] = corner
        a[start:end, end:] = 0
        in_parts(len(a) - end, below.size, partial(_multiply, a[end:, start:end], below))
    return True


def _subtract(a: NDArray[np.float32], columns: slice, done: NDArray[np.float32], first: int, last: int) -> None:
    """Take from some columns what those before them give, in some rows."""
    a[first:last, columns] -= a[first:last, : len(done)] @ done


def _multiply(a: NDArray[np.float32], by: NDArray[np.float32], first: int, last: int) -> None:
    a[first:last] = a[first:last] @ by
