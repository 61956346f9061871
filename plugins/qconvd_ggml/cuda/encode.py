"""The way in: rows of weights on a device to the bytes of a GGML type, on that device."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from qconvd.api import UnitReport, row_bytes, storage
from qconvd_ggml.cuda import k_types, legacy
from qconvd_ggml.cuda.arithmetic import Tensor
from qconvd_ggml.cuda.report import report

KERNELS: Mapping[str, Callable[[Tensor], tuple[Tensor, Tensor]]] = {
    "Q4_0": legacy.q4_0, "Q4_1": legacy.q4_1, "Q5_0": legacy.q5_0, "Q5_1": legacy.q5_1, "Q8_0": legacy.q8_0,
    "Q2_K": k_types.q2_k, "Q3_K": k_types.q3_k, "Q4_K": k_types.q4_k, "Q5_K": k_types.q5_k, "Q6_K": k_types.q6_k,
}  # fmt: skip
"""float32 of shape (blocks, weights of a block) to bytes and the weights as read."""
MOST = 1 << 30
"""Weights of a call: kernels count them in 32 bits."""


def encode(dtype: str, x: Tensor) -> tuple[Tensor, UnitReport]:
    """Encode `x`, a bfloat16, float16 or float32 tensor of shape (rows, columns), as `dtype`, without an importance matrix.

    Returns uint8 of shape (rows, row_bytes) on the same device, and the report as `kernels.encode` gives it. How far the bytes
    may be from those of the CPU is in contract.py. NaN and infinite weights are counted; what becomes of super-blocks of the K
    types with such weights is open.

    Raises `Unsupported` if the columns are no multiple of the type's block, ValueError for a type without a kernel and for more
    weights than MOST, TypeError for weights of another type.
    """
    if dtype not in KERNELS:
        raise ValueError(f"no kernel for {dtype} on a GPU")
    if x.dtype not in (torch.bfloat16, torch.float16, torch.float32):
        raise TypeError(f"weights come as bfloat16, float16 or float32, not as {x.dtype}")
    if x.numel() > MOST:
        raise ValueError(f"{x.numel()} weights at once, where kernels count to {MOST}: encode fewer rows at a time")
    size = row_bytes(dtype, x.shape[1])
    block, _ = storage(dtype)
    # Exact: every number of the 16-bit types is one of float32.
    blocks = x.to(torch.float32).reshape(-1, block)
    data, y = KERNELS[dtype](blocks)
    return data.view(x.shape[0], size), report(blocks, y)
