"""What an item has encoded of some rows so far, for further targets that would get the same bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from qconvd.engine.graph import Rows
from qconvd.engine.journal import Record
from qconvd.engine.plan import Array, Encoder, Stateless, Unit

Key: TypeAlias = tuple[int, Rows]
"""A distinct expression of the pass, and rows of it."""


@dataclass(frozen=True, slots=True)
class _Made:
    encoder: type
    unit: Unit
    stats: Mapping[str, Array]
    data: Sequence[memoryview]
    record: Record


class CommonParts:
    """By one thread, of the rows that are at hand: presets of one type differ in a few tensors, the others are encoded once."""

    def __init__(self) -> None:
        self._keys: list[Key] = []
        self._rows: Rows = (0, 0)
        self._made: list[_Made] = []

    def at(self, keys: Sequence[Key], rows: Rows) -> None:
        """The chunks that follow are these rows of these expressions; what was made of others is forgotten."""
        if (self._keys, self._rows) != (keys, rows):
            self._keys, self._rows, self._made = list(keys), rows, []

    def find(self, encoder: Encoder, unit: Unit, stats: Mapping[str, Array]) -> tuple[Sequence[memoryview], Record] | None:
        """What a stateless encoder has made of such a unit with such statistics, for one that is stateless as well."""
        if not _is_stateless(encoder):
            return None
        for made in self._made:
            if made.encoder is type(encoder) and made.unit == unit and _same(made.stats, stats):
                return made.data, made.record
        return None

    def keep(
        self, encoder: Encoder, unit: Unit, stats: Mapping[str, Array], data: Sequence[memoryview], record: Record
    ) -> None:
        if _is_stateless(encoder):
            self._made.append(_Made(type(encoder), unit, stats, data, record))


def _is_stateless(encoder: Encoder) -> bool:
    return isinstance(encoder, Stateless) and encoder.stateless


def _same(some: Mapping[str, Array], others: Mapping[str, Array]) -> bool:
    """Mean squares are mostly one array, which the run has loaded once; a Hessian is an object and the same or another."""
    return some.keys() == others.keys() and all(
        one is others[key] or (isinstance(one, np.ndarray) and np.array_equal(one, others[key])) for key, one in some.items()
    )
