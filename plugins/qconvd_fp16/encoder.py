"""The encoder: one tensor in, the same tensor out in another type."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import prod

from qconvd.api import FLOATS, Array, Encoded, Plan, QconvdError, Unit, UnitReport, check_report, converts_halves
from qconvd_fp16.casts import cast

WORTH_IT = 1 << 27
"""Weights from which on a compiled kernel saves more than the second that it takes to be loaded, or compiled."""


class CastEncoder:
    """Casts floats, passes everything else through; refuses what the unit's options refuse."""

    stateless = True

    def __init__(self) -> None:
        self._compiled = False

    def prepare(self, plan: Plan) -> Iterator[str]:
        """Compile a kernel, or load it, where that takes less time than it saves."""
        weights = sum(prod(u.shape) for u in plan.units if u.inputs[0].dtype in FLOATS)
        if weights < WORTH_IT or not converts_halves():
            return
        from qconvd_fp16.kernels import CACHE, KERNEL, ready

        if not CACHE.is_compiled(KERNEL):
            yield "compiling the kernel of the casts (once)"
        ready()
        self._compiled = True

    def encode(self, unit: Unit, rows: tuple[int, int], x: Sequence[Array], stats: Mapping[str, Array]) -> Encoded:  # noqa: ARG002
        """`x[0]`: (rows, columns) as stored. Raises `QconvdError` naming the tensor for a refused overflow or NaN."""
        source, target = unit.inputs[0].dtype, unit.outputs[0].dtype
        if source not in FLOATS:
            return Encoded((x[0].reshape(-1),), UnitReport(weights=x[0].size))
        clamp = unit.options.get("on_overflow") == "clamp"
        out, report = cast(x[0], source, target, clamp=clamp, compiled=self._compiled)
        if report.overflows and unit.options.get("on_overflow") == "refuse":
            raise QconvdError(
                f"{report.overflows} weights in rows {rows[0]} to {rows[1] - 1} are too large for {target}, "
                "and `on_overflow: refuse` is set",
                where=unit.outputs[0].name,
                fix="convert to bf16 instead, or set `on_overflow: clamp` or `report`",
            )
        check_report(unit, report, unit.options)
        return Encoded((out,), report)
