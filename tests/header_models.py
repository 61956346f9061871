"""Models that exist only as headers, for plans of linears."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

from qconvd.api import FileInfo, ModelInfo, TensorInfo
from qconvd.dtypes import ELEMENT_BYTES

SIDE = ("config.json", "tokenizer.json", "generation_config.json", "model.safetensors.index.json")


def headers(
    tensors: Mapping[str, tuple[int, ...]],
    dtype: str = "BF16",
    config: Mapping[str, Any] | None = None,
    kind: str = "safetensors",
    **dtypes: str,
) -> ModelInfo:
    """`dtypes`: of tensors whose names end so, with `_` for a dot."""
    placed, offset = {}, 100
    for name, shape in tensors.items():
        own = next((d for end, d in dtypes.items() if name.endswith(end.replace("_", "."))), dtype)
        nbytes = prod(shape) * ELEMENT_BYTES[own]
        placed[name] = TensorInfo(name, own, shape, "model.safetensors", offset, nbytes)
        offset += nbytes
    files = [FileInfo("model.safetensors", offset, "weights"), *(FileInfo(s, 7, "side") for s in SIDE)]
    given = {"architectures": ["LlamaForCausalLM"], "torch_dtype": "bfloat16"} if config is None else config
    return ModelInfo(Path("/nowhere/m"), "m", kind, placed, files, given)


def llama(layers: int = 2, width: int = 256, hidden: int = 512, key: int = 128) -> dict[str, tuple[int, ...]]:
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
