"""Rotary position embeddings: what config.json says about them, for every family that has them.

transformers 5 keeps `rope_theta` and the scaling in `rope_parameters`, older configs in `rope_theta` and `rope_scaling`.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Collection, Mapping
from typing import Any

from qconvd.api import Constant, Expr, Unsupported
from qconvd_gguf.families.base import Config, Metadata, Number, Numbers

THETA = Number(
    ("rope_theta", "rope_parameters.rope_theta", "rope_parameters.full_attention.rope_theta", "rope_scaling.rope_theta"),
    10000.0,
)
LOCAL_THETA = Number(("rope_local_base_freq", "rope_parameters.sliding_attention.rope_theta"), 10000.0)
"""The base in layers with a sliding window, where these have one of their own."""


F32_MAX = 3.4e38


def rope_parameters(config: Config) -> Mapping[str, Any]:
    """The scaling part of the config (that of full attention, where kinds of layers differ), empty where there is none."""
    found = config.get("rope_parameters") or config.get("rope_scaling") or {}
    found = found.get("full_attention", found) if isinstance(found, Mapping) else {}
    return found if isinstance(found, Mapping) else {}


def rope_kind(config: Config) -> str:
    """`default`, `linear`, `dynamic`, `yarn`, `llama3`, `longrope`, …"""
    parameters = rope_parameters(config)
    return str(parameters.get("rope_type") or parameters.get("type") or "default").lower()


def rope_scaling(config: Config, numbers: Numbers) -> Metadata:  # noqa: ARG001
    """The `rope.scaling.*` keys, as llama.cpp's converter writes them. Raises `Unsupported` for a kind it has no key for."""
    parameters, kind = rope_parameters(config), rope_kind(config)
    if kind in ("default", "dynamic", "none"):
        return []
    if kind not in ("linear", "yarn"):
        raise Unsupported(f"rope scaling of the kind {kind!r} is not supported", where="config.json, rope_scaling")
    keys: Metadata = [("rope.scaling.type", "str", kind), ("rope.scaling.factor", "f32", parameter(parameters, "factor"))]
    if kind == "yarn":
        length = int(parameter(parameters, "original_max_position_embeddings"))
        keys.append(("rope.scaling.original_context_length", "u32", length))
        optional = {
            "yarn_ext_factor": ("extrapolation_factor",),
            "yarn_attn_factor": ("attention_factor", "attn_factor"),
            "yarn_beta_fast": ("beta_fast",),
            "yarn_beta_slow": ("beta_slow",),
        }
        for name, sources in optional.items():
            said = next((s for s in sources if parameters.get(s) is not None), None)
            if said is not None:
                keys.append((f"rope.scaling.{name}", "f32", parameter(parameters, said)))
    return keys


def rope_scaling_or_factors(config: Config, numbers: Numbers) -> Metadata:
    """The keys in families whose graph takes llama 3's scaling as a tensor of factors, which needs no key."""
    return [] if rope_kind(config) == "llama3" else rope_scaling(config, numbers)


def uncommon_theta(config: Config, numbers: Numbers) -> Metadata:  # noqa: ARG001
    """The rotation's base for families whose converter writes none, where it is not the 10000 that readers assume."""
    theta = float(numbers["rope_theta"])
    return [] if theta == 10000.0 else [("rope.freq_base", "f32", theta)]


def rotated_share(key: str) -> Callable[[Mapping[str, Any], Collection[str]], Config]:
    """For `Family.recover`: the share of a head that is rotated, under the key that config.json has for it."""

    def recover(found: Mapping[str, Any], tensors: Collection[str]) -> Config:  # noqa: ARG001
        count, width, heads = (found.get(k) for k in ("rope.dimension_count", "embedding_length", "attention.head_count"))
        if not all(isinstance(n, int) and n > 0 for n in (count, width, heads)):
            return {}
        assert count and width and heads
        return {key: count / (width // heads)} if width >= heads else {}

    return recover


def rotated(config: Config, numbers: Numbers) -> int:  # noqa: ARG001
    """How many elements of a head are rotated, for families that rotate a part. `numbers` hold `rotary_factor`."""
    share = numbers["rotary_factor"]
    if not 0 < share <= 1:
        raise Unsupported(f"{share} of a head is rotated, which is no share", where="config.json, partial_rotary_factor")
    return int(share * numbers["head_dim"])


def no_scaling(config: Config, numbers: Numbers) -> str | None:  # noqa: ARG001
    """For graphs that know no scaled rotation."""
    kind = rope_kind(config)
    return None if kind in ("default", "none", "dynamic") else f"rope scaling of the kind {kind!r} is nothing this family has"


def llama3_factors(config: Config, numbers: Numbers) -> Expr | None:
    """Llama 3.1's frequency divisors as the tensor that llama.cpp calls `rope_freqs`: float32, one per pair of a head.

    Frequencies whose wavelength is long against the original context are slowed by `factor`, short ones are kept, those
    between are interpolated (transformers, modeling_rope_utils).
    """
    if rope_kind(config) != "llama3":
        return None
    parameters = rope_parameters(config)
    factor = parameter(parameters, "factor")
    low, high = parameter(parameters, "low_freq_factor"), parameter(parameters, "high_freq_factor")
    length = parameter(parameters, "original_max_position_embeddings")
    if high <= low:
        raise Unsupported("high_freq_factor is not above low_freq_factor", where="config.json, rope_scaling")
    width, theta = int(numbers["head_dim"]), parameter(numbers, "rope_theta")
    factors = []
    # Rounded to float32 at each step as llama.cpp's converter does, which makes the same bytes for all published models.
    for pair in range(width // 2):
        frequency = _f32(1 / _f32(theta ** _f32(2 * pair / width)))
        wavelength = _f32(_f32(2 * math.pi) / frequency)
        if wavelength < _f32(length / high):
            factors.append(1.0)
        elif wavelength > _f32(length / low):
            factors.append(factor)
        else:
            smooth = _f32(_f32(_f32(length / wavelength) - low) / (high - low))
            factors.append(1 / _f32(_f32(_f32(1 - smooth) / factor) + smooth))
    return Constant.of("F32", (len(factors),), struct.pack(f"<{len(factors)}f", *factors))


def dynamic_note(config: Config, numbers: Numbers) -> str | None:  # noqa: ARG001
    """llama.cpp has no dynamic scaling: it is exact up to the trained context only."""
    if rope_kind(config) != "dynamic":
        return None
    return "config.json asks for dynamic rope scaling, which llama.cpp does not do: right only up to the trained context"


def parameter(parameters: Mapping[str, Any], name: str) -> float:
    """A number of the rope scaling. Raises `Unsupported` where it is missing or no float32 above zero."""
    value = parameters.get(name)
    if value is None:
        raise Unsupported(f"rope scaling lacks {name}", where="config.json, rope_scaling", fix=f"add {name}")
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= F32_MAX:
        raise Unsupported(f"{name} is {value!r}, which is no float32 above zero", where="config.json, rope_scaling")
    return float(value)


def _f32(value: float) -> float:
    return float(struct.unpack("<f", struct.pack("<f", value))[0])
