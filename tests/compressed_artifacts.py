"""int8, int4 and FP8 artifacts of small models with every layout of compressed-tensors: the same bytes on any machine."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from converted import Converted, converted


@dataclass(frozen=True)
class Case:
    """An artifact to be made: of which model (reader_models.KINDS), by which format, with which options."""

    model: str
    format: str
    options: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Unique, and legible in a list of receipts."""
        return " ".join([self.model, self.format, *(f"{k}: {v}" for k, v in self.options.items())])

    def make(self, source: Path, out: Path) -> Converted:
        """Through the engine, in this process."""
        return converted(source, out, self.format, **self.options)


def rounded() -> Iterator[Case]:
    """Of a model that every group size divides, and of one that 128 divides in part: such linears stay in 16 bits."""
    for model in ("wide", "narrow"):
        yield Case(model, "int8", {})
        yield Case(model, "int8", {"scheme": "w8a8"})
        for group, sym, search in itertools.product((32, 64, 128, -1), (True, False), (False, True)):
            yield Case(model, "int4", {"group_size": group, "sym": sym, "mse": search})
        yield Case(model, "fp8", {})
        yield Case(model, "fp8", {"scheme": "block"})
