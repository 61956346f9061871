"""What encoding did to the numbers, summed on the device: the same figures as measure.py's."""

from __future__ import annotations

import math

import torch

from qconvd.api import UnitReport
from qconvd_ggml.cuda.arithmetic import Tensor


def report(x: Tensor, y: Tensor) -> UnitReport:
    """`x` are weights, float32, `y` what a reader will see in their place. Fetches six numbers from the device, at once."""
    e = (y - x).to(torch.float64)
    known = x.isfinite()
    counted = known & e.isfinite()
    squares, v = torch.where(counted, e * e, 0.0), torch.where(counted, x, 0.0).to(torch.float64)
    most = squares.amax() if squares.numel() else squares.sum()
    figures = (squares.sum(), (v * v).sum(), most, known.sum() - counted.sum(), x.isnan().sum(), x.isinf().sum())
    error, square, largest, overflows, nan, inf = torch.stack([f.to(torch.float64) for f in figures]).tolist()
    counts = {"overflows": int(overflows), "nan": int(nan), "inf": int(inf)}
    return UnitReport(x.numel(), error, square, math.sqrt(largest), **counts)
