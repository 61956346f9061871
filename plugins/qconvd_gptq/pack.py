"""Codes, zero points and scales as the tensors of a GPTQ checkpoint.

qweight (K * bits / 32, N) int32 holds codes along the inputs, qzeros (groups, N * bits / 32) int32 zero points along the
outputs, both low bits first; 3 bits are one stream in which 32 values fill three words. `gptq` stores zero points less one,
`gptq_v2` as they are.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from qconvd_gptq.kernels import ready
from qconvd_gptq.solve import Solved


class Packed(NamedTuple):
    """The four tensors, in the order of a unit's outputs."""

    qweight: NDArray[np.int32]
    qzeros: NDArray[np.int32]
    scales: NDArray[np.float16]
    g_idx: NDArray[np.int32]


def pack(solved: Solved, bits: int, stored_less: int) -> Packed:
    """`stored_less` is what zero points are stored less: 1 for `gptq`, 0 for `gptq_v2`."""
    zeros = solved.zeros - np.uint8(stored_less)
    along_rows = words(np.ascontiguousarray(zeros.T), bits)
    return Packed(words(solved.codes, bits), np.ascontiguousarray(along_rows.T), solved.scales, solved.g_idx)


def words(codes: NDArray[np.uint8], bits: int) -> NDArray[np.int32]:
    """(k, n) codes as (k * bits / 32, n) words; k * bits is a multiple of 32 (of 96 for 3 bits)."""
    out = np.empty((len(codes) * bits // 32, codes.shape[1]), np.uint32)
    kernel: Any = ready("pack3" if bits == 3 else "pack")
    kernel(codes, out) if bits == 3 else kernel(codes, bits, out)
    return out.view(np.int32)
