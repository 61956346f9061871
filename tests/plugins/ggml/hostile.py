"""Weights that a quantizer may trip over, and Q6_K written down a second time to hold the kernel against."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

COLUMNS = 512


def weights(rows: int = 16, seed: int = 0) -> NDArray[np.float32]:
    """Float32 (rows of every kind, COLUMNS): normal, flat, zero, tiny, huge, outliers, ties, one sign, sparse. All finite."""
    rng = np.random.default_rng(seed)
    shape = (rows, COLUMNS)
    normal = rng.standard_normal(shape)
    block = np.repeat(rng.uniform(-30, 12, (rows, COLUMNS // 32)), 32, axis=1)
    outliers = normal * 1e-3
    outliers[:, ::32] = rng.choice([-1e4, 1e4, 3.0], (rows, COLUMNS // 32))
    kinds = [
        normal,
        normal * 0.02,
        normal * 10.0**block,
        np.broadcast_to(rng.uniform(-1, 1, (rows, 1)), shape),
        np.zeros(shape),
        outliers,
        rng.integers(-8, 9, shape) / 8,
        rng.integers(-127, 128, shape) / 2,
        rng.choice([-1.0, 1.0], shape),
        np.abs(normal),
        -np.abs(normal),
        normal * (rng.random(shape) < 0.05),
        np.where(rng.random(shape) < 0.5, -0.0, 0.0),
        normal * 2.0**-24,
        normal * 3e4,
        normal * 1e6,
    ]
    return np.concatenate(kinds).astype(np.float32)


def q6_k(x: NDArray[np.float32]) -> NDArray[np.uint8]:
    """quantize_row_q6_K_ref of ggml, step by step, for finite x of a size that 256 divides: uint8 (blocks, 210)."""
    x = x.reshape(-1, 16)
    f = np.float32

    def fit(inverse: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
        levels = np.clip(np.rint(inverse[:, None] * x), f(-32), f(31)).astype(f)
        xq, qq = np.zeros(len(x), f), np.zeros(len(x), f)
        for i in range(16):
            w = x[:, i] * x[:, i]
            xq += w * x[:, i] * levels[:, i]
            qq += w * levels[:, i] * levels[:, i]
        return levels, xq, qq

    with np.errstate(all="ignore"):
        largest = np.take_along_axis(x, np.abs(x).argmax(axis=1)[:, None], 1)[:, 0]
        zero = np.abs(largest) < f(1e-15)
        levels, xq, qq = fit(f(-32) / largest)
        scale = np.where(qq != 0, xq / qq, f(0))
        best = scale * xq
        for k in [*range(-9, 0), *range(1, 10)]:
            new, xq, qq = fit(-(f(32) + f(0.1) * f(k)) / largest)
            better = (qq > 0) & (xq * xq > best * qq)
            levels[better] = new[better]
            scale = np.where(better, xq / qq, scale)
            best = np.where(better, scale * xq, best)
        scale[zero] = 0
        levels = np.where(zero[:, None], 0, levels + 32).reshape(-1, 16, 16)
        scale = scale.reshape(-1, 16)
        top = np.take_along_axis(scale, np.abs(scale).argmax(axis=1)[:, None], 1)
        dead = np.abs(top[:, 0]) < f(1e-15)
        inverse = f(-128) / top
        d = (f(1) / inverse).astype(np.float16)
        scales = np.rint(inverse * scale)
        scales = np.minimum(127, np.where(np.isnan(scales), 0, scales)).astype(f)
        step = (d.astype(f) * scales)[:, :, None]
        again = np.rint(x.reshape(-1, 16, 16) / step)
        again = np.clip(np.where(np.isnan(again), 0, again), -32, 31) + 32  # nearest_int gives 0 for the NaN of inf * 0
        levels = np.where(step != 0, again, levels)
    levels[dead], scales[dead], d[dead] = 0, 0, 0
    q = levels.astype(np.uint8).reshape(-1, 2, 4, 32)
    low = np.concatenate([q[:, :, 0] & 15 | (q[:, :, 2] & 15) << 4, q[:, :, 1] & 15 | (q[:, :, 3] & 15) << 4], axis=2)
    high = q[:, :, 0] >> 4 | q[:, :, 1] >> 4 << 2 | q[:, :, 2] >> 4 << 4 | q[:, :, 3] >> 4 << 6
    parts = [low.reshape(-1, 128), high.reshape(-1, 64), scales.astype(np.int8).view(np.uint8), d.view(np.uint8)]
    return np.concatenate(parts, axis=1)
