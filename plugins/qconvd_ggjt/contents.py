"""What goes into a GGML file, before types are chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from qconvd.api import Expr, LeftOut, TensorInfo


@dataclass(frozen=True)
class Held:
    """A tensor of the file: how it is made, and which rows belong together."""

    name: str
    expr: Expr
    layer: int | None
    multiple: int = 1
    stored: TensorInfo | None = None
    """The tensor of a GGUF or GGML source that it is, if nothing is done to it: kept as it is where the type is the same."""


@dataclass(frozen=True)
class Contents:
    """A file of one family. `numbers` are those of its header but for the last, the file's type."""

    family: str
    numbers: tuple[int, ...]
    tokens: Sequence[bytes]
    scores: Sequence[float]
    tensors: tuple[Held, ...]
    floats: frozenset[str]
    """Matrices that readers want as F32 in every file."""
    one_type: bool
    """Whether readers take all matrices to be of one type."""
    traits: Mapping[str, object]
    """What the mixes of K types look at: keys of GGUF's metadata."""
    dropped: tuple[LeftOut, ...] = ()
    notes: tuple[str, ...] = ()
    grown: int = 0
    """Weights that are there a second time because grouped-query attention was expanded."""
