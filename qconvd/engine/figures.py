"""What encoding did to the numbers, as a manifest says it: figures over all units, and counts per tensor."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from qconvd.engine.journal import Record
from qconvd.engine.plan import UnitReport

WORST = 5
"""Tensors with the largest relative error that are named."""


def error_figures(reports: Mapping[str, UnitReport]) -> dict[str, Any]:
    """Over all tensors: root mean square error relative to the source's root mean square, largest error, counts, the worst.

    Figures have six significant digits; one that is no finite number is None.
    """
    total = sum(reports.values(), UnitReport())
    worst = sorted(((_relative(r), name) for name, r in reports.items() if _relative(r)), key=lambda e: (-(e[0] or 0), e[1]))
    return {
        "weights": int(total.weights),
        "relative_rms": _relative(total),
        "max_error": _rounded(total.max_error),
        **{name: int(getattr(total, name)) for name in ("overflows", "underflows", "nan", "inf")},
        "worst": [{"tensor": name, "relative_rms": value} for value, name in worst[:WORST]],
    }


def counts(report: UnitReport) -> dict[str, int]:
    """The counts of a tensor that are not zero."""
    names = ("overflows", "underflows", "nan", "inf")
    return {name: int(getattr(report, name)) for name in names if getattr(report, name)}


def said_of(
    calibration: Mapping[str, Any], records: Mapping[str, Sequence[Record]], unreached: Mapping[str, int]
) -> dict[str, Any]:
    """`calibration` with what encoders said of units: `linears`, their figures, and `fallbacks`, why one did without.

    Empty where there was no calibration and nothing was said.
    """
    linears: dict[str, dict[str, float | None]] = {}
    fallbacks = {name: f"no token reached {count} of its experts" for name, count in unreached.items()}
    for name, of_unit in records.items():
        if names := {key for r in of_unit for key in r.figures}:
            linears[name] = {key: _rounded(sum(r.figures.get(key, 0.0) for r in of_unit)) for key in sorted(names)}
        if said := next((r.fallback for r in of_unit if r.fallback), ""):
            fallbacks[name] = said
    return {**calibration, **({"linears": linears} if linears else {}), **({"fallbacks": fallbacks} if fallbacks else {})}


def _relative(report: UnitReport) -> float | None:
    """Root mean square error by root mean square of the source; None where that is no number."""
    if not report.square > 0 or not report.square_error >= 0:
        return None
    return _rounded(math.sqrt(report.square_error / report.square))


def _rounded(value: float) -> float | None:
    """Six significant digits: beyond those the order of addition shows."""
    return float(f"{value:.6g}") if math.isfinite(value) else None
