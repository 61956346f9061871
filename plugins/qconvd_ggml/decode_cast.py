"""F32, F16 and BF16: decoders, and how far they may be from the weights."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qconvd_ggml.decode_base import Bound, Decoder, Floats


def _f32(raw: NDArray[np.uint8]) -> NDArray[np.float32]:
    return raw.view(np.float32)


def _f16(raw: NDArray[np.uint8]) -> Floats:
    return raw.view("<f2").astype(np.float32)


def _bf16(raw: NDArray[np.uint8]) -> Floats:
    return (raw.view("<u2").astype(np.uint32) << 16).view(np.float32)


def _bound_f16(x: Floats) -> Floats:
    return np.where(np.abs(x) >= 65520, np.inf, np.maximum(np.abs(x) * 2.0**-11, 2.0**-25))


def _bound_bf16(x: Floats) -> Floats:
    return np.where(np.abs(x) >= 2.0**128 - 2.0**119, np.inf, np.maximum(np.abs(x) * 2.0**-8, 2.0**-134))


DECODERS: dict[str, Decoder] = {"F32": _f32, "F16": _f16, "BF16": _bf16}
BOUNDS: dict[str, Bound] = {"F32": lambda x: np.where(np.isfinite(x), 0.0, np.inf), "F16": _bound_f16, "BF16": _bound_bf16}
