"""Numbers and weights for the tests of int8, int4 and fp8."""

from __future__ import annotations

import numpy as np

NF4 = [-1.0, -0.6961928, -0.52507305, -0.39491749, -0.28444138, -0.18477343, -0.091050036, 0.0,
       0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0]  # fmt: skip
FP4 = [x / 12 for x in (0, 0.0625, 8, 12, 4, 6, 2, 3, 0, -0.0625, -8, -12, -4, -6, -2, -3)]


def dynamic_map() -> list[float]:
    """bitsandbytes' 8-bit numbers, from their description."""
    found = [0.0, 1.0]
    for i in range(7):
        for k in range(2**i):
            number = 10.0 ** (i - 6) * (0.1 + 0.9 * (2 * k + 1) / 2 ** (i + 1))
            found += [number, -number]
    return sorted(found)


def difficult(rows: int, columns: int, dtype: str) -> np.ndarray:
    """Weights in 16 bits, as uint16: rows of every size, zeros, one sign, outliers, subnormals, ties."""
    rng = np.random.default_rng(11)
    x = rng.standard_normal((rows, columns)) * np.exp(rng.uniform(-9, 3, (rows, 1)))
    x[0] = 0
    x[1] = np.abs(x[1])
    x[2] = -np.abs(x[2])
    x[3, ::7] = 0
    x[3, 1::7] = -0.0
    x[4] = 1e-7 * rng.standard_normal(columns)
    x[5, 3] = 900
    x[6] = np.arange(columns) % 15 - 7.5
    x[7, : columns // 2] = 0
    if dtype == "F16":
        return x.astype(np.float16).view(np.uint16)
    bits = x.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
