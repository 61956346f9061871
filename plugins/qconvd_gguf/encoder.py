"""The arithmetic of a GGUF file: every unit is one tensor, encoded by ggml's block kernels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from qconvd.api import Array, Encoded, Plan, Unit, UnitReport, check_report, row_bytes


class BlockEncoder:
    """Rows of one tensor as blocks of its type. The kernels release the GIL.

    What comes packed, or as integers, keeps its type (see requantize.py) and is copied.
    """

    stateless = True

    def prepare(self, plan: Plan) -> Iterator[str]:
        """Compile the kernels that the plan needs, or load them."""
        from qconvd_ggml.cache import CACHE, KERNELS
        from qconvd_ggml.kernels import SOURCES, ready

        needed: dict[str, str] = {}
        for unit in plan.units:
            if unit.inputs[0].dtype in SOURCES:
                dtype = unit.outputs[0].dtype
                weighted = f"{dtype}.imatrix" if unit.statistics else ""
                needed[weighted if weighted in KERNELS else dtype] = dtype
        for kernel, dtype in needed.items():
            if kernel in KERNELS:  # else `encode` says what is missing
                if not CACHE.is_compiled(kernel):
                    yield f"compiling {dtype} (once)"
                ready(kernel)

    def encode(self, unit: Unit, rows: tuple[int, int], x: Sequence[Array], stats: Mapping[str, Array]) -> Encoded:
        from qconvd_ggml.kernels import SOURCES, encode

        if unit.inputs[0].dtype not in SOURCES:
            return Encoded((x[0],), UnitReport(weights=(rows[1] - rows[0]) * unit.shape[1]))
        if unit.statistics:
            data, report = _weighted(unit, rows, x[0], stats[unit.statistics[0].key])
        else:
            data, report = encode(unit.outputs[0].dtype, x[0], unit.inputs[0].dtype)
        check_report(unit, report, unit.options)
        return Encoded((data,), report)


def _weighted(unit: Unit, rows: tuple[int, int], x: Array, importance: Array) -> tuple[Array, UnitReport]:
    """Rows of each expert with its own importance."""
    import numpy as np

    from qconvd_ggml.kernels import encode

    dtype, columns = unit.outputs[0].dtype, unit.shape[1]
    by_expert = importance.reshape(-1, columns)
    data, report = np.empty((len(x), row_bytes(dtype, columns)), np.uint8), UnitReport()
    for expert, first, last in experts_of(rows, unit.shape[0] // len(by_expert)):
        _, part = encode(dtype, x[first:last], unit.inputs[0].dtype, data[first:last], by_expert[expert])
        report += part
    return data, report


def experts_of(rows: tuple[int, int], each: int) -> Iterator[tuple[int, int, int]]:
    """The experts that rows belong to, `each` rows long: (expert, first, last), counted from the first of the rows."""
    first, last = rows
    for expert in range(first // each, -(-last // each)):
        yield expert, max(first, expert * each) - first, min(last, (expert + 1) * each) - first
