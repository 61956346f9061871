"""Mixtures of experts: what each expert of a fused module is fed.

transformers 5 keeps the experts of a layer as two parameters of three axes, which no hook on a linear sees. The arithmetic here
is that of the classes named below; any other class is refused, for its experts might compute something else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import nn

VERIFIED = frozenset({
    "MixtralExperts", "Qwen2MoeExperts", "Qwen3MoeExperts", "DeepseekV2Experts", "DeepseekV3Experts", "GraniteMoeExperts",
    "GraniteMoeSharedExperts",
})  # fmt: skip
"""transformers' classes that the tests hold this against."""

See: TypeAlias = Callable[[int, torch.Tensor], None]
"""Told of rows that a group of linears is fed: (group, (tokens, columns))."""


def is_fused(module: nn.Module) -> bool:
    """Whether a module holds experts as parameters of three axes."""
    return any(p.ndim == 3 and name.endswith("_proj") for name, p in module.named_parameters(recurse=False))


def experts_of(module: Any) -> int:
    return int(module.down_proj.shape[0])


def group_of(first: int, expert: int, linear: str) -> int:
    """The group of an expert's linears: two for each, that of `gate_up_proj` and that of `down_proj`."""
    return first + 2 * expert + (linear == "down_proj")


def observed(module: Any, first: int, see: See) -> Callable[..., torch.Tensor]:
    """The forward pass of a fused module that tells what each expert is fed. `first`: its first group."""

    def forward(hidden: torch.Tensor, index: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        # (tokens, hidden), and for each token the chosen experts and their weights, (tokens, k).
        out = torch.zeros_like(hidden)
        if hidden.is_meta:
            return out
        for expert in range(experts_of(module)):
            token, choice = torch.where(index == expert)
            if not token.numel():
                continue
            x = hidden[token]
            see(group_of(first, expert, "gate_up_proj"), x)
            gate, up = nn.functional.linear(x, module.gate_up_proj[expert]).chunk(2, dim=-1)
            inner = module.act_fn(gate) * up
            see(group_of(first, expert, "down_proj"), inner)
            given = nn.functional.linear(inner, module.down_proj[expert]) * weight[token, choice, None]
            out.index_add_(0, token, given.to(out.dtype))
        return out

    return forward
