"""The `ggml` format: one file per type, as convert.py and quantize of June 2023 made them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from qconvd.api import Array, Buffer, Device, Encoder, FormatOptions, ModelInfo, NameParts, Plan, Unit, Unsupported
from qconvd_ggjt.options import SHORT, TYPES, GgmlOptions, type_names

ADVICE = {
    "q4_0": "the smallest that every old runtime reads", "q4_1": "a little better than q4_0, slower in old runtimes",
    "q5_0": "better than q4_1 at about the same size", "q5_1": "close to the original", "q8_0": "nearly the original",
    "f16": "to make other types from",
}  # fmt: skip


class Ggml:
    """GGJT 3 for LLaMA-type models, and the `ggml` container for gpt2, gptj and gpt_neox."""

    name: ClassVar[str] = "ggml"
    version: ClassVar[str] = "1"
    summary: ClassVar[str] = "GGML, the files from before GGUF (GGJT 3)"
    Options: ClassVar[type[FormatOptions]] = GgmlOptions
    aliases: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        **{f"ggml-{name.lower()}": {"types": [name]} for name in TYPES},
        **{f"ggml-{short}": {"types": [name]} for short, name in SHORT.items() if short in ("q4", "q5", "q8")},
    }
    devices: ClassVar[Sequence[str]] = ("cpu",)
    rows_alike = True

    def from_text(self, text: str) -> Mapping[str, Any]:
        """`q4_0` or `q8_0, q4_0`."""
        return {"types": list(type_names(text))}

    def expand(self, options: GgmlOptions) -> Sequence[GgmlOptions]:
        """One file per type."""
        return [options.of(name) for name in options.types]

    def name_parts(self, options: GgmlOptions) -> NameParts:
        return NameParts("ggml", options.types[0], shared=True)

    def advice(self, variant: str) -> str:
        return ADVICE.get(variant, "")

    def plan(self, model: ModelInfo, options: GgmlOptions) -> Plan:
        """Raises `Unsupported` for what the old header cannot say, naming it."""
        from qconvd_ggjt.planning import plan

        return plan(model, options, self.name_parts(options))

    def encoder(self, plan: Plan, device: Device) -> Encoder:  # noqa: ARG002
        """Raises `Unsupported` for a GPU."""
        from qconvd_gguf.encoder import BlockEncoder

        if device.kind != "cpu":
            raise Unsupported("ggml has no kernels for a GPU", fix="say `device: auto` or `device: cpu`")
        return BlockEncoder()

    def decode(self, unit: Unit, rows: tuple[int, int], data: Sequence[Buffer]) -> Sequence[Array]:
        from qconvd_gguf.holding import decoded

        return decoded(unit, rows, data)

    def bound(self, unit: Unit, rows: tuple[int, int], x: Sequence[Array], stats: Mapping[str, Array]) -> Sequence[Array]:
        from qconvd_gguf.holding import bounds

        return bounds(unit, rows, x, stats)
