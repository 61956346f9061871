"""The statistics that a run's plans name: files opened once, arrays loaded when the first chunk of a unit needs them."""

from __future__ import annotations

import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

from qconvd.engine.plan import Plan, StatRequest, Unit
from qconvd.errors import QconvdError
from qconvd.statistics import Imatrix, changed, open_statistics

KEPT = 32 << 20
"""Bytes of arrays that are kept for the next chunk, or the next target, that needs them."""


class Statistics:
    """All files of statistics of a run, shared by its targets. Thread-safe."""

    def __init__(self) -> None:
        self._open: dict[tuple[str, str], Imatrix] = {}
        self._kept: OrderedDict[tuple[str, StatRequest], Any] = OrderedDict()
        self._lock = threading.Lock()

    def open(self, plan: Plan) -> None:
        """Open the files of a plan. Raises `QconvdError` for one that is gone, changed, or lacks what a unit asks for."""
        for file in plan.statistics:
            if (key := (file.path, file.sha256)) not in self._open:
                self._open[key] = open_statistics(file.kind, Path(file.path), file.sha256)
        if plan.calibration is None:
            for unit in plan.units:
                for request in self.missing(plan, unit):
                    raise QconvdError(
                        f"{request.linear}: no file of the plan holds its {request.kind}",
                        fix="`qconvd reconvert JOB` plans anew",
                    )

    def missing(self, plan: Plan, unit: Unit) -> tuple[StatRequest, ...]:
        """What must be gathered for a unit, as none of the plan's files holds it."""
        return tuple(r.gathered for r in unit.statistics if self._holder(plan, r) is None)

    def of(self, plan: Plan, unit: Unit) -> dict[str, Any]:
        """What the plan's files hold for a unit, by `StatRequest.key`, as `Encoder.encode` has it. Do not write to it."""
        found = ((request, self._holder(plan, request)) for request in unit.statistics)
        return {request.key: self._array(holder, request) for request, holder in found if holder is not None}

    def check(self, plan: Plan) -> None:
        """Raise `QconvdError` if somebody wrote to a file while it was in use."""
        for file in plan.statistics:
            if not self._open[file.path, file.sha256].is_unchanged():
                raise changed(Path(file.path))

    def close(self) -> None:
        while self._open:
            self._open.popitem()[1].close()
        self._kept.clear()

    def _holder(self, plan: Plan, request: StatRequest) -> Imatrix | None:
        for file in plan.statistics:
            found = self._open[file.path, file.sha256]
            if request.kind in file.kinds and request.linear in found.entries:
                return found
        return None

    def _array(self, file: Imatrix, request: StatRequest) -> Any:
        key = (file.sha256, request)
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
            try:
                read = file.square_sums if request.kind == "square_sums" else file.mean_square
                array = read(request.linear)
            except Exception as error:
                # Of a file that somebody is just writing to, anything may be read.
                if not file.is_unchanged():
                    raise changed(file.path) from error
                raise
            array.flags.writeable = False
            self._kept[key] = array
            while len(self._kept) > 1 and sum(a.nbytes for a in self._kept.values()) > KEPT:
                self._kept.popitem(last=False)
            return array
