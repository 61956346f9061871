"""The encoder: one tensor in, the same tensor out in another type."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from qconvd.api import FLOATS, Array, Encoded, QconvdError, Unit, UnitReport, check_report
from qconvd_fp16.casts import cast


class CastEncoder:
    """Casts floats, passes everything else through; refuses what the unit's options refuse."""

    stateless = True

    def encode(self, unit: Unit, rows: tuple[int, int], x: Sequence[Array], stats: Mapping[str, Array]) -> Encoded:  # noqa: ARG002
        """`x[0]`: (rows, columns) as stored. Raises `QconvdError` naming the tensor for a refused overflow or NaN."""
        source, target = unit.inputs[0].dtype, unit.outputs[0].dtype
        if source not in FLOATS:
            return Encoded((x[0].reshape(-1),), UnitReport(weights=x[0].size))
        out, report = cast(x[0], source, target, clamp=unit.options.get("on_overflow") == "clamp")
        if report.overflows and unit.options.get("on_overflow") == "refuse":
            raise QconvdError(
                f"{report.overflows} weights in rows {rows[0]} to {rows[1] - 1} are too large for {target}, "
                "and `on_overflow: refuse` is set",
                where=unit.outputs[0].name,
                fix="convert to bf16 instead, or set `on_overflow: clamp` or `report`",
            )
        check_report(unit, report, unit.options)
        return Encoded((out,), report)
