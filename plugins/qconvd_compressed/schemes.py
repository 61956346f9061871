"""How a linear is stored: what a target's options come to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias


@dataclass(frozen=True, slots=True)
class Integers:
    """compressed-tensors: integers with a scale per row or per group of a row."""

    bits: Literal[4, 8]
    group_size: int = -1
    """Inputs that share a scale; -1: a whole row."""
    symmetric: bool = True
    search: bool = False
    activations: bool = False
    """Whether runtimes round activations to 8 bits, too: then weights lie in bytes, otherwise they are packed into words."""

    @property
    def container(self) -> str:
        return "compressed-tensors"

    @property
    def format(self) -> str:
        """As config.json calls it."""
        return "int-quantized" if self.activations else "pack-quantized"

    def width(self, columns: int) -> int:
        """Inputs of a group."""
        return columns if self.group_size < 0 else self.group_size


@dataclass(frozen=True, slots=True)
class Floats:
    """compressed-tensors: E4M3 floats with a scale per row, or per block of BLOCK x BLOCK."""

    blocks: bool = False

    @property
    def container(self) -> str:
        return "compressed-tensors"

    @property
    def format(self) -> str:
        return "float-quantized"


@dataclass(frozen=True, slots=True)
class LlmInt8:
    """bitsandbytes: LLM.int8()."""

    threshold: float = 6.0

    @property
    def container(self) -> str:
        return "bitsandbytes"


@dataclass(frozen=True, slots=True)
class Codebook:
    """bitsandbytes: one of 16 numbers times the largest of CODEBOOK_BLOCK weights."""

    type: Literal["nf4", "fp4"] = "nf4"
    double: bool = True
    """Whether the largest are quantized, too."""

    @property
    def container(self) -> str:
        return "bitsandbytes"


Scheme: TypeAlias = Integers | Floats | LlmInt8 | Codebook

BLOCK = 128
CODEBOOK_BLOCK = 64
NESTED_BLOCK = 256
"""Largest of blocks that share what they are scaled by, if they are quantized."""
