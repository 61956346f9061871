"""Weights to a device and bytes back, for encoders: numpy in, numpy out.

Staging belongs into the engine, which today hands every encoder numpy arrays; when it hands torch tensors to those of a GPU,
this module goes. A slot is a stream with pinned buffers of its own, PIECE weights large whatever the chunk is, so that what
lies on the device does not grow with the tensor, and one slot's copies may run beside another's kernels.
"""

from __future__ import annotations

import queue
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from qconvd.api import UnitReport, row_bytes, storage
from qconvd_ggml.cuda import PIECE, SLOTS
from qconvd_ggml.cuda.encode import encode

_HELD = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}


class Staging:
    """Slots of one device. Thread-safe: more threads than slots take turns."""

    def __init__(self, device: torch.device, slots: int = SLOTS, piece: int = PIECE) -> None:
        self._piece = piece
        self._free: queue.SimpleQueue[_Slot] = queue.SimpleQueue()
        for _ in range(slots):
            self._free.put(_Slot(device, piece))

    def encode(self, dtype: str, x: NDArray[Any], source_dtype: str) -> tuple[NDArray[np.uint8], UnitReport]:
        """What `kernels.encode` does, on the device, without an importance matrix: `x` and what is returned are as there."""
        block, size = storage(dtype)
        out = np.empty((x.shape[0], row_bytes(dtype, x.shape[1])), np.uint8)
        weights, data, report = x.reshape(-1, block), out.reshape(-1, size), UnitReport()
        step = max(1, self._piece // block)
        slot = self._free.get()
        try:
            for first in range(0, len(weights), step):
                report += slot.encode(dtype, weights[first : first + step], source_dtype, data[first : first + step])
        finally:
            self._free.put(slot)
        return out, report


class _Slot:
    """A stream, and room for one piece on its way in and out."""

    def __init__(self, device: torch.device, piece: int) -> None:
        self._device = device
        self._real = device.type == "cuda"
        self._stream = torch.cuda.Stream(device) if self._real else None
        # No type takes more bytes than F32, in which a piece may come.
        self._in, self._out = (torch.empty(4 * piece, dtype=torch.uint8, pin_memory=self._real) for _ in range(2))

    def encode(self, dtype: str, x: NDArray[Any], source_dtype: str, out: NDArray[np.uint8]) -> UnitReport:
        waiting = self._in[: x.nbytes]
        waiting.numpy()[:] = np.ascontiguousarray(x).reshape(-1).view(np.uint8)
        with torch.cuda.stream(self._stream) if self._stream else nullcontext():
            there = waiting.to(self._device, non_blocking=True).view(_HELD[source_dtype]).view(x.shape)
            data, report = encode(dtype, there)
            back = self._out[: out.nbytes]
            back.copy_(data.reshape(-1), non_blocking=True)
        if self._stream:
            self._stream.synchronize()
        out.reshape(-1)[:] = back.numpy()
        return report
