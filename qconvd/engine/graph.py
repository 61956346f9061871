"""The work of one pass: the units of all targets, cut into chunks and put together so that each source byte is read once.

Units that read a common tensor form a group. Groups go in the order embedding, layer 0 … n-1, head. Within a group,
chunks that need the same source bytes become one `Item`: one read, one evaluation per distinct expression, one encoding
per target, or one for all targets that get the same of it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import lcm
from typing import TypeAlias

from qconvd.checkpoints.base import ModelInfo
from qconvd.engine.elements import matrix
from qconvd.engine.evaluate import footprint
from qconvd.engine.expr import Expr, reads
from qconvd.engine.operations import Operation
from qconvd.engine.plan import Plan, Unit, Whole
from qconvd.engine.regions import Need, grain, merged, needs, period

CHUNK_BYTES = 4 << 20
"""Source bytes per chunk: large enough for the disk, small enough that a chunk and its outputs stay in the cache."""
SMALLEST_CHUNK = 64 << 10
"""Source bytes below which a chunk is not worth its overhead, however little memory there is."""
GRAIN_FACTOR = 4
"""How many times larger a chunk may get so that neighbours share no source row."""
SLACK = 2
"""How many times its share of the memory an item may take so that overlapping chunks are read together."""

Rows: TypeAlias = tuple[int, int]
Grid: TypeAlias = tuple[int, int]
"""How a unit's rows are cut: (rows per chunk, rows after which the cutting starts anew)."""
Done: TypeAlias = Callable[[int, str, Rows], bool]
UnitKey: TypeAlias = tuple[int, str]
"""A target's number and a unit's id."""


@dataclass(frozen=True, slots=True)
class Part:
    """One unit of one target. `inputs` number the distinct expressions of the pass."""

    target: int
    unit: Unit
    inputs: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Chunk:
    part: Part
    rows: Rows

    def input_rows(self, index: int) -> Rows:
        """The rows of an input that this chunk gets: the same, or all if the input has another number of rows."""
        total = matrix_rows(self.part.unit.inputs[index])
        return self.rows if total == self.part.unit.shape[0] else (0, total)


@dataclass(frozen=True, slots=True)
class Item:
    """What one thread does in one go: read `needs`, then evaluate and encode `chunks` in their order."""

    chunks: tuple[Chunk, ...]
    needs: tuple[Need, ...]
    memory: int
    """Bytes in flight from reading until everything is written."""


@dataclass(slots=True)
class _Group:
    parts: list[Part] = field(default_factory=list)
    order: tuple[int, int, int] = (0, 0, 0)


