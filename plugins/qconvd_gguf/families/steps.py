"""The changes that families name: from a checkpoint's tensor to GGUF's, as expressions."""

from __future__ import annotations

from dataclasses import dataclass

from qconvd.api import Affine, Concat, Expr, Permute, Reshape, Slice, Transpose
from qconvd_gguf.families.base import Numbers, Step, product


@dataclass(frozen=True)
class RopePairs(Step):
    """Rows of a query or key projection so that the two halves of each head's rotation lie side by side.

    transformers rotates element j with j + d/2 of a head, llama.cpp (for the families that ask for this) 2j with 2j + 1:
    rows `[heads, 2, d/2]` become `[heads, d/2, 2]`. Works on weights and on biases.
    """

    heads: str
    width: str = "head_dim"

    def apply(self, x: Expr, numbers: Numbers) -> Expr:
        heads, width = product(self.heads, numbers), product(self.width, numbers)
        rest = x.shape[1:]
        halves = Reshape(x, (heads, 2, width // 2, *rest))
        pairs = Permute(halves, (0, 2, 1, *range(3, 3 + len(rest))))
        return Reshape(pairs, x.shape)

    def undo(self, x: Expr, numbers: Numbers) -> Expr:
        heads, width = product(self.heads, numbers), product(self.width, numbers)
        rest = x.shape[1:]
        pairs = Reshape(x, (heads, width // 2, 2, *rest))
        return Reshape(Permute(pairs, (0, 2, 1, *range(3, 3 + len(rest)))), x.shape)

    def rows(self, numbers: Numbers) -> int:
        return int(product(self.width, numbers))


@dataclass(frozen=True)
class Transposed(Step):
    """`[in, out]` to `[out, in]`: GPT-2 stores its linears the other way round."""

    def apply(self, x: Expr, numbers: Numbers) -> Expr:  # noqa: ARG002
        return Transpose(x)

    def undo(self, x: Expr, numbers: Numbers) -> Expr:  # noqa: ARG002
        return Transpose(x)

    def rows(self, numbers: Numbers) -> int:  # noqa: ARG002
        # A chunk of output rows reads as many columns of the source: 64 of them fill at least a cache line each.
        return 64


@dataclass(frozen=True)
class PlusOne(Step):
    """Norm weights that the checkpoint stores minus one."""

    def apply(self, x: Expr, numbers: Numbers) -> Expr:  # noqa: ARG002
        return Affine(x, offset=1.0)

    def undo(self, x: Expr, numbers: Numbers) -> Expr:  # noqa: ARG002
        return Affine(x, offset=-1.0)


@dataclass(frozen=True)
class Part(Step):
    """`start:stop` along an axis: one of several linears that the checkpoint keeps in one tensor."""

    start: str
    stop: str
    axis: int = 0

    def apply(self, x: Expr, numbers: Numbers) -> Expr:
        return Slice(x, self.axis, product(self.start, numbers), product(self.stop, numbers))


@dataclass(frozen=True)
class RowsFrom(Step):
    """Without the first rows: the places that a position table keeps for padding."""

    start: str

    def apply(self, x: Expr, numbers: Numbers) -> Expr:
        start = product(self.start, numbers)
        return Slice(x, 0, start, x.shape[0]) if start else x

    def undo(self, x: Expr, numbers: Numbers) -> Expr:
        return super().undo(x, numbers) if product(self.start, numbers) else x


@dataclass(frozen=True)
class Ungrouped(Step):
    """Rows of a fused query, key and value projection that lie group by group: all queries first, then keys, then values.

    Each of the `groups` (one head, or the query heads that share a key head) holds rows for `queries` heads of query, one
    of key and one of value, each of `width` rows. Works on weights and on biases.
    """

    groups: str
    queries: str = "1"
    width: str = "head_dim"

    def apply(self, x: Expr, numbers: Numbers) -> Expr:
        groups, width = product(self.groups, numbers), product(self.width, numbers)
        heads = product(self.queries, numbers)
        rest = x.shape[1:]
        grouped = Reshape(x, (groups, heads + 2, width, *rest))
        spans = ((0, heads), (heads, heads + 1), (heads + 1, heads + 2))
        return Concat(tuple(Reshape(Slice(grouped, 1, a, b), (groups * (b - a) * width, *rest)) for a, b in spans), 0)

    def undo(self, x: Expr, numbers: Numbers) -> Expr:
        groups, width = product(self.groups, numbers), product(self.width, numbers)
        heads = product(self.queries, numbers)
        rest, ends = x.shape[1:], (0, groups * heads * width, groups * (heads + 1) * width, groups * (heads + 2) * width)
        parts = [Slice(x, 0, ends[n], ends[n + 1]) for n in range(3)]
        apart = tuple(Reshape(part, (groups, -(-part.shape[0] // (groups * width)), width, *rest)) for part in parts)
        return Reshape(Concat(apart, 1), x.shape)

    def rows(self, numbers: Numbers) -> int:
        return int(product(self.width, numbers))


@dataclass(frozen=True)
class PerHead(Step):
    """Rows as `[heads, rows of a head]`, so that a part of every head (or expert) can be taken."""

    heads: str

    def apply(self, x: Expr, numbers: Numbers) -> Expr:
        heads = product(self.heads, numbers)
        return Reshape(x, (heads, x.shape[0] // heads, *x.shape[1:]))

    def undo(self, x: Expr, numbers: Numbers) -> Expr:  # noqa: ARG002
        return Reshape(x, (x.shape[0] * x.shape[1], *x.shape[2:]))


@dataclass(frozen=True)
class Times(Step):
    """Multiplied by a number of the family; as it is where that is one."""

    factor: str

    def apply(self, x: Expr, numbers: Numbers) -> Expr:
        factor = float(product(self.factor, numbers))
        return x if factor == 1 else Affine(x, scale=factor)

    def undo(self, x: Expr, numbers: Numbers) -> Expr:
        factor = float(product(self.factor, numbers))
        if not factor:
            return super().undo(x, numbers)
        return x if factor == 1 else Affine(x, scale=1 / factor)
