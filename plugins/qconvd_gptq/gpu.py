"""The solver in torch, for a GPU: the algorithm of solve.py, in the same order, in whatever torch's kernels round to.

Held to an error, not to bytes: tr((W - Q) H (W - Q)^T) is within 1 % of the CPU's. Nothing here was measured on a GPU yet, so
`device: auto` never chooses it.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch

from qconvd.api import Array, Hessian, QconvdError, Unit, UnitReport, as_float32
from qconvd_gptq.encoder import GptqEncoder, grid_of
from qconvd_gptq.kernels.grid import GRID, SHRINKS
from qconvd_gptq.solve import WIDEST, ActOrder, Grid, Solved, check_columns, column_order

Tensor: TypeAlias = Any
BLOCK = 128
"""Columns that are solved one by one between two matrix products."""


class GpuEncoder(GptqEncoder):
    """As `GptqEncoder`; what is only copied, and packing, stay on the CPU."""

    def __init__(self, device: Any) -> None:
        self._device = device

    def _solved(self, unit: Unit, x: Array, hessian: Hessian | None) -> Solved:
        grid, o = grid_of(unit), unit.options
        w = torch.from_numpy(as_float32(np.ascontiguousarray(x), unit.inputs[0].dtype)).to(self._device)
        if hessian is None:
            return nearest(w, grid)
        return solve(w, hessian, grid, order=o["order"], damp=o["damp_percent"], where=unit.id)


class _Factor(NamedTuple):
    columns: Tensor
    ratio: Tensor
    pivots: Tensor
    damp: float


def nearest(w: Tensor, grid: Grid) -> Solved:
    """Round `w`, float32 (rows, columns) on any device, to the nearest point of its group's grid."""
    order = torch.arange(w.shape[1] - 1, -1, -1, device=w.device)
    return _solved(w, grid, _Factor(order, None, None, 0.0), dynamic=False)


def solve(
    w: Tensor, hessian: Hessian, grid: Grid, *, order: ActOrder = "static", damp: float = 0.01, where: str = ""
) -> Solved:
    """`solve.solve` for `w`, float32 (rows, columns) on any device."""
    check_columns(hessian, w.shape[1], where)
    dynamic, by = column_order(order, grid)
    made = hessian.once(("gptq", str(w.device), by, damp), lambda: _factor(hessian, by == "activation", damp, w.device, where))
    return _solved(w, grid, made, dynamic=dynamic)


def _factor(hessian: Hessian, sort: bool, damp: float, device: Any, where: str) -> _Factor:
    h = torch.from_numpy(np.array(hessian.array)).to(device)
    if not torch.isfinite(h).all():
        raise QconvdError("the activations that calibration saw are not finite (NaN or infinite)", where=where)
    diagonal = h.diagonal()
    solved = torch.argsort(-diagonal, stable=True) if sort else torch.arange(len(h), device=device)
    columns = solved.flip(0)
    dead = torch.nonzero(diagonal[columns] <= 0)[:, 0]
    mean = diagonal.double().mean().item() or 1.0
    while True:
        flipped = h[columns][:, columns]
        flipped.diagonal().add_(damp * mean)
        flipped[dead, dead] = mean
        lower, failed = torch.linalg.cholesky_ex(flipped)
        if not failed.item() and torch.isfinite(lower.diagonal()).all():
            break
        if damp >= 1:
            raise QconvdError(f"the Hessian cannot be factored, even with {damp:g} of its mean diagonal added", where=where)
        damp = min(1.0, max(10 * damp, 1e-3))
    pivots = lower.diagonal().clone()
    return _Factor(columns, lower / pivots, pivots**2, damp)


