"""The `gguf` format: one GGUF file per type, as llama.cpp's converter and llama-quantize would make it, in one step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from qconvd.api import Array, Buffer, Device, Encoder, FormatOptions, ModelInfo, NameParts, Plan, Unit
from qconvd_gguf import gpu
from qconvd_gguf.advice import ADVICE
from qconvd_gguf.encoder import BlockEncoder
from qconvd_gguf.file_types import ALIASES, FILE_TYPES, PLAIN
from qconvd_gguf.holding import bounds, decoded
from qconvd_gguf.options import GgufOptions, type_names


class Gguf:
    """GGUF for llama.cpp and everything built on it."""

    name: ClassVar[str] = "gguf"
    version: ClassVar[str] = "1"
    summary: ClassVar[str] = "GGUF for llama.cpp, Ollama and LM Studio: every type of llama-quantize, from f32 to iq1_s"
    Options: ClassVar[type[FormatOptions]] = GgufOptions
    aliases: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        **{name.lower(): {"types": [name]} for name in FILE_TYPES if name not in PLAIN},
        **{alias.lower(): {"types": [name]} for alias, name in ALIASES.items()},
        "q4": {"types": ["Q4_0"]}, "q5": {"types": ["Q5_0"]}, "q8": {"types": ["Q8_0"]},
    }  # fmt: skip
    """The plain types have no short name of their own: `f16` alone is safetensors, `gguf: f16` is this."""
    devices: ClassVar[Sequence[str]] = ("cpu", "cuda")
    rows_alike = True

    def from_text(self, text: str) -> Mapping[str, Any]:
        """`q8_0` or `q8_0, q4_0`."""
        return {"types": list(type_names(text))}

    def expand(self, options: GgufOptions) -> Sequence[GgufOptions]:
        """One file per type."""
        return [options.of(name) for name in options.types]

    def name_parts(self, options: GgufOptions) -> NameParts:
        return options.name_parts

    def advice(self, variant: str) -> str:
        return ADVICE.get(variant, "")

    def plan(self, model: ModelInfo, options: GgufOptions) -> Plan:
        """Raises `Unsupported` for an architecture, a tensor or a tokenizer that llama.cpp would not run right."""
        from qconvd_gguf.planning import plan

        return plan(model, options)

    def encoder(self, plan: Plan, device: Device) -> Encoder:
        """Raises `Unsupported` on a GPU for what gpu.py has no kernels for, and where torch or triton are missing."""
        return BlockEncoder() if device.kind == "cpu" else gpu.encoder(plan.units)

    def decode(self, unit: Unit, rows: tuple[int, int], data: Sequence[Buffer]) -> Sequence[Array]:
        return decoded(unit, rows, data)

    def bound(self, unit: Unit, rows: tuple[int, int], x: Sequence[Array], stats: Mapping[str, Array]) -> Sequence[Array]:
        return bounds(unit, rows, x, stats)
