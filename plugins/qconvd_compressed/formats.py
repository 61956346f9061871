"""The formats `int8`, `int4` and `fp8`."""

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
    Parts,
    Plan,
    Unit,
    Unsupported,
)
from qconvd_compressed.options import (
    Fp8Options,
    Int4Options,
    Int8Options,
    QuantizedOptions,
    fp8_from_text,
    int4_from_text,
    int8_from_text,
)  # fmt: skip

ADVICE = {
    "int8": "close to 16 bits in half the space",
    "int8-w8a8": "fastest with many requests at a time; activations lose accuracy, too",
    "int4": "a quarter of the space",
    "bnb-8bit": "to load with transformers",
    "bnb-4bit": "to load with transformers, and to fine-tune with QLoRA",
    "FP8-dynamic": "for GPUs that compute in FP8 (Ada, Hopper and later)",
    "FP8-BLOCK": "for GPUs that compute in FP8; a little closer to 16 bits",
}


class _Quantized(LinearsAndRest):
    """What the three have in common."""

    name: ClassVar[str]
    version: ClassVar[str] = "1"
    devices: ClassVar[Sequence[str]] = ("cpu",)
    rows_alike = True
    LINEAR: ClassVar[str] = "scheme"

    def expand(self, options: QuantizedOptions) -> Sequence[QuantizedOptions]:
        """One artifact for each item of an option that is a list."""
        return options.each()

    def name_parts(self, options: QuantizedOptions) -> NameParts:
        return options.name_parts

    def advice(self, variant: str) -> str:
        return ADVICE.get(variant, "")

    def plan(self, model: ModelInfo, options: QuantizedOptions) -> Plan:
        """Raises `Unsupported` for a GGUF, for packed weights, and where a reader named in `for` would not load the result."""
        from qconvd_compressed.planning import plan

        return plan(model, options, self.name)

    def encoder(self, plan: Plan, device: Device) -> Encoder:  # noqa: ARG002
        if device.kind != "cpu":
            raise Unsupported(f"{self.name} has no kernels for a GPU", fix="say `device: auto` or `device: cpu`")
        from qconvd_compressed.encoder import QuantizedEncoder

        return QuantizedEncoder()

    def decode_linear(self, unit: Unit, rows: tuple[int, int], data: Sequence[Buffer]) -> Array:
        from qconvd_compressed.decoder import decode

        return decode(unit, rows, data)

    def held(
        self,
        unit: Unit,
        rows: tuple[int, int],
        data: Sequence[Buffer],
        x: Sequence[Array],
    ) -> tuple[float, float] | None:
        """See `HoldsItself.held`: for the types of bitsandbytes."""
        if unit.options.get(self.LINEAR) != "codebook":
            return None
        from qconvd_compressed.held import held

        return held(unit, rows, data, x[0])

    def parts(self, unit: Unit) -> Parts | None:
        """See `HoldsParts.parts`: of double quantization."""
        from qconvd_compressed.held import parts

        return parts(unit) if "state" in unit.options else None

    def bound_linear(self, unit: Unit, x: Array) -> Array:
        from qconvd_compressed.bounds import bound

        return bound(unit, x)


class Int8(_Quantized):
    """8-bit integers."""

    name: ClassVar[str] = "int8"
    summary: ClassVar[str] = "safetensors with 8-bit linears for vLLM (compressed-tensors) or transformers (bitsandbytes)"
    Options: ClassVar[type[FormatOptions]] = Int8Options
    aliases: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "w8a16": {"scheme": ["w8a16"]}, "w8a8": {"scheme": ["w8a8"]}, "bnb-8bit": {"container": "bitsandbytes"},
    }  # fmt: skip

    def from_text(self, text: str) -> Mapping[str, Any]:
        """`w8a16`, `w8a8`, `bitsandbytes`."""
        return int8_from_text(text)


class Int4(_Quantized):
    """4-bit integers and bitsandbytes' types."""

    name: ClassVar[str] = "int4"
    summary: ClassVar[str] = "safetensors with 4-bit linears for vLLM (compressed-tensors) or transformers (bitsandbytes)"
    Options: ClassVar[type[FormatOptions]] = Int4Options
    aliases: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "w4a16": {}, "bnb-4bit": {"container": "bitsandbytes"}, "nf4": {"container": "bitsandbytes"},
    }  # fmt: skip

    def from_text(self, text: str) -> Mapping[str, Any]:
        """`32g`, `64g-asym`, `channel`, `nf4`, `fp4`."""
        return int4_from_text(text)


class Fp8(_Quantized):
    """8-bit floats."""

    name: ClassVar[str] = "fp8"
    summary: ClassVar[str] = "safetensors with linears in 8-bit floats (compressed-tensors) for vLLM on recent GPUs"
    Options: ClassVar[type[FormatOptions]] = Fp8Options
    aliases: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    def from_text(self, text: str) -> Mapping[str, Any]:
        """`dynamic`, `block`."""
        return fp8_from_text(text)
