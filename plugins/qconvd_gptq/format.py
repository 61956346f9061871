"""The `gptq` format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from qconvd.api import (
    Array,
    Buffer,
    Device,
    Encoder,
    FormatOptions,
    LinearsAndRest,
    ModelInfo,
    NameParts,
    Plan,
    Unit,
    cuda_device,
)  # fmt: skip
from qconvd_gptq.options import GptqOptions, from_text


class Gptq(LinearsAndRest):
    """GPTQ checkpoints for GPUs."""

    name: ClassVar[str] = "gptq"
    version: ClassVar[str] = "1"
    summary: ClassVar[str] = "GPTQ safetensors in 2, 3, 4 or 8 bits for vLLM, ExLlamaV2, transformers and GPTQModel"
    Options: ClassVar[type[FormatOptions]] = GptqOptions
    aliases: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    devices: ClassVar[Sequence[str]] = ("cpu", "cuda")
    LINEAR: ClassVar[str] = "bits"

    def from_text(self, text: str) -> Mapping[str, Any]:
        """`4bit-128g`, `4bit-32g-actorder`, `8bit`."""
        return from_text(text)

    def expand(self, options: GptqOptions) -> Sequence[GptqOptions]:
        """One checkpoint for each of `bits` and `group_size`, or for each of `variants`."""
        return options.each()

    def name_parts(self, options: GptqOptions) -> NameParts:
        return options.name_parts

    def plan(self, model: ModelInfo, options: GptqOptions) -> Plan:
        """Raises `Unsupported` for a GGUF, for packed weights, and where a reader named in `for` would not load the result."""
        from qconvd_gptq.planning import plan

        return plan(model, options)

    def encoder(self, plan: Plan, device: Device) -> Encoder:  # noqa: ARG002
        """Raises `Unsupported` for a GPU where torch is missing or sees none."""
        if device.kind == "cpu":
            from qconvd_gptq.encoder import GptqEncoder

            return GptqEncoder()
        there = cuda_device()
        from qconvd_gptq.gpu import GpuEncoder

        return GpuEncoder(there)

    def decode_linear(self, unit: Unit, rows: tuple[int, int], data: Sequence[Buffer]) -> Array:  # noqa: ARG002
        from qconvd_gptq.decoder import decode

        return decode(unit, data)

    def bound_linear(self, unit: Unit, x: Array) -> Array:
        from qconvd_gptq.decoder import bound

        return bound(unit, x)
