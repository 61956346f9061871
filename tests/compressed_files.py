"""Artifacts of compressed-tensors and bitsandbytes as weights again, by code that is independent of qconvd's."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from compressed_models import FP4, NF4, dynamic_map


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor that a model would have, quantized ones as float32 of what is stored."""
    stored: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        stored |= load_file(path)
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    found, modules = {}, set()
    for name in stored:
        for ending in (".weight_scale", ".SCB", ".weight.absmax"):
            if name.endswith(ending):
                modules.add(name.removesuffix(ending))
    for module in modules:
        parts = {k[len(module) + 1 :]: v for k, v in stored.items() if k.startswith(f"{module}.") and not k.endswith(".bias")}
        found[f"{module}.weight"] = (
            _bitsandbytes(parts) if config["quant_method"] == "bitsandbytes" else _compressed(parts, config)
        )
    rest = {k: v for k, v in stored.items() if k.endswith(".bias") or not any(k.startswith(f"{m}.") for m in modules)}
    return rest | found


def _compressed(parts: dict[str, torch.Tensor], config: dict) -> torch.Tensor:
    arguments = config["config_groups"]["group_0"]["weights"]
    scale = parts["weight_scale"].float()
    if "weight_packed" not in parts:
        codes = parts["weight"].float()
        if arguments["strategy"] == "block":
            scale = scale.repeat_interleave(128, 0)[: len(codes)].repeat_interleave(128, 1)[:, : codes.shape[1]]
        return codes * scale
    bits, columns = arguments["num_bits"], int(parts["weight_shape"][1])
    codes = _unpacked(parts["weight_packed"], bits)
    zeros = torch.zeros(scale.shape)
    if "weight_zero_point" in parts:
        zeros = _unpacked(parts["weight_zero_point"].T.contiguous(), bits).T
    width = columns // scale.shape[1]
    return (codes - zeros.repeat_interleave(width, 1)) * scale.repeat_interleave(width, 1)


def _unpacked(words: torch.Tensor, bits: int) -> torch.Tensor:
    """(rows, words) int32 as (rows, values), low bits first, each less half its range."""
    raw = words.numpy().view(np.uint8)
    if bits == 4:
        raw = np.stack([raw & 15, raw >> 4], axis=-1).reshape(len(raw), -1)
    return torch.from_numpy(raw.astype(np.float32)) - 2 ** (bits - 1)


def _bitsandbytes(parts: dict[str, torch.Tensor]) -> torch.Tensor:
    if "SCB" in parts:
        return parts["weight"].float() * parts["SCB"][:, None] / 127
    key = next(k for k in parts if "quant_state" in k)
    state = json.loads(bytes(parts[key].tolist()).decode())
    table = torch.tensor(NF4 if state["quant_type"] == "nf4" else FP4)
    assert torch.allclose(parts["weight.quant_map"], table, rtol=1e-6)
    packed = parts["weight"].reshape(-1).int()
    rows, columns = state["shape"]
    values = table[torch.stack([packed >> 4, packed & 15], 1).reshape(-1)][: rows * columns]
    largest = parts["weight.absmax"]
    if "nested_offset" in state:
        numbers = torch.tensor(dynamic_map())
        assert torch.allclose(parts["weight.nested_quant_map"], numbers, rtol=1e-5)
        largest = (
            numbers[largest.int()] * parts["weight.nested_absmax"].repeat_interleave(256)[: len(largest)]
            + state["nested_offset"]
        )
    return (values * largest.repeat_interleave(64)[: len(values)]).reshape(rows, columns)
