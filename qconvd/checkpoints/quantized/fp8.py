"""FP8 checkpoints with a scale for each block, as DeepSeek V3 and Qwen 3 are published.

A linear of [N, K] is `weight` F8_E4M3 [N, K] and `weight_scale_inv` [ceil(N / height), ceil(K / width)], with the blocks of
`weight_block_size` in the config; W = weight * weight_scale_inv, whatever the name says.
Source: DeepSeek-V3, `inference/fp8_cast_bf16.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from qconvd.checkpoints.quantized.gptq import SCALES
from qconvd.checkpoints.quantized.parts import Parts, as_floats, stored
from qconvd.checkpoints.refusals import refuse_quantized
from qconvd.engine.expr import Cast, Dequantize


def reader(said: Mapping[str, Any], label: str, where: str) -> Callable[[Parts], None]:
    """Who unpacks a checkpoint of this config. Raises `Unsupported` where there is one scale for a whole tensor, or E5M2."""
    block = said.get("weight_block_size")
    is_block = isinstance(block, list) and len(block) == 2 and all(type(n) is int and n > 0 for n in block)
    if not is_block or said.get("fmt", "e4m3") != "e4m3":
        raise refuse_quantized(label, where, "FP8 is read as E4M3 in blocks, with weight_block_size in the config")
    height, width = block  # type: ignore[misc]

    def unpack(parts: Parts) -> None:
        for module, scale in list(parts.ending("weight_scale_inv")):
            weight = parts.take(f"{module}.weight", dtypes=("F8_E4M3",))
            if len(weight.shape) != 2:
                raise parts.wrong(weight, f"is {weight.dtype} {list(weight.shape)}, no matrix")
            n, k = weight.shape
            scale = parts.take(scale.name, (-(-n // height), -(-k // width)), dtypes=SCALES)
            xs = (Cast(stored(weight), "F32"), as_floats(stored(scale)))
            options = {"columns": k, "block": [height, width]}
            parts.make(weight.name, weight, (n, k), Dequantize(xs, "scaled", (n, k), options=options))
        for ending in ("input_scale", "activation_scale"):
            for module, _ in list(parts.ending(ending)):
                parts.drop(f"{module}.{ending}")

    return unpack
