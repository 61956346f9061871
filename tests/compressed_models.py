"""Models and numbers for the tests of int8, int4 and fp8."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from qconvd.api import FileInfo, ModelInfo, TensorInfo
from qconvd.dtypes import ELEMENT_BYTES

NF4 = [-1.0, -0.6961928, -0.52507305, -0.39491749, -0.28444138, -0.18477343, -0.091050036, 0.0,
       0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0]  # fmt: skip
FP4 = [x / 12 for x in (0, 0.0625, 8, 12, 4, 6, 2, 3, 0, -0.0625, -8, -12, -4, -6, -2, -3)]
SIDE = ("config.json", "tokenizer.json", "generation_config.json", "model.safetensors.index.json")


def dynamic_map() -> list[float]:
    """bitsandbytes' 8-bit numbers, from their description."""
    found = [0.0, 1.0]
    for i in range(7):
        for k in range(2**i):
            number = 10.0 ** (i - 6) * (0.1 + 0.9 * (2 * k + 1) / 2 ** (i + 1))
            found += [number, -number]
    return sorted(found)


def headers(
    tensors: Mapping[str, tuple[int, ...]],
    dtype: str = "BF16",
    config: Mapping[str, Any] | None = None,
    kind: str = "safetensors",
) -> ModelInfo:
    """A model that exists only as headers."""
    placed, offset = {}, 100
    for name, shape in tensors.items():
        nbytes = prod(shape) * ELEMENT_BYTES[dtype]
        placed[name] = TensorInfo(name, dtype, shape, "model.safetensors", offset, nbytes)
        offset += nbytes
    files = [FileInfo("model.safetensors", offset, "weights"), *(FileInfo(s, 7, "side") for s in SIDE)]
    given = {"architectures": ["LlamaForCausalLM"], "torch_dtype": "bfloat16"} if config is None else config
    return ModelInfo(Path("/nowhere/m"), "m", kind, placed, files, given)


def llama(layers: int = 1, width: int = 256, hidden: int = 512, key: int = 128) -> dict[str, tuple[int, ...]]:
    """The tensors of a Llama."""
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (320, width)}
    for i in range(layers):
        before = f"model.layers.{i}"
        found |= {
            f"{before}.input_layernorm.weight": (width,),
            f"{before}.self_attn.q_proj.weight": (width, width),
            f"{before}.self_attn.k_proj.weight": (key, width),
            f"{before}.self_attn.v_proj.weight": (key, width),
            f"{before}.self_attn.o_proj.weight": (width, width),
            f"{before}.mlp.gate_proj.weight": (hidden, width),
            f"{before}.mlp.up_proj.weight": (hidden, width),
            f"{before}.mlp.down_proj.weight": (width, hidden),
        }
    return found | {"model.norm.weight": (width,), "lm_head.weight": (320, width)}


def difficult(rows: int, columns: int, dtype: str) -> np.ndarray:
    """Weights in 16 bits, as uint16: rows of every size, zeros, one sign, outliers, subnormals, ties."""
    rng = np.random.default_rng(11)
    x = rng.standard_normal((rows, columns)) * np.exp(rng.uniform(-9, 3, (rows, 1)))
    x[0] = 0
    x[1] = np.abs(x[1])
    x[2] = -np.abs(x[2])
    x[3, ::7] = 0
    x[3, 1::7] = -0.0
    x[4] = 1e-7 * rng.standard_normal(columns)
    x[5, 3] = 900
    x[6] = np.arange(columns) % 15 - 7.5
    x[7, : columns // 2] = 0
    if dtype == "F16":
        return x.astype(np.float16).view(np.uint16)
    bits = x.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
