"""The `gguf` format: one GGUF file per type, as llama.cpp's converter and llama-quantize would make it, in one step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from qconvd.api import Array, Buffer, Device, Encoder, FormatOptions, ModelInfo, NameParts, Plan, Unit, Unsupported
from qconvd_gguf.encoder import BlockEncoder
from qconvd_gguf.file_types import ALIASES, FILE_TYPES, PLAIN
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
    devices: ClassVar[Sequence[str]] = ("cpu",)

    def from_text(self, text: str) -> Mapping[str, Any]:
        """`q8_0` or `q8_0, q4_0`."""
        return {"types": list(type_names(text))}

    def expand(self, options: GgufOptions) -> Sequence[GgufOptions]:
        """One file per type."""
        return [options.of(name) for name in options.types]

    def name_parts(self, options: GgufOptions) -> NameParts:
        from qconvd_gguf.planning import name_parts

        return name_parts(options)

    def plan(self, model: ModelInfo, options: GgufOptions) -> Plan:
        """Raises `Unsupported` for an architecture, a tensor or a tokenizer that llama.cpp would not run right."""
        from qconvd_gguf.planning import plan

        return plan(model, options)

    def encoder(self, plan: Plan, device: Device) -> Encoder:  # noqa: ARG002
        if device.kind not in self.devices:
            raise Unsupported(f"gguf has no kernels for {device.kind} yet", fix="say device: auto or device: cpu")
        return BlockEncoder()

    def decode(self, unit: Unit, rows: tuple[int, int], data: Sequence[Buffer]) -> Sequence[Array]:  # noqa: ARG002
        """The numbers of a tensor's blocks, by the decoders of qconvd_ggml, which are not its encoders."""
        from qconvd_ggml.decode import decode

        return (decode(unit.outputs[0].dtype, data[0], unit.shape[1]),)

    def bound(self, unit: Unit, x: Sequence[Array]) -> Sequence[Array]:
        from qconvd_ggml.decode import error_bound

        return (error_bound(unit.outputs[0].dtype, x[0], weighted=bool(unit.statistics)),)