def _solved(w: Tensor, grid: Grid, made: _Factor, *, dynamic: bool) -> Solved:
    """Positions count columns from the one that is solved last, as in factor.py."""
    rows, columns = w.shape
    width, most = grid.width(columns), 2**grid.bits - 1
    nan, inf = int(torch.isnan(w).sum()), int(torch.isinf(w).sum())
    e = torch.nan_to_num(w, 0.0, 0.0, 0.0).T[made.columns].contiguous()
    square = float(e.double().square().sum())
    group = ((columns - 1 - torch.arange(columns, device=w.device)) if dynamic else made.columns) // width
    limit = e.abs().amax(0) * WIDEST if dynamic else torch.full((rows,), torch.inf, device=w.device)
    scale, zero = (torch.empty((grid.groups(columns), rows), device=w.device) for _ in range(2))
    codes = torch.empty((columns, rows), dtype=torch.uint8, device=w.device)
    if not dynamic:
        for g in range(len(scale)):
            scale[g], zero[g] = _find(e[group == g], grid, limit)
    output_error = torch.zeros((), dtype=torch.float64, device=w.device)
    which = group.tolist()
    block = max(width, BLOCK // width * width) if dynamic else BLOCK
    for end in range(columns, 0, -block):
        start = max(0, end - block)
        x = e[start:end].clone()
        if made.ratio is not None and end < columns:
            x += made.ratio[end:, start:end].T @ e[end:]
        for i in range(end - 1, start - 1, -1):
            g = which[i]
            if dynamic and (i == columns - 1 or which[i + 1] != g):
                low = max(0, i + 1 - width)
                ahead = x[low - start : i + 1 - start]
                if i < columns - 1:
                    moved = made.ratio[low : i + 1, low : i + 1].T
                    ahead = e[low : i + 1] + torch.linalg.solve_triangular(moved, ahead - e[low : i + 1], upper=True)
                scale[g], zero[g] = _find(ahead, grid, limit)
            value = x[i - start]
            q = torch.clamp(torch.round(value / scale[g]) + zero[g], 0, most)
            y = (q - zero[g]) * scale[g]
            codes[i] = q.to(torch.uint8)
            e[i] -= y
            if made.ratio is not None:
                output_error += (value - y).double().square().sum() * made.pivots[i]
                x[: i - start] += made.ratio[i, start:i, None] * e[i]
    order = made.columns.cpu().numpy()
    placed = np.empty((columns, rows), np.uint8)
    placed[order] = codes.cpu().numpy()
    g_idx = np.empty(columns, np.int32)
    g_idx[order] = which
    overflows = int(((scale >= 65504)[group] & (e.abs() > scale[group])).sum())
    error = (float(e.double().square().sum()), square, float(e.abs().max()), overflows, 0, nan, inf)
    halves, zeros = scale.cpu().numpy().astype(np.float16), zero.cpu().numpy().astype(np.uint8)
    return Solved(placed, halves, zeros, g_idx, UnitReport(w.numel(), *error), float(output_error), made.damp)


def _find(x: Tensor, grid: Grid, limit: Tensor) -> tuple[Tensor, Tensor]:
    """Scales and zero points of a group, (columns of it, rows)."""
    low, high = x.amin(0).clamp(max=0), x.amax(0).clamp(min=0)
    if grid.symmetric:
        high = torch.maximum(high, -low)
        low = -high
    low, high = torch.maximum(low, -limit), torch.minimum(high, limit)
    scale, zero = _grid(low, high, grid)
    if not grid.norm:
        return scale, zero
    best = torch.full_like(scale, torch.inf)
    for shrink in range(SHRINKS):
        p = 1 - shrink / GRID
        s, z = _grid(p * low, p * high, grid)
        q = torch.clamp(torch.round(x / s) + z, 0, 2**grid.bits - 1)
        error = (x - (q - z) * s).abs().pow(grid.norm).sum(0)
        better = error < best
        best, scale, zero = torch.where(better, error, best), torch.where(better, s, scale), torch.where(better, z, zero)
    return scale, zero


def _grid(low: Tensor, high: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    most = 2**grid.bits - 1
    scale = torch.where(high > low, _half((high - low) / most), 2.0**-14)
    if grid.symmetric:
        return scale, torch.full_like(scale, 2 ** (grid.bits - 1))
    zero = torch.clamp(torch.round(-low / scale), 0, most)
    raised = _half(torch.maximum(high / (most - grid.lowest_zero), scale))
    return torch.where(zero < grid.lowest_zero, raised, scale), zero.clamp(min=grid.lowest_zero)


def _half(x: Tensor) -> Tensor:
    return x.clamp(2.0**-24, 65504).to(torch.float16).to(torch.float32)
