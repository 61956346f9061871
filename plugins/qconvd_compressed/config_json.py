"""What an artifact's config says of its quantization, in the keys that its readers know."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qconvd_compressed.schemes import BLOCK, Codebook, Floats, Integers, LlmInt8, Scheme


def quantization_config(scheme: Scheme, left_out: Sequence[str], dtype: str) -> dict[str, Any]:
    """`quantization_config` of config.json. `left_out`: modules that stay linears; `dtype`: what bitsandbytes computes in."""
    if isinstance(scheme, LlmInt8 | Codebook):
        return _bitsandbytes(scheme, left_out, dtype)
    if isinstance(scheme, Integers):
        group = scheme.group_size if scheme.group_size > 0 else None
        weights = _arguments(scheme.bits, "int", "group" if group else "channel", symmetric=scheme.symmetric, group_size=group)
        weights["observer"] = "memoryless_mse" if scheme.search else "memoryless_minmax"
        activations = _arguments(8, "int", "token", dynamic=True) if scheme.activations else None
    else:
        weights = _floats(scheme)
        group = BLOCK if scheme.blocks else None
        activations = _arguments(8, "float", "group" if group else "token", dynamic=True, group_size=group)
    return {
        "quant_method": "compressed-tensors",
        "format": scheme.format,
        "quantization_status": "compressed",
        "global_compression_ratio": None,
        "kv_cache_scheme": None,
        "ignore": list(left_out),
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "format": scheme.format,
                "weights": weights,
                "input_activations": activations,
                "output_activations": None,
            }
        },
    }


def _floats(scheme: Floats) -> dict[str, Any]:
    if not scheme.blocks:
        return {**_arguments(8, "float", "channel"), "observer": "memoryless_minmax"}
    return {**_arguments(8, "float", "block"), "block_structure": [BLOCK, BLOCK], "observer": "memoryless_minmax"}


def _arguments(
    bits: int, type: str, strategy: str, *, symmetric: bool = True, group_size: int | None = None, dynamic: bool = False
) -> dict[str, Any]:
    return {
        "num_bits": bits, "type": type, "strategy": strategy, "symmetric": symmetric, "group_size": group_size,
        "block_structure": None, "dynamic": dynamic, "actorder": None, "observer": None, "observer_kwargs": {},
    }  # fmt: skip


def _bitsandbytes(scheme: LlmInt8 | Codebook, left_out: Sequence[str], dtype: str) -> dict[str, Any]:
    eight = isinstance(scheme, LlmInt8)
    config: dict[str, Any] = {
        "quant_method": "bitsandbytes",
        "load_in_8bit": eight,
        "load_in_4bit": not eight,
        "llm_int8_threshold": scheme.threshold if isinstance(scheme, LlmInt8) else 6.0,
        "llm_int8_skip_modules": list(left_out),
        "llm_int8_enable_fp32_cpu_offload": False,
        "llm_int8_has_fp16_weight": False,
    }
    if isinstance(scheme, Codebook):
        config |= {
            "bnb_4bit_quant_type": scheme.type,
            "bnb_4bit_use_double_quant": scheme.double,
            "bnb_4bit_compute_dtype": dtype,
            "bnb_4bit_quant_storage": "uint8",
        }
    return config
