"""The arithmetic of a GGUF file: every unit is one tensor, encoded by ggml's block kernels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from qconvd.api import Array, Encoded, Unit, UnitReport, check_report


class BlockEncoder:
    """Rows of one tensor as blocks of its type. Stateless; the kernels release the GIL.

    What comes packed, or as integers, keeps its type (see requantize.py) and is copied.
    """

    def encode(self, unit: Unit, rows: tuple[int, int], x: Sequence[Array], stats: Mapping[str, Array]) -> Encoded:  # noqa: ARG002
        from qconvd_ggml.kernels import SOURCES, encode

        if unit.inputs[0].dtype not in SOURCES:
            return Encoded((x[0],), UnitReport(weights=(rows[1] - rows[0]) * unit.shape[1]))
        data, report = encode(unit.outputs[0].dtype, x[0], unit.inputs[0].dtype)
        check_report(unit, report, unit.options)
        return Encoded((data,), report)
