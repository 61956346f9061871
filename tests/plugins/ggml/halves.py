"""Numbers of 16 bits as float32."""

from __future__ import annotations

import numpy as np


def single(bf16: np.ndarray) -> np.ndarray:
    """The float32 that bfloat16 bits stand for."""
    return (bf16.astype(np.uint32) << 16).view(np.float32)
