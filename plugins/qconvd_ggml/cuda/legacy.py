"""Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0 in plain torch: a few operations per weight, so the bus decides, not the arithmetic.

The algorithms are those of the package's legacy.py, step by step. Each function takes float32 of shape (blocks, 32) and returns
the bytes, uint8 of shape (blocks, bytes), and the weights as a reader will see them.
"""

from __future__ import annotations

import torch

from qconvd_ggml.cuda.arithmetic import Tensor, first_largest, first_where, halves, quotient, whole

_HUGE = 3.4028234663852886e38


def q4_0(x: Tensor) -> tuple[Tensor, Tensor]:
    return _around_zero(x, 4)


def q5_0(x: Tensor) -> tuple[Tensor, Tensor]:
    return _around_zero(x, 5)


def q4_1(x: Tensor) -> tuple[Tensor, Tensor]:
    return _above_minimum(x, 4)


def q5_1(x: Tensor) -> tuple[Tensor, Tensor]:
    return _above_minimum(x, 5)


def q8_0(x: Tensor) -> tuple[Tensor, Tensor]:
    magnitude, _ = first_largest(x)
    full = quotient(magnitude, 127.0, magnitude)
    d16, d = halves(full)
    scaled = x * _inverse(full)
    size = scaled.abs()
    q = whole(size)
    q = torch.where(size < 2.0**31, q + (size - q.to(torch.float32) >= 0.5).to(torch.int32), 0)
    q = torch.where(scaled < 0, -q, q).to(torch.int8)
    return torch.cat((d16, q.view(torch.uint8)), 1), d.unsqueeze(-1) * q.to(torch.float32)


def _around_zero(x: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    half = 1 << (bits - 1)
    _, signed = first_largest(x)
    full = quotient(signed, float(-half), signed)
    d16, d = halves(full)
    q = whole(x * _inverse(full) + (half + 0.5)).clamp_(max=2 * half - 1)
    data = torch.cat((d16, *_packed(q.to(torch.uint8), bits)), 1)
    return data, d.unsqueeze(-1) * (q - half).to(torch.float32)


def _above_minimum(x: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    top = (1 << bits) - 1
    least = torch.where(x.isnan(), _HUGE, x).clamp(max=_HUGE)
    low = first_where(least, least == least.amin(-1, keepdim=True))
    most = torch.where(x.isnan(), -_HUGE, x).clamp(min=-_HUGE)
    high = first_where(most, most == most.amax(-1, keepdim=True))
    full = quotient(high - low, float(top), low)
    d16, d = halves(full)
    m16, m = halves(low)
    q = whole((x - low.unsqueeze(-1)) * _inverse(full) + 0.5).clamp_(max=top)
    data = torch.cat((d16, m16, *_packed(q.to(torch.uint8), bits)), 1)
    return data, d.unsqueeze(-1) * q.to(torch.float32) + m.unsqueeze(-1)


def _inverse(d: Tensor) -> Tensor:
    return torch.where(d != 0, quotient(1.0, d, d), 0.0).unsqueeze(-1)


def _packed(q: Tensor, bits: int) -> tuple[Tensor, ...]:
    """Four bytes of fifth bits, if there are any, then 16 of nibbles: low ones of the first half, high ones of the second."""
    nibbles = (q[:, :16] & 15) | (q[:, 16:] & 15) << 4
    if bits == 4:
        return (nibbles,)
    places = torch.arange(8, dtype=torch.uint8, device=q.device)
    fifth = ((q >> 4 & 1).view(-1, 4, 8) << places).sum(-1, dtype=torch.uint8)
    return fifth, nibbles
