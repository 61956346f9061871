"""GGML's block types as a source: the operation `ggml` behind `Dequantize` expressions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qconvd.api import Array

PIECE = 1 << 18
"""Weights that are decoded at a time: what numpy makes on the way stays in the second-level cache."""


class GgmlDequantize:
    """Rows of one packed tensor as float32. Options: `type` (`Q4_K`) and `columns`, the weights of a row."""

    name = "ggml"

    def rows(
        self,
        shapes: Sequence[tuple[int, ...]],  # noqa: ARG002
        options: Mapping[str, Any],  # noqa: ARG002
        start: int,
        stop: int,
    ) -> Sequence[tuple[int, int]]:
        """The same rows."""
        return [(start, stop)]

    def apply(self, x: Sequence[Array], options: Mapping[str, Any], start: int, stop: int) -> Array:
        """`x[0]` is uint8 of shape (rows, bytes of a row); returns float32 of shape (rows, columns)."""
        import numpy as np

        from qconvd_ggml.decode import decode

        columns = int(options["columns"])
        out = np.empty((stop - start, columns), np.float32)
        step = max(1, PIECE // max(1, columns))
        for first in range(0, stop - start, step):
            out[first : first + step] = decode(options["type"], x[0][first : first + step], columns)
        return out
