"""The numbers of bitsandbytes' types, as float32.

nf4: quantiles of the normal distribution (Dettmers et al., arXiv 2305.14314, appendix E). fp4: sign, two bits of exponent, one
of mantissa, divided by the largest. `dynamic`: 8 bits with a moving boundary between exponent and fraction (Dettmers, arXiv
1511.04561).
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
FP4 = (0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0)
"""Of codes 0 to 7; from 8 on they are negative."""


@cache
def numbers(name: str) -> NDArray[np.float32]:
    """The 16 numbers of `nf4` or `fp4`, by code."""
    found = np.array(NF4 if name == "nf4" else (*FP4, *(0.0 - x for x in FP4)), np.float32)
    found = found if name == "nf4" else (found / found.max()).astype(np.float32)
    found.setflags(write=False)
    return found


@cache
def pairs(name: str) -> NDArray[np.uint64]:
    """(256,): the two float32 numbers of `nf4` or `fp4` that a byte stands for, the high code's first, as one."""
    byte = np.arange(256)
    return np.stack([numbers(name)[byte >> 4], numbers(name)[byte & 15]], axis=1).view(np.uint64).reshape(-1)


@cache
def ordered(name: str) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """The middles between the numbers in their order, and the codes in that order."""
    found = numbers(name)
    order = np.argsort(found, kind="stable").astype(np.uint8)
    middles = (found[order[:-1]] + found[order[1:]]) / np.float32(2)
    return middles, order


@cache
def dynamic() -> NDArray[np.float32]:
    """256 numbers in their order: with i = 0 … 6, ten to the i - 6 times the middles of 2^i parts of [0.1, 1]; 0 and 1."""
    found = [0.0, 1.0]
    for i in range(7):
        edges = _edges(2**i)
        middles = (edges[:-1] + edges[1:]) / np.float32(2)
        scaled = np.float32(10.0 ** (i - 6)) * middles
        found += [*scaled.tolist(), *(-scaled).tolist()]
    return np.array(sorted(found), np.float32)


def _edges(parts: int) -> NDArray[np.float32]:
    """The ends of equal parts of [0.1, 1] as torch computes them: from the nearer end, with a float32 step, rounded once."""
    first, last = float(np.float32(0.1)), 1.0
    step = float((np.float32(last) - np.float32(first)) / np.float32(parts))
    count = np.arange(parts + 1)
    return np.where(count < (parts + 1) // 2, first + step * count, last - step * (parts - count)).astype(np.float32)
