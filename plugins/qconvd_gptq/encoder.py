"""The arithmetic of a GPTQ checkpoint: linears are solved and packed, everything else is copied or cast."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from qconvd.api import (
    Array,
    Encoded,
    Hessian,
    Plan,
    Unit,
    bfloat16_pays,
    check_report,
    encode_rest,
    prepare_rounded_products,
)

if TYPE_CHECKING:
    from qconvd_gptq.solve import Grid, Solved

UNREACHED = "rounded to nearest: hardly any token of the calibration text reached it"


class GptqEncoder:
    """One linear per call. Stateless; kernels and matrix products release the GIL."""

    def prepare(self, plan: Plan) -> Iterator[str]:  # noqa: ARG002
        """Compile the kernels that the plan needs, or load them."""
        from qconvd_gptq.kernels import CACHE, KERNELS, ready

        if not all(CACHE.is_compiled(name) for name in KERNELS):
            yield "compiling the GPTQ solver (once)"
        for name in KERNELS:
            ready(name)
        if bfloat16_pays():
            prepare_rounded_products()

    def encode(self, unit: Unit, rows: tuple[int, int], x: Sequence[Array], stats: Mapping[str, Array]) -> Encoded:  # noqa: ARG002
        """`x[0]`: the whole linear, (rows, columns) as stored. Raises `QconvdError` that names it."""
        if "bits" not in unit.options:
            return encode_rest(unit, x[0])
        hessian: Hessian | None = stats[unit.statistics[0].key] if unit.statistics else None
        unreached = hessian is not None and not hessian.tokens
        hessian = None if unreached else hessian
        solved = self._solved(unit, x[0], hessian)
        check_report(unit, solved.report, unit.options)
        return packed(unit, solved, _figures(unit, x[0], solved, hessian), UNREACHED if unreached else "")

    def _solved(self, unit: Unit, x: Array, hessian: Hessian | None) -> Solved:
        """One linear, rounded to nearest where there is no Hessian."""
        from qconvd_gptq.solve import Weights, nearest, solve

        weights, grid, o = Weights(x, unit.inputs[0].dtype), grid_of(unit), unit.options
        if hessian is None:
            return nearest(weights, grid, unit.id)
        rounded = o.get("feedback") != "float32"
        return solve(weights, hessian, grid, order=o["order"], damp=o["damp_percent"], rounded=rounded, where=unit.id)


def _figures(unit: Unit, x: Array, solved: Solved, hessian: Hessian | None) -> Mapping[str, float]:
    """The error of a linear's outputs on the calibration text, as it was solved and as it would be rounded to nearest."""
    from qconvd_gptq.beside import nearest_error
    from qconvd_gptq.solve import Weights

    if hessian is None:
        return {}
    rounded = nearest_error(Weights(x, unit.inputs[0].dtype), solved, hessian, grid_of(unit))
    return {"output_error": solved.output_error, **({"nearest_error": rounded} if rounded else {})}


def grid_of(unit: Unit) -> Grid:
    """How a linear is to be quantized, from what the plan says of it."""
    from qconvd_gptq.solve import Grid

    o = unit.options
    return Grid(o["bits"], o["group_size"], o["sym"], 1 if o["checkpoint_format"] == "gptq" else 0, o["mse"])


def packed(unit: Unit, solved: Solved, figures: Mapping[str, float], fallback: str = "") -> Encoded:
    """A solved linear as the unit's tensors."""
    from qconvd_gptq.pack import pack

    less = 1 if unit.options["checkpoint_format"] == "gptq" else 0
    return Encoded(pack(solved, unit.options["bits"], less), solved.report, figures=figures, fallback=fallback)
