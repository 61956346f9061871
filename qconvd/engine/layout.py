"""Where a plan's bytes go: each output tensor's place, each file's header, and the check that the plan adds up."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath

from qconvd.containers.base import Interleaves
from qconvd.engine.graph import matrix_rows, share
from qconvd.engine.plan import FileSpec, OutputTensor, Plan, RowSplit, Unit, Whole
from qconvd.errors import QconvdError, Unsupported
from qconvd.plugins import container


class Layout:
    """A plan's files and what lies where in them. Raises `QconvdError` if the plan contradicts itself."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.tensors: Mapping[str, OutputTensor] = {t.name: t for t in plan.tensors}
        self.units: Mapping[str, Unit] = {u.id: u for u in plan.units}
        self._places = {p.tensor: (i, p.offset) for i, f in enumerate(plan.files) for p in f.tensors}
        for problem in self._problems():
            raise QconvdError(f"the plan contradicts itself: {problem}", fix="this is a defect of the format's plugin")
        for unit in plan.units:
            if unit.statistics and not plan.statistics and not plan.calibration:
                raise Unsupported(
                    f"{unit.id} asks for statistics, and the plan names neither a file that holds them nor calibration",
                    fix="this is a defect of the format's plugin",
                )

    def pieces(self, unit: Unit, rows: tuple[int, int]) -> Iterator[tuple[int, int, int]]:
        """For each output of a unit: (index of its file, offset, bytes) of these rows."""
        total = unit.shape[0]
        for output in unit.outputs:
            index, offset = self._places[output.name]
            first, last = share(output.nbytes, total, rows[0]), share(output.nbytes, total, rows[1])
            yield index, offset + first, last - first

    def header(self, file: FileSpec) -> bytes:
        """The bytes before a file's first tensor."""
        if file.header:
            data = base64.b64decode(file.header)
        else:
            spec = self.plan.container
            data = container(spec.kind).header(spec, file, [self.tensors[p.tensor] for p in file.tensors])
        room = min((p.offset for p in file.tensors), default=file.nbytes)
        if len(data) > room:
            raise QconvdError(
                f"the header takes {len(data)} bytes, the plan leaves {room}",
                where=file.path,
                fix=f"this is a defect of the container {self.plan.container.kind}",
            )
        return data

    def between(self, file: FileSpec) -> Mapping[int, bytes]:
        """What the container writes between the tensors, by its place; nothing for most containers."""
        if file.header:  # the plan holds all that is written beside the tensors
            return {}
        kind = container(self.plan.container.kind)
        if not isinstance(kind, Interleaves):
            return {}
        return kind.between(self.plan.container, file, [self.tensors[p.tensor] for p in file.tensors])

    def gaps(self, file: FileSpec, header: int) -> Iterator[tuple[int, int]]:
        """The ranges of a file that no tensor and no header fills: zero bytes, but for what is `between`."""
        at = header
        for placed in sorted(file.tensors, key=lambda p: p.offset):
            yield at, placed.offset
            at = placed.offset + placed.nbytes
        yield at, file.nbytes

    def _problems(self) -> Iterator[str]:
        plan = self.plan
        if len(self.units) != len(plan.units) or len(self.tensors) != len(plan.tensors):
            yield "two units or two tensors have one name"
        paths = [f.path for f in plan.files] + [f.path for f in plan.side_files]
        if len(set(paths)) != len(paths):
            yield "two files have one path"
        for path in [*paths, *(f.source for f in plan.side_files if f.source)]:
            if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts or not path:
                yield f"the path {path!r} leaves the folder"
        placed = [p for f in plan.files for p in f.tensors]
        if sorted(p.tensor for p in placed) != sorted(self.tensors):
            yield "not every tensor has one place"
        for p in placed:
            if p.tensor in self.tensors and p.nbytes != self.tensors[p.tensor].nbytes:
                yield f"{p.tensor} has {self.tensors[p.tensor].nbytes} bytes and room for {p.nbytes}"
        for file in plan.files:
            if any(a > b for a, b in self.gaps(file, 0)):
                yield f"tensors of {file.path} overlap or do not fit in it"
        yield from (f"{u.id}: {problem}" for u in plan.units for problem in _unit_problems(u))


def _unit_problems(unit: Unit) -> Iterator[str]:
    if not unit.outputs or not (unit.inputs or unit.statistics):
        yield "a unit without inputs or outputs"
    elif not unit.inputs and any(r.kind == "hessian" for r in unit.statistics):
        yield "a unit made of Hessians alone, which nobody keeps to verify it"
    elif not unit.inputs and not isinstance(unit.rows, Whole):
        yield "a unit made of statistics alone that is not whole"
    elif isinstance(unit.rows, RowSplit):
        rows, multiple = matrix_rows(unit.inputs[0]), unit.rows.multiple
        if multiple < 1:
            yield f"chunks of multiples of {multiple} rows"
        for output in unit.outputs:
            if multiple < rows and output.nbytes * multiple % rows:
                yield f"the {output.nbytes} bytes of {output.name} do not divide among {rows} rows"
