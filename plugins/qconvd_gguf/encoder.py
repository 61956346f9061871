"""The arithmetic of a GGUF file: every unit is one tensor, encoded by ggml's block kernels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from qconvd.api import Array, Encoded, Unit, UnitReport, check_report, row_bytes


class BlockEncoder:
    """Rows of one tensor as blocks of its type. Stateless; the kernels release the GIL."""

    def encode(self, unit: Unit, rows: tuple[int, int], x: Sequence[Array], stats: Mapping[str, Array]) -> Encoded:
        from qconvd_ggml.kernels import encode

        dtype, source = unit.outputs[0].dtype, unit.inputs[0].dtype
        if not unit.statistics:
            data, report = encode(dtype, x[0], source)
        else:
            import numpy as np

            columns = unit.shape[1]
            importance = stats[unit.statistics[0].key].reshape(-1, columns)
            data, report = np.empty((len(x[0]), row_bytes(dtype, columns)), np.uint8), UnitReport()
            for expert, first, last in _experts(rows, unit.shape[0] // len(importance)):
                part = encode(dtype, x[0][first:last], source, data[first:last], importance[expert])
                report += part[1]
        check_report(unit, report, unit.options)
        return Encoded((data,), report)


def _experts(rows: tuple[int, int], each: int) -> Iterator[tuple[int, int, int]]:
    """The experts that rows belong to, `each` rows long: (expert, first, last), counted from the first of the rows."""
    first, last = rows
    for expert in range(first // each, -(-last // each)):
        yield expert, max(first, expert * each) - first, min(last, (expert + 1) * each) - first
