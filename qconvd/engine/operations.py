"""Arithmetic that expressions refer to by name: dequantizers of packed sources, and what plugins add."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from qconvd.engine.plan import Array


class Operation(Protocol):
    """One named operation: what `Dequantize.scheme` and `Named.name` point to.

    `rows` says which rows of each input the output rows `start:stop` need, so that the engine reads no more than those;
    `apply` computes them: it gets one (rows, columns) numpy array per input, as asked for by `rows`, and returns a
    (stop - start, columns) array of the expression's dtype.
    """

    name: str

    def rows(
        self, shapes: Sequence[tuple[int, ...]], options: Mapping[str, Any], start: int, stop: int
    ) -> Sequence[tuple[int, int]]: ...

    def apply(self, x: Sequence[Array], options: Mapping[str, Any], start: int, stop: int) -> Array: ...
