"""Q2_K to Q6_K: the searches of search.py, and what follows them, in plain torch.

What follows is bound by memory, a few numbers per weight, and torch rounds every operation by itself: no contraction. Steps
and their order are those of ggml's quantize_row_q*_K_ref (ggml-quants.c), as the CPU kernels take them. Each function takes
float32 of shape (super-blocks, 256) and returns the bytes, uint8 of shape (super-blocks, bytes), and the weights as a reader
will see them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import triton

from qconvd_ggml.cuda import search
from qconvd_ggml.cuda.arithmetic import Tensor, first_largest, halves, nearest_int, quotient, whole
from qconvd_ggml.cuda.k_layout import high_bits, pack_2, pack_4, pack_6, pack_scales_3, pack_scales_45

LEAST = 1e-15
"""Sub-blocks below this count as zero (ggml's GROUP_MAX_EPS)."""
_SINGLE = np.float32


def q2_k(x: Tensor) -> tuple[Tensor, Tensor]:
    scale, minimum, d, m, q, y = _affine(x, 16, 3, 15, 255, least=-0.5, steps=15, MAGNITUDES=True)
    return torch.cat((scale | minimum << 4, pack_2(q), d, m), 1), y


def q4_k(x: Tensor) -> tuple[Tensor, Tensor]:
    scale, minimum, d, m, q, y = _affine(x, 32, 15, 63, 63, least=-1.0, steps=20, MAGNITUDES=False)
    return torch.cat((d, m, pack_scales_45(scale, minimum), pack_4(q)), 1), y


def q5_k(x: Tensor) -> tuple[Tensor, Tensor]:
    scale, minimum, d, m, q, y = _affine(x, 32, 31, 63, 63, least=-0.5, steps=15, MAGNITUDES=False)
    return torch.cat((d, m, pack_scales_45(scale, minimum), high_bits(q, 4), pack_4(q)), 1), y


def _affine(
    x: Tensor, width: int, top: int, scale_top: int, cap: int, *, least: float, steps: int, **kind: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(scales, minimums, bytes of the two scales of the super-block, levels, weights as read)."""
    numerators = _SINGLE(least) + _SINGLE(0.1) * np.arange(steps + 1, dtype=_SINGLE) + _SINGLE(top)
    found = _searched(search.affine, x, width, numerators, 4, TOP=top, **kind)
    scale, low, kept, shift = (part.view(-1, 256 // width) for part in found)
    chosen, d16, d = _rounded(scale, scale_top, cap)
    chosen_low, m16, m = _rounded(-low, scale_top, cap)
    grouped = x.view(-1, 256 // width, width)
    d, m, kept, shift = (part.unsqueeze(-1) for part in (d, m, kept, shift))
    again = nearest_int(torch.div(grouped + m, d))
    q = torch.where(d != 0, again, nearest_int(kept * (grouped - shift))).clamp_(0, top)
    return chosen, chosen_low, d16, m16, _bytes(q), (d * q.to(torch.float32) - m).view_as(x)


def _rounded(values: Tensor, top: int, cap: int) -> tuple[Tensor, Tensor, Tensor]:
    """Numbers of a super-block as levels 0 … top of the largest: levels, bytes of the scale, numbers as read."""
    most = torch.where(values > 0, values, 0.0).amax(-1)
    inverse = torch.where(most > 0, quotient(float(top), most, most), 0.0).unsqueeze(-1)
    scale16, scale = halves(quotient(most, float(top), most))
    chosen = (nearest_int(inverse * values) & 255).clamp_(max=cap)
    # What a level above the highest leaves in its four or six bits is what a reader sees.
    return chosen.to(torch.uint8), scale16, scale.unsqueeze(-1) * (chosen & top).to(torch.float32)


def q3_k(x: Tensor) -> tuple[Tensor, Tensor]:
    transposed = _transposed(x, 16)
    lanes = transposed.shape[1]
    found, levels = (torch.empty(n, lanes, dtype=torch.float32, device=x.device) for n in (3, 16))
    _launch(search.improved, lanes, transposed, lanes, found, levels, WIDTH=16, HALF=4)
    xq, qq, magnitude = found.view(3, -1, 16)
    searched = magnitude >= LEAST
    scale = torch.where((qq > 0) & searched, torch.div(xq, qq), 0.0)
    most, signed = first_largest(scale)
    inverse = quotient(-32.0, signed, signed)
    unit16, unit = halves(torch.where(most > 0, quotient(1.0, inverse, inverse), 0.0))
    near = nearest_int(inverse.unsqueeze(-1) * scale).clamp_(-32, 31) + 32
    chosen = torch.where(most.unsqueeze(-1) > 0, near, 0)
    d = (unit.unsqueeze(-1) * (chosen - 32).to(torch.float32)).unsqueeze(-1)
    kept = torch.where(searched.unsqueeze(-1), levels.t().reshape(-1, 16, 16).to(torch.int32), -4)
    again = nearest_int(torch.div(x.view(-1, 16, 16), d)).clamp_(-4, 3)
    q = torch.where(d != 0, again, kept)
    packed = _bytes(q + 4)
    data = torch.cat((high_bits(packed, 2), pack_2(packed), pack_scales_3(chosen.to(torch.uint8)), unit16), 1)
    return data, (d * q.to(torch.float32)).view_as(x)


def q6_k(x: Tensor) -> tuple[Tensor, Tensor]:
    candidates = np.array([k for k in range(-9, 10) if k], _SINGLE)
    found = _searched(search.symmetric, x, 16, -(_SINGLE(32) + _SINGLE(0.1) * candidates), 3, HALF=32)
    scale, kept, magnitude = (part.view(-1, 16) for part in found)
    searched = magnitude >= LEAST
    scale = torch.where(searched, scale, 0.0)
    most, signed = first_largest(scale)
    alive = (most >= LEAST).unsqueeze(-1)
    inverse = quotient(-128.0, signed, signed)
    half16, half = halves(torch.where(alive.squeeze(-1), quotient(1.0, inverse, inverse), 0.0))
    chosen = torch.where(alive, whole(torch.round(inverse.unsqueeze(-1) * scale)).clamp_(max=127), 0).to(torch.int8)
    d = half.unsqueeze(-1) * chosen.to(torch.float32)
    live = (alive & (searched | (d != 0))).unsqueeze(-1)
    d, grouped = d.unsqueeze(-1), x.view(-1, 16, 16)
    # A number that is none becomes -32, as on the CPU.
    near = torch.round(torch.nan_to_num(grouped * kept.unsqueeze(-1), nan=-32.0)).clamp_(-32, 31).to(torch.int32)
    q = torch.where(d != 0, nearest_int(torch.div(grouped, d)).clamp_(-32, 31), near)
    packed = torch.where(live, q + 32, 0)
    data = torch.cat((pack_6(_bytes(packed)), chosen.view(torch.uint8), half16), 1)
    return data, (d * q.to(torch.float32)).view_as(x)


def _bytes(q: Tensor) -> Tensor:
    return q.to(torch.uint8).view(-1, 256)


def _transposed(x: Tensor, width: int) -> Tensor:
    return x.view(-1, width).t().contiguous()


def _searched(kernel: Any, x: Tensor, width: int, numerators: Any, results: int, **constants: Any) -> Tensor:
    """What a search over sub-blocks of `width` weights finds: (results, sub-blocks)."""
    transposed = _transposed(x, width)
    lanes = transposed.shape[1]
    tries = torch.tensor(numerators, device=x.device)
    found = torch.empty(results, lanes, dtype=torch.float32, device=x.device)
    _launch(kernel, lanes, transposed, lanes, tries, found, COUNT=len(numerators), WIDTH=width, **constants)
    return found


def _launch(kernel: Any, lanes: int, *arguments: Any, **constants: Any) -> None:
    if lanes:
        kernel[(triton.cdiv(lanes, search.LANES),)](*arguments, **constants, LANES=search.LANES, **search.OPTIONS)
