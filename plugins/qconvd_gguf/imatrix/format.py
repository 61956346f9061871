"""The `imatrix` format: an importance matrix in a file of its own, beside the GGUFs of the same model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from pydantic import Field, model_validator

from qconvd.api import (
    Array,
    Buffer,
    CalibrationOptions,
    Device,
    Encoded,
    Encoder,
    FormatOptions,
    ModelInfo,
    NameParts,
    Plan,
    Unit,
    Unsupported,
)
from qconvd_gguf.options import check_activations


class ImatrixOptions(FormatOptions):
    """What it is gathered from."""

    calibration: CalibrationOptions = Field(
        default_factory=CalibrationOptions, description="What it is gathered from: docs/reference/calibration.md."
    )

    @model_validator(mode="after")
    def _own_activations(self) -> ImatrixOptions:
        check_activations(self.calibration)
        return self

    @property
    def calibrated(self) -> bool:
        return True


class Imatrix:
    """What `imatrix: auto` gathers for a GGUF, to keep: for llama-quantize, or for other GGUFs later."""

    name: ClassVar[str] = "imatrix"
    version: ClassVar[str] = "1"
    summary: ClassVar[str] = "an importance matrix, as llama-imatrix makes it, for llama-quantize and gguf"
    Options: ClassVar[type[FormatOptions]] = ImatrixOptions
    aliases: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    devices: ClassVar[Sequence[str]] = ("cpu",)

    def from_text(self, text: str) -> Mapping[str, Any]:
        raise ValueError(
            f"imatrix has no short form {text!r}; what it is gathered from is written imatrix: {{calibration: {{text: …}}}}, "
            "and a file that is there is named under gguf: {imatrix: FILE}"
        )

    def expand(self, options: ImatrixOptions) -> Sequence[ImatrixOptions]:
        return [options]

    def name_parts(self, options: ImatrixOptions) -> NameParts:  # noqa: ARG002
        """Beside the GGUFs, and named like them."""
        return NameParts("gguf", "imatrix", shared=True)

    def advice(self, variant: str) -> str:  # noqa: ARG002
        return "no model: for `llama-quantize --imatrix`, to make other types"

    def plan(self, model: ModelInfo, options: ImatrixOptions) -> Plan:
        """Raises `Unsupported` for a model that cannot be calibrated, or that is of no family with a GGUF."""
        from qconvd_gguf.imatrix.planning import plan

        return plan(model, options.calibration, self.name_parts(options))

    def encoder(self, plan: Plan, device: Device) -> Encoder:  # noqa: ARG002
        """Raises `Unsupported` for a GPU."""
        if device.kind != "cpu":
            raise Unsupported("imatrix is gathered on the CPU only", fix="say `device: auto` or `device: cpu`")
        return SumsEncoder()

    def decode(self, unit: Unit, rows: tuple[int, int], data: Sequence[Buffer]) -> Sequence[Array]:
        """The sums as they were gathered. Where matrices that are fed the same do not hold the same, all of what is there."""
        import numpy as np

        sums = np.frombuffer(data[0], "<f4").reshape(rows[1] - rows[0], unit.options["matrices"], -1)
        same = (sums == sums[:, :1]).all()
        counts = np.frombuffer(data[1], "<f4").reshape(rows[1] - rows[0], 1)
        return (np.hstack([sums[:, 0] if same else sums.reshape(len(sums), -1), counts]),)

    def bound(self, unit: Unit, rows: tuple[int, int], x: Sequence[Array], stats: Mapping[str, Array]) -> Sequence[Array]:  # noqa: ARG002
        """Nothing is rounded."""
        import numpy as np

        return [np.zeros_like(one) for one in x]


class SumsEncoder:
    """The sums and counts that were gathered, once for every matrix that is fed the same."""

    def encode(self, unit: Unit, rows: tuple[int, int], x: Sequence[Array], stats: Mapping[str, Array]) -> Encoded:  # noqa: ARG002
        import numpy as np

        gathered = stats[unit.statistics[0].key]
        sums = np.tile(gathered[:, :-1], unit.options["matrices"])
        return Encoded([np.ascontiguousarray(array, "<f4") for array in (sums, gathered[:, -1:])])
