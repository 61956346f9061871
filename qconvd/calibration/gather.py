"""Statistics of what groups of linears are fed, added up batch by batch while a layer runs."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from qconvd.calibration.bfloat16 import add_products, multiplies_bfloat16
from qconvd.calibration.experts import observed
from qconvd.calibration.trace import LayerTrace
from qconvd.engine.plan import StatKind

PANEL = 256
"""Rows of X^T X that are made at once: only what lies above the diagonal is multiplied, and nearly half is saved."""


class Sum:
    """What one group of linears was fed: float32 sums."""

    def __init__(self, columns: int, kinds: Collection[StatKind], device: torch.device) -> None:
        self.tokens = 0
        self._products = torch.zeros(columns, columns, device=device) if "hessian" in kinds else None
        # In 64 bits, for there may be millions of tokens.
        self._squares = torch.zeros(columns, dtype=torch.float64, device=device) if "mean_square" in kinds else None

    def add(self, x: torch.Tensor) -> None:
        """`x` is (…, columns)."""
        rows = x.reshape(-1, x.shape[-1])
        self.tokens += len(rows)
        if self._squares is not None:
            for some in rows.split(PANEL):  # in parts, for they are computed in copies of twice or four times the width
                self._squares += some.float().square().sum(0)
        if self._products is None:
            return
        if rows.dtype == torch.bfloat16 and rows.device.type == "cpu" and multiplies_bfloat16():
            add_products(rows, self._products)
            return
        rows = rows.float()
        for start, end in _panels(len(self._products)):
            torch.addmm(
                self._products[start:end, start:], rows[:, start:end].T, rows[:, start:], out=self._products[start:end, start:]
            )

    def products(self) -> NDArray[np.float32]:
        """X^T X, (columns, columns), exactly symmetric. To be called once."""
        assert self._products is not None
        whole: NDArray[np.float32] = self._products.cpu().numpy()
        for start, end in _panels(len(whole)):
            corner = whole[start:end, start:end]
            corner[:] = np.triu(corner) + np.triu(corner, 1).T
            whole[end:, start:end] = whole[start:end, end:].T
        return whole

    def mean_squares(self) -> NDArray[np.float32]:
        """(columns,); ones if there was no token, as llama-quantize takes what was never used."""
        assert self._squares is not None
        if not self.tokens:
            return np.ones(len(self._squares), np.float32)
        return np.asarray((self._squares / self.tokens).float().cpu().numpy())

    @property
    def finite(self) -> bool:
        held = self._products.diagonal() if self._products is not None else self._squares
        return held is None or bool(held.isfinite().all())


class Gathering:
    """A context in which running a layer adds to the sums of some of its groups."""

    def __init__(self, trace: LayerTrace, wanted: Mapping[int, Collection[StatKind]], device: torch.device) -> None:
        self.sums = {group: Sum(trace.columns[group], kinds, device) for group, kinds in wanted.items()}
        self._trace = trace
        self._handles: list[Any] = []

    def __enter__(self) -> Gathering:
        for group, module in self._trace.leaders.items():
            if group in self.sums:
                self._handles.append(module.register_forward_pre_hook(self._hook(group)))
        for fused, first in self._trace.fused.items():
            fused.forward = observed(fused, first, self._see)
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        for fused in self._trace.fused:
            fused.__dict__.pop("forward")

    def _hook(self, group: int) -> Any:
        return lambda _, args: self._see(group, args[0])

    def _see(self, group: int, x: torch.Tensor) -> None:
        if group in self.sums:
            self.sums[group].add(x)


def _panels(columns: int) -> list[tuple[int, int]]:
    # Narrow ones for narrow matrices: with one panel nothing would be saved.
    panel = PANEL if columns >= 4 * PANEL else PANEL // 2
    return [(start, min(start + panel, columns)) for start in range(0, columns, panel)]
