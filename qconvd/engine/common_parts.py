"""What an item has encoded so far, for further targets that would get the same bytes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import numpy as np

from qconvd.engine.graph import Rows
from qconvd.engine.journal import Record
from qconvd.engine.plan import Array, Encoder, Stateless, Unit

Stats: TypeAlias = Mapping[str, Array]
Made: TypeAlias = tuple[Sequence[memoryview], Record]


class CommonParts:
    """Presets of one type differ in a few tensors, the others are encoded once. Lives as long as its item, in one thread.

    What it holds is what the item has credit for anyway: the outputs of all its chunks.
    """

    def __init__(self) -> None:
        self._made: dict[tuple[type, str, Rows], list[tuple[Unit, Stats, Made]]] = {}

    def once(self, encoder: Encoder, unit: Unit, rows: Rows, stats: Stats, make: Callable[[], Made]) -> Made:
        """What a stateless encoder has made of an equal unit with the same statistics, or else what `make` gives.

        What `make` raises is raised to its caller, and the next one tries again.
        """
        if not (isinstance(encoder, Stateless) and encoder.stateless):
            return make()
        alike = self._made.setdefault((type(encoder), unit.id, rows), [])
        for known, its, made in alike:
            if known == unit and _same(its, stats):
                return made
        alike.append((unit, stats, make()))
        return alike[-1][2]


def _same(some: Stats, others: Stats) -> bool:
    """Mean squares are mostly one array, which the run has loaded once; a Hessian is an object and the same or another."""
    return some.keys() == others.keys() and all(
        one is others[key] or (isinstance(one, np.ndarray) and np.array_equal(one, others[key])) for key, one in some.items()
    )
