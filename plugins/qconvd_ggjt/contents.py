"""What goes into a GGML file, before types are chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from qconvd.api import Expr, LeftOut, Read, Repeat, Reshape, TensorInfo


@dataclass(frozen=True)
class Held:
    """A tensor of the file: how it is made, and which rows belong together."""

    name: str
    expr: Expr
    layer: int | None
    multiple: int = 1
    stored: TensorInfo | None = None
    """The tensor of a GGUF or GGML source that it is made of without arithmetic: kept as it is where the type is the same."""
    times: int = 1
    """How often each head of the stored tensor stands here."""
    heads: int = 1

    @property
    def packed(self) -> Expr | None:
        """The stored blocks in the order of this tensor's rows."""
        return None if self.stored is None else repeated(Read.of(self.stored), self.heads, self.times)


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


def repeated(expr: Expr, heads: int, times: int) -> Expr:
    """Every head's rows `times` times in a row, as grouped-query attention shares them."""
    if times == 1:
        return expr
    rows, columns = expr.shape
    return Reshape(Repeat(Reshape(expr, (heads, rows // heads, columns)), 0, times), (rows * times, columns))
