"""What of a model the mixes look at, read from a GGUF file's metadata, so that it is the same for every source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Traits:
    """`arch` is llama.cpp's name of the architecture; `group` is query heads per key-value head (0 without attention)."""

    arch: str
    layers: int
    group: int = 1
    experts: int = 0
    shared_values: bool = False
    """A model that llama.cpp counts as of 70B: eight heads share one value matrix, which may be large at little cost."""

    @property
    def falcon(self) -> bool:
        return self.arch == "falcon"

    @property
    def grouped(self) -> bool:
        """Whether value matrices are small enough, beside the query's, to get more bits."""
        return self.group >= 4


_SEVENTY = {"llama": 80, "qwen2": 80, "deci": 80, "olmo": 80, "jais2": 68}
"""Architectures and layer counts of `LLM_TYPE_70B` (src/models/*.cpp); llama's has more conditions."""


def traits_of(found: Mapping[str, Any]) -> Traits:
    """The traits of a file with this metadata. Of numbers that differ by layer the first counts, as with llama.cpp.

    What is no whole number is as good as missing: a count that a hostile file gives as a float may be infinite.
    """
    arch = str(found.get("general.architecture", ""))

    def number(name: str, default: int) -> int:
        value = found.get(f"{arch}.{name}", default)
        first = (value[0] if value else default) if isinstance(value, list) else value
        return first if isinstance(first, int) else default

    layers = number("block_count", 0)
    heads = number("attention.head_count", 0)
    kv = number("attention.head_count_kv", heads)
    experts = number("expert_count", 0)
    decoder = layers - number("nextn_predict_layers", 0)
    seventy = _SEVENTY.get(arch) == decoder and (arch != "llama" or (heads != kv and experts != 8))
    return Traits(arch, layers, heads // kv if kv else 0, experts, seventy)
