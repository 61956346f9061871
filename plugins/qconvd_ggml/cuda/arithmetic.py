"""float32 arithmetic in torch that rounds as the CPU kernels do, on any device.

torch rounds each operation by itself, except that it divides by a Python number by multiplying with its reciprocal, and divides
a number by a tensor likewise. So quotients are taken of two tensors here.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import torch

Tensor: TypeAlias = Any
_MAGIC = 12582912.0
"""1.5 * 2^23: added to a float32 below 2^22, it leaves no bits for a fraction."""


def quotient(a: Tensor | float, b: Tensor | float, like: Tensor) -> Tensor:
    """a / b, rounded once, with numbers taken as float32 on the device of `like`."""
    return torch.div(_single(a, like), _single(b, like))


def _single(value: Tensor | float, like: Tensor) -> Tensor:
    if isinstance(value, torch.Tensor):
        return value
    return torch.full((), value, dtype=torch.float32, device=like.device).expand(like.shape)


def nearest_int(value: Tensor) -> Tensor:
    """ggml's nearest_int, as int32: ties to even; for what is not below 2^22 in magnitude, whatever its bits say."""
    return ((value + _MAGIC).view(torch.int32) & 0x7FFFFF) - 0x400000


def whole(value: Tensor) -> Tensor:
    """float32 to int32 towards zero, with 0 for what does not fit and for NaN."""
    return torch.where(value.abs() < 2.0**31, value, 0.0).to(torch.int32)


def first_where(x: Tensor, holds: Tensor) -> Tensor:
    """Along the last axis, the first number for which `holds`: of equal ones, and of zeros of both signs, that decides."""
    places = torch.arange(x.shape[-1], device=x.device).expand(x.shape)
    first = torch.where(holds, places, x.shape[-1] - 1).amin(-1, keepdim=True)
    return x.gather(-1, first).squeeze(-1)


def first_largest(x: Tensor) -> tuple[Tensor, Tensor]:
    """Along the last axis, the largest magnitude and the first number that has it: +0 if all are zero or NaN."""
    known = torch.where(x.isnan(), 0.0, x)
    magnitude = known.abs()
    most = magnitude.amax(-1)
    return most, torch.where(most > 0, first_where(known, magnitude == most.unsqueeze(-1)), 0.0)


def halves(value: Tensor) -> tuple[Tensor, Tensor]:
    """float32 rounded to halves: their two bytes along a new last axis, and the float32 that they stand for."""
    rounded = value.to(torch.float16)
    return rounded.contiguous().view(torch.uint8).reshape(*value.shape, 2), rounded.to(torch.float32)
