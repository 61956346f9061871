"""The `gguf` format: one GGUF file per type, as llama.cpp's converter and llama-quantize would make it, in one step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from qconvd.api import Array, Buffer, Device, Encoder, FormatOptions, ModelInfo, NameParts, Plan, Unit
from qconvd_gguf import gpu
from qconvd_gguf.advice import ADVICE
from qconvd_gguf.encoder import BlockEncoder, experts_of
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
    devices: ClassVar[Sequence[str]] = ("cpu", "cuda")

    def from_text(self, text: str) -> Mapping[str, Any]:
        """`q8_0` or `q8_0, q4_0`."""
        return {"types": list(type_names(text))}

    def expand(self, options: GgufOptions) -> Sequence[GgufOptions]:
        """One file per type."""
        return [options.of(name) for name in options.types]

    def name_parts(self, options: GgufOptions) -> NameParts:
        from qconvd_gguf.planning import name_parts

        return name_parts(options)

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
        """The numbers of a tensor's blocks, by the decoders of qconvd_ggml, which are not its encoders.

        What was copied in a type that is no float is held against the source as it is stored.
        """
        from qconvd_ggml.decode import decode

        if _copied(unit):
            return (_stored(unit.outputs[0].dtype, data[0], rows[1] - rows[0]),)
        return (decode(unit.outputs[0].dtype, data[0], unit.shape[1]),)

    def bound(
        self,
        unit: Unit,
        rows: tuple[int, int],
        x: Sequence[Array],
        stats: Mapping[str, Array],
    ) -> Sequence[Array]:
        import numpy as np

        from qconvd_ggml.decode import error_bound

        dtype = unit.outputs[0].dtype
        if _copied(unit):
            return (np.zeros(x[0].shape, np.float32),)
        if not unit.statistics:
            return (error_bound(dtype, x[0]),)
        by_expert = stats[unit.statistics[0].key].reshape(-1, unit.shape[1])
        parts = [
            error_bound(dtype, x[0][first:last], by_expert[expert])
            for expert, first, last in experts_of(rows, unit.shape[0] // len(by_expert))
        ]
        return (np.concatenate(parts),)


def _copied(unit: Unit) -> bool:
    return unit.inputs[0].dtype not in ("F32", "F16", "BF16")


def _stored(dtype: str, data: Buffer, rows: int) -> Array:
    """Bytes as the engine hands a tensor of this type to an encoder, with the float64 of old files as float32."""
    import numpy as np

    held = {"I8": "i1", "I16": "<i2", "I32": "<i4", "I64": "<i8", "F64": "<f8"}.get(dtype, "u1")
    array = np.frombuffer(data, held).reshape(rows, -1)
    return array.astype(np.float32) if dtype == "F64" else array
