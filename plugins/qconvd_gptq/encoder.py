"""The arithmetic of a GPTQ checkpoint: linears are solved and packed, everything else is copied or cast."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from qconvd.api import FLOATS, Array, Encoded, Plan, Unit, UnitReport, as_float32, check_report

UNREACHED = "rounded to nearest: no token of the calibration text reached it"


class GptqEncoder:
    """One linear per call. Stateless; kernels and matrix products release the GIL."""

    def prepare(self, plan: Plan) -> Iterator[str]:  # noqa: ARG002
        """Compile the kernels that the plan needs, or load them."""
        from qconvd_gptq.kernels import CACHE, KERNELS, ready

        if not all(CACHE.is_compiled(name) for name in KERNELS):
            yield "compiling the GPTQ solver (once)"
        for name in KERNELS:
            ready(name)

    def encode(self, unit: Unit, rows: tuple[int, int], x: Sequence[Array], stats: Mapping[str, Array]) -> Encoded:  # noqa: ARG002
        """`x[0]`: the whole linear, (rows, columns) as stored. Raises `QconvdError` that names it."""
        if "bits" not in unit.options:
            return _copied(unit, x[0])
        from qconvd_gptq.pack import pack
        from qconvd_gptq.solve import Grid, Weights, nearest, solve

        options, where = unit.options, unit.id
        less = 1 if options["checkpoint_format"] == "gptq" else 0
        grid = Grid(options["bits"], options["group_size"], options["sym"], less, options["mse"])
        weights = Weights(x[0], unit.inputs[0].dtype)
        figures, fallback = {}, ""
        hessian = stats[unit.statistics[0].key] if unit.statistics else None
        if hessian is None:
            solved = nearest(weights, grid, where)
        elif not hessian.tokens:
            solved, fallback = nearest(weights, grid, where), UNREACHED
        else:
            solved = solve(weights, hessian, grid, order=options["order"], damp=options["damp_percent"], where=where)
            figures["output_error"] = solved.output_error
        check_report(unit, solved.report, options)
        kept = (solved.dequantized(),) if options.get("dequantized") else None
        return Encoded(pack(solved, grid.bits, less), solved.report, kept, figures, fallback)


def _copied(unit: Unit, x: Array) -> Encoded:
    """What is no linear of a layer, in the type that the plan's expression gives it already."""
    import numpy as np

    report = UnitReport(weights=x.size)
    if (dtype := unit.inputs[0].dtype) in FLOATS:
        values = as_float32(x, dtype)
        report = report._replace(nan=int(np.isnan(values).sum()), inf=int(np.isinf(values).sum()))
        check_report(unit, report, unit.options)
    return Encoded((x.reshape(-1),), report)