class Graph:
    """The pass over a model for some plans. `grids` of a plan are those of its journal, or None for a first start."""

    def __init__(
        self,
        model: ModelInfo,
        plans: Mapping[int, Plan],
        *,
        memory: int,
        operations: Mapping[str, Operation],
        grids: Mapping[int, Mapping[str, Grid] | None] | None = None,
    ) -> None:
        self._operations = operations
        self._memory = memory
        self._place = {name: i for i, name in enumerate(model.stored)}
        self._numbers: dict[str, int] = {}
        self._kept: dict[tuple[int, Rows], list[Need]] = {}
        self._groups = self._grouped(plans)
        self._group_of = {(p.target, p.unit.id): i for i, group in enumerate(self._groups) for p in group.parts}
        self.grids: dict[int, dict[str, Grid]] = {t: {} for t in plans}
        """Per target and unit: how its rows are cut, whether from its journal or decided now."""
        for group in self._groups:
            self._cut(group, grids or {})

    def items(self, done: Done, units: Collection[UnitKey] | None = None) -> Iterator[Item]:
        """All items in order, without the chunks of which `done(target, unit id, rows)` says that they are written.

        `units`: only those of these units. They are cut as ever, so that it does not matter with which others they are made.
        """
        if units is None:
            for group in self._groups:
                yield from self._joined(group.parts, done)
            return
        wanted = frozenset(units)
        for index in sorted({self._group_of[key] for key in wanted}):
            yield from self._joined([p for p in self._groups[index].parts if (p.target, p.unit.id) in wanted], done)

    def _grouped(self, plans: Mapping[int, Plan]) -> list[_Group]:
        root: dict[str, str] = {}

        def find(name: str) -> str:
            while root.setdefault(name, name) != name:
                root[name] = name = root[root[name]]
            return name

        parts: list[tuple[Part, str, tuple[int, int, int]]] = []
        for target, plan in plans.items():
            layered = next((i for i, u in enumerate(plan.units) if u.layer is not None), len(plan.units))
            for index, unit in enumerate(plan.units):
                names = sorted({n for x in unit.inputs for n in reads(x)}) or [f"\0{target}\0{unit.id}"]
                for name in names[1:]:
                    root[find(name)] = find(names[0])
                first = min(self._place.get(n, -1) for n in names)
                order = (1, unit.layer, first) if unit.layer is not None else (0 if index < layered else 2, 0, first)
                parts.append((Part(target, unit, tuple(self._number(x) for x in unit.inputs)), names[0], order))
        groups: dict[str, _Group] = {}
        for part, name, order in parts:
            group = groups.setdefault(find(name), _Group(order=order))
            group.parts.append(part)
            group.order = min(group.order, order)
        return sorted(groups.values(), key=lambda g: g.order)

    def _number(self, expr: Expr) -> int:
        return self._numbers.setdefault(repr(expr), len(self._numbers))

    def _cut(self, group: _Group, grids: Mapping[int, Mapping[str, Grid] | None]) -> None:
        """Decide how each unit's rows are cut: alike where rows have the same source bytes, so that chunks share reads."""
        sizes = {id(p): max(1, sum(n.nbytes for n in self._needs(Chunk(p, (0, p.unit.shape[0]))))) for p in group.parts}
        source = sum({self._part_key(p): sizes[id(p)] for p in group.parts}.values())
        everything = source + sum(t.nbytes for p in group.parts for t in p.unit.outputs) + self._evaluation(group.parts)
        fixed = max((p.unit.memory.get("cpu", 0) for p in group.parts if not isinstance(p.unit.rows, Whole)), default=0)
        room = max(0, self._memory - fixed) * source // everything
        wanted = min(CHUNK_BYTES, max(SMALLEST_CHUNK, room))
        alike: dict[int, list[Part]] = {}
        for part in group.parts:
            # Rows without a byte need no cutting; a tensor of 2^40 of them is a line in a hostile header.
            if isinstance(part.unit.rows, Whole) or not any(t.nbytes for t in part.unit.outputs):
                whole = max(1, part.unit.shape[0])  # no step of 0, if there are no rows either
                self.grids[part.target][part.unit.id] = (whole, whole)
            else:
                alike.setdefault(-(-sizes[id(part)] // part.unit.shape[0]), []).append(part)
        for row, parts in alike.items():
            for part in parts:
                known = (grids.get(part.target) or {}).get(part.unit.id)
                self.grids[part.target][part.unit.id] = known or self._grid(part, parts, max(1, wanted // row))

    def _grid(self, part: Part, alike: Sequence[Part], rows: int) -> Grid:
        total = part.unit.shape[0]
        own = _multiple(part.unit)
        again = period(part.unit.inputs[0])
        again = again if again % own == 0 else total
        common = lcm(*(_multiple(p.unit) for p in alike))
        aligned = lcm(common, *(grain(x) for p in alike for x in p.unit.inputs if matrix_rows(x) == p.unit.shape[0]))
        step = next((m for m in (aligned, common) if m <= GRAIN_FACTOR * rows), own)
        return max(step, rows // step * step), again

    def _joined(self, parts: Sequence[Part], done: Done) -> Iterator[Item]:
        clusters: dict[tuple[tuple[int, Rows], ...], list[Chunk]] = {}
        for part in parts:
            for rows in ranges(part.unit.shape[0], self.grids[part.target][part.unit.id]):
                if not done(part.target, part.unit.id, rows):
                    chunk = Chunk(part, rows)
                    clusters.setdefault(self._chunk_key(chunk), []).append(chunk)
        item: Item | None = None
        for mine, cluster in sorted(((self._needs(c[0]), c) for c in clusters.values()), key=lambda nc: self._position(nc[0])):
            alone = self._item(cluster, mine)
            if item is None:
                item = alone
                continue
            if _overlap(item.needs, mine):
                both = self._item([*item.chunks, *cluster], merged([*item.needs, *mine]))
                if both.memory <= max(SLACK * self._memory, item.memory, alone.memory):
                    item = both
                    continue
            yield item
            item = alone
        if item:
            yield item
        self._kept.clear()

    def _item(self, chunks: Sequence[Chunk], blocks: Sequence[Need]) -> Item:
        outputs = sum(share(t.nbytes, c.part.unit.shape[0], c.rows[1] - c.rows[0]) for c in chunks for t in c.part.unit.outputs)
        evaluated = max(
            sum(footprint(x, b - a) for i, x in enumerate(c.part.unit.inputs) for a, b in [c.input_rows(i)]) for c in chunks
        )
        working = max(c.part.unit.memory.get("cpu", 0) for c in chunks)
        ordered = sorted(chunks, key=lambda c: (c.part.inputs, c.rows, c.part.target))
        return Item(tuple(ordered), tuple(blocks), _nbytes(blocks) + outputs + 2 * evaluated + working)

    def _needs(self, chunk: Chunk) -> list[Need]:
        blocks: list[Need] = []
        for index, number in enumerate(chunk.part.inputs):
            key = (number, chunk.input_rows(index))
            if key not in self._kept:
                self._kept[key] = needs(chunk.part.unit.inputs[index], *key[1], self._operations)
            blocks += self._kept[key]
        return blocks if len(chunk.part.inputs) == 1 else merged(blocks)

    def _position(self, blocks: Sequence[Need]) -> tuple[int, int, int]:
        return min(((self._place.get(n.read.tensor, -1), n.r0, n.r1) for n in blocks), default=(-1, 0, 0))

    def _evaluation(self, parts: Sequence[Part]) -> int:
        return 2 * max(sum(footprint(x, matrix_rows(x)) for x in p.unit.inputs) for p in parts)

    def _part_key(self, part: Part) -> tuple[tuple[int, Rows], ...]:
        return self._chunk_key(Chunk(part, (0, part.unit.shape[0])))

    def _chunk_key(self, chunk: Chunk) -> tuple[tuple[int, Rows], ...]:
        return tuple((number, chunk.input_rows(i)) for i, number in enumerate(chunk.part.inputs))


def share(nbytes: int, total: int, rows: int) -> int:
    """The bytes of an output that belong to its first `rows` of `total` rows."""
    return nbytes * rows // total


def matrix_rows(expr: Expr) -> int:
    return matrix(expr.dtype, expr.shape)[0]


def _multiple(unit: Unit) -> int:
    return unit.shape[0] if isinstance(unit.rows, Whole) else unit.rows.multiple


def ranges(total: int, grid: Grid) -> Iterator[Rows]:
    """The chunks of a unit of `total` rows, in their order."""
    step, again = grid
    for base in range(0, total, again):
        end = min(total, base + again)
        for first in range(base, end, step):
            yield first, min(end, first + step)


def _nbytes(blocks: Sequence[Need]) -> int:
    return sum(n.nbytes for n in blocks)


def _overlap(a: Sequence[Need], b: Sequence[Need]) -> bool:
    return any(
        n.read.tensor == m.read.tensor and n.r0 < m.r1 and m.r0 < n.r1 and n.c0 < m.c1 and m.c0 < n.c1 for n in a for m in b
    )
