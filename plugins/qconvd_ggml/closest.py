"""Which point of a lattice a group of weights goes to, where its own place has none.

ggml looks at every point in the place's list and takes the first with the least d = sum w (s q - x)², in float32
(iq2_find_best_neighbour, iq3_find_best_neighbour); it does so for every scale s that the search tries. Here

    d = s² sum(w q²) - 2 s sum(w x q) + sum(w x²) = s (s a - 2 b) + c

so a and b are computed once per place and point, and then a scale costs three operations per point. This is not rounded as
ggml's sum is, but both are within _DELTA * (s² a + c) of the truth. As s² a <= 2 c + 2 d, no point can be ggml's choice whose
d is above (1 + 5 _DELTA) times the least one plus 7 _DELTA c. Almost always that leaves one point. Where it leaves more, or
where the numbers are so large or small that the reasoning fails, ggml's own sum is made.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from qconvd_ggml.lattice import CHUNK
from qconvd_ggml.tile import Scalar, Vector, fold, inline, shared

LONGEST = 320
"""Room for the longest list of any lattice (292 points), in whole strides."""
_DELTA = 6e-6
"""100 roundings of float32; ggml's sum of 8 terms and this one take fewer than 40 and 30."""
_NEARLY, _SLACK = np.float32(1 + 5 * _DELTA), np.float32(7 * _DELTA)
_FAR = np.float32(1e30)
_HUGE = np.float32(3.4028234663852886e38)


# Indices are unsigned and nothing is sliced: numba asks of a signed index whether it is negative, and counts references to
# slices, which took more time here than the arithmetic.
_STRIDE = 32
"""Points that `choose` takes at a time: so many that LLVM keeps the loop over them, and makes that the SIMD one."""


@inline
def _coordinate(coordinate: Scalar, shift: Scalar) -> Scalar:  # noqa: ARG001
    return np.float32(coordinate)


def search(width: int, value: Callable[..., Scalar] = _coordinate) -> tuple[Any, Any, Any]:
    """For groups of `width` weights: prepare(…) -> c, choose(…) -> number in the list, exact(…) -> the same by ggml's sum.

    value(coordinate, shift) is q; `shift` is handed through to it. Callers put the three together themselves: a function around
    them, inlined or not, costs a third of the speed of IQ2 and IQ3, for the references to arrays that numba counts there.
    """

    @inline
    def step(i: Scalar, k: Scalar, coordinates: Vector, state: Scalar, fixed: Scalar) -> Scalar:
        a, b = state
        w, wx, first, shift = fixed
        q = value(coordinates[first + np.uint64(i * CHUNK) + np.uint64(k)], shift)
        return (a + w[i] * (q * q), b + wx[i] * q)

    sums = fold(step, width)

    @inline
    def prepare(
        coordinates: Vector, chunk: Scalar, count: Scalar, shift: Scalar, x: Vector, w: Vector, wx: Vector, a: Vector, b: Vector
    ) -> Scalar:
        """Fills a and twice b for the points of a list; returns c, or -1 if only `exact` will do. `wx` is room for `width`."""
        c, most = np.float32(0), np.float32(0)
        for i in range(width):
            wx[i] = w[i] * x[i]
            c += wx[i] * x[i]
            most += w[i]
        if not ((c > np.float32(1e-25)) & (c < np.float32(1e25)) & (most < np.float32(1e25))):
            return np.float32(-1)
        zero = np.float32(0)
        chunks = (count + CHUNK - 1) // CHUNK
        for n in range(chunks):
            first, to = np.uint64(chunk + n) * np.uint64(width * CHUNK), np.uint64(n) * np.uint64(CHUNK)
            for k in range(CHUNK):
                sum_a, sum_b = sums(0, k, coordinates, (zero, zero), (w, wx, first, shift))
                a[to + np.uint64(k)] = sum_a
                b[to + np.uint64(k)] = sum_b + sum_b
        for j in range(count, (count + _STRIDE - 1) // _STRIDE * _STRIDE):
            a[np.uint64(j)] = _FAR
            b[np.uint64(j)] = zero
        return c

    @inline
    def choose(a: Vector, b: Vector, count: Scalar, c: Scalar, s: Scalar) -> Scalar:
        """The only point that can be ggml's choice, or -1 if there are more."""
        if not ((c > np.float32(0)) & (s > np.float32(1e-18)) & (s < np.float32(1e6))):
            return -1
        strides = (count + _STRIDE - 1) // _STRIDE
        # As integers floats keep their order where they are positive; one that is rounded below zero counts as least, too.
        least = np.int32(0x7F7FFFFF)
        for n in range(strides):
            at = np.uint64(n * _STRIDE)
            for k in range(_STRIDE):
                d = np.float32((s * a[at + np.uint64(k)] - b[at + np.uint64(k)]) * s + c).view(np.int32)
                least = min(least, d)
        limit = np.float32(np.int32(least).view(np.float32) * _NEARLY + _SLACK * c)
        found = np.int32(0)
        for n in range(strides):
            at = np.uint64(n * _STRIDE)
            base = np.int32(n * _STRIDE + 65536)
            for k in range(_STRIDE):
                d = (s * a[at + np.uint64(k)] - b[at + np.uint64(k)]) * s + c
                found += np.int32(base + np.int32(k)) if d <= limit else np.int32(0)
        return found - 65536 if found < 131072 and found >= 65536 else -1

    @shared
    def exact(
        points: Vector, near: Vector, chunk: Scalar, count: Scalar, shift: Scalar, x: Vector, w: Vector, s: Scalar
    ) -> Scalar:
        """ggml's own way. Where no sum is finite, the first point; ggml aborts there."""
        least, chosen = _HUGE, 0
        for j in range(count):
            first = np.uint64(near[np.uint64(chunk * CHUNK + j)]) * np.uint64(width)
            d = np.float32(0)
            for i in range(width):
                diff = s * value(points[first + np.uint64(i)], shift) - x[i]
                d += w[i] * diff * diff
            if d < least:
                least = d
                chosen = j
        return chosen

    return prepare, choose, exact
