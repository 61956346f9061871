"""What a GPTQ checkpoint's tensors stand for, and how far that may be from the model. Shares nothing with solver and packer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qconvd.api import Array, Buffer, Unit
from qconvd_gptq.solve import WIDEST


def unpacked(words: NDArray[np.uint32], bits: int) -> NDArray[np.uint8]:
    """(k * bits / 32, n) words as (k, n) values: the words of a column are one little-endian stream of bits."""
    if bits == 3:
        stream = np.unpackbits(np.ascontiguousarray(words.T).view(np.uint8), axis=1, bitorder="little")
        values = np.packbits(stream.reshape(len(stream), -1, bits), axis=2, bitorder="little")[..., 0]
        return np.ascontiguousarray(values.T)
    out = np.empty((len(words), 32 // bits, words.shape[1]), np.uint8)
    for i in range(32 // bits):
        out[:, i] = words >> np.uint32(bits * i) & np.uint32(2**bits - 1)
    return out.reshape(-1, words.shape[1])


def decode(unit: Unit, data: Sequence[Buffer]) -> Array:
    """The four tensors of a linear as float32 (rows, columns)."""
    rows, columns = unit.shape
    bits, less = int(unit.options["bits"]), 1 if unit.options["checkpoint_format"] == "gptq" else 0
    qweight, qzeros = (np.frombuffer(d, "<u4") for d in data[:2])
    scales = np.frombuffer(data[2], "<f2").astype(np.float32).reshape(-1, rows)
    g_idx = np.frombuffer(data[3], "<i4")
    codes = unpacked(qweight.reshape(-1, rows), bits)
    zeros = unpacked(np.ascontiguousarray(qzeros.reshape(len(scales), -1).T), bits).T.astype(np.float32) + less
    values = (codes.astype(np.float32) - zeros[g_idx]) * scales[g_idx]
    return np.ascontiguousarray(values.T).reshape(rows, columns)


def bound(unit: Unit, x: Array) -> Array:
    """How far a weight may be from the model's.

    Rounded to nearest, or with groups whose grid is that of the original weights: a grid spans its group's range, and a decoded
    weight cannot leave it, so the range (half a step, if rounded to nearest) is the bound. Where grids are found while columns
    are solved, the range is that of the whole row times what the solver allows.
    """
    options: Mapping[str, Any] = unit.options
    bits, width = int(options["bits"]), int(options["group_size"])
    steps = 2.0**bits - 1
    w = np.nan_to_num(x.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    if options["method"] == "gptq" and options["order"] in ("none", "desc_act") and width < w.shape[1]:
        widest = np.abs(w).max(axis=1, keepdims=True) * WIDEST * 2
        return np.broadcast_to(np.abs(w) + widest * 1.01 + steps * 2.0**-14, w.shape).astype(np.float32)
    step = np.empty_like(w)
    for first in range(0, w.shape[1], width):
        group = w[:, first : first + width]
        low, high = np.minimum(group.min(axis=1), 0), np.maximum(group.max(axis=1), 0)
        if options["sym"]:
            high = np.maximum(high, -low)
            low = -high
        # A zero point that had to be raised leaves a step less above zero.
        fewer = 0 if options["sym"] or options["checkpoint_format"] == "gptq_v2" else 1
        wide = np.where(high > low, (high - low) / (steps - fewer), 2.0**-14)
        step[:, first : first + width] = np.maximum(wide, 2.0**-24)[:, None] * (1 + 2.0**-10)
    # A scale beyond float16 is its largest number, and what is beyond the grid then is reported as an overflow.
    step = np.where(step > 65504, np.inf, step)
    whole = options["method"] == "gptq" or options["mse"]
    return (step * (steps + 1 if whole else 0.5001 + steps * 2.0**-11)).astype(np.float32)
