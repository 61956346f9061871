"""Products of columns of bfloat16 with each other, summed up in float32.

Columns are laid out in strips of WIDTH, two tokens of a column in one word, as the processor's dot product of pairs
(AVX512-BF16's VDPBF16PS) takes them. A tile of ROWS x WIDTH sums stays in registers over TOKENS tokens, and is then added to
the whole: no sum has more than TOKENS addends at once, and none depends on how many threads there are.

VDPBF16PS takes subnormal numbers (below 1e-38) for zero, and rounds after each of the two products.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from qconvd.calibration.kernels import CACHE

Scalar: TypeAlias = Any
Vector: TypeAlias = Any

WIDTH = 48
"""Columns of a strip: three vectors of 16, which with ROWS times as many sums fill the registers."""
ROWS = 8
TOKENS = 512
_VECTOR, _WORD = 16, 4
_DOT = "llvm.x86.avx512bf16.dpbf16ps.512"

_bits = types.Array(types.uint16, 2, "C", readonly=True)
_strips = types.Array(types.uint32, 3, "C")
_sums = types.Array(types.float32, 2, "C")


class _BFloat(ir.Type):  # type: ignore[misc]
    """llvmlite has no name for this type of LLVM's."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat)

    def __hash__(self) -> int:
        return hash(_BFloat)


_I32, _I64 = ir.IntType(32), ir.IntType(64)
_WORDS, _FLOATS = ir.VectorType(_I32, _VECTOR), ir.VectorType(ir.FloatType(), _VECTOR)
_PAIRS = ir.VectorType(_BFloat(), 2 * _VECTOR)


class _Tile:
    """Emits the loop over pairs of tokens for one tile."""

    def __init__(self, builder: Any, has_dot: bool) -> None:
        self.builder, self.has_dot = builder, has_dot

    def emit(self, rows: Any, columns: Any, pairs: Any, out: Any, stride: Any) -> None:
        """out[r, c] += sum over pairs of rows[r] . columns[c]; all but `pairs` (at least one) are addresses and bytes."""
        build = self.builder
        before = build.block
        loop, after = build.append_basic_block("pairs"), build.append_basic_block("summed")
        build.branch(loop)
        build.position_at_end(loop)
        pair = build.phi(_I64)
        pair.add_incoming(_I64(0), before)
        sums = [[build.phi(_FLOATS) for _ in range(0, WIDTH, _VECTOR)] for _ in range(ROWS)]
        offset = build.mul(pair, _I64(WIDTH * _WORD))
        rows, columns = build.add(rows, offset), build.add(columns, offset)
        right = [self._load(columns, c * _WORD, _WORDS) for c in range(0, WIDTH, _VECTOR)]
        for r, of_row in enumerate(sums):
            left = self._spread(self._load(rows, r * _WORD, _I32))
            for column, total in zip(right, of_row, strict=True):
                total.add_incoming(ir.Constant(_FLOATS, [0.0] * _VECTOR), before)
                total.add_incoming(self._dot(total, left, column), loop)
        following = build.add(pair, _I64(1))
        pair.add_incoming(following, loop)
        build.cbranch(build.icmp_signed("<", following, pairs), loop, after)
        build.position_at_end(after)
        for r, of_row in enumerate(sums):
            row = build.add(out, build.mul(stride, _I64(r)))
            for c, total in enumerate(of_row):
                place = build.inttoptr(build.add(row, _I64(c * _VECTOR * _WORD)), _FLOATS.as_pointer())
                build.store(build.fadd(build.load(place, align=_WORD), total.incomings[1][0]), place, align=_WORD)

    def _load(self, address: Any, offset: int, kind: Any) -> Any:
        place = self.builder.inttoptr(self.builder.add(address, _I64(offset)), kind.as_pointer())
        return self.builder.load(place, align=_WORD)

    def _spread(self, word: Any) -> Any:
        nothing = ir.Constant(_WORDS, ir.Undefined)
        first = self.builder.insert_element(nothing, word, _I32(0))
        return self.builder.shuffle_vector(first, nothing, ir.Constant(_WORDS, [0] * _VECTOR))

    def _dot(self, total: Any, left: Any, right: Any) -> Any:
        build = self.builder
        if self.has_dot:
            dot = self._function(_DOT, [_FLOATS, _PAIRS, _PAIRS])
            return build.call(dot, [total, build.bitcast(left, _PAIRS), build.bitcast(right, _PAIRS)])
        # Any other processor: bfloat16 is the upper half of float32.
        fused = self._function("llvm.fma.v16f32", [_FLOATS] * 3)
        for part in (self._lower, self._upper):
            total = build.call(fused, [part(left), part(right), total])
        return total

    def _function(self, name: str, arguments: Any) -> Any:
        """One of LLVM's own, which gives _FLOATS."""
        module = self.builder.module
        return module.globals.get(name) or ir.Function(module, ir.FunctionType(_FLOATS, arguments), name)

    def _lower(self, words: Any) -> Any:
        return self.builder.bitcast(self.builder.shl(words, ir.Constant(_WORDS, [16] * _VECTOR)), _FLOATS)

    def _upper(self, words: Any) -> Any:
        return self.builder.bitcast(self.builder.and_(words, ir.Constant(_WORDS, [0xFFFF0000] * _VECTOR)), _FLOATS)


def _add_tile(typing: Any, rows: Any, columns: Any, pairs: Any, out: Any, stride: Any) -> Any:  # noqa: ARG001
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ARG001
        _Tile(builder, has_dot()).emit(*arguments)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 5), generate


add_tile: Any = intrinsic(_add_tile)


def has_dot() -> bool:
    """Whether kernels are compiled for a processor with AVX512-BF16."""
    from numba import config

    settings: Any = config
    return "+avx512bf16" in (settings.CPU_FEATURES or "")


def _paired(x: Vector, strips: Vector, first: Scalar, last: Scalar) -> None:
    """Lay out columns of (tokens, columns) bfloat16 bits: strips first to last - 1 of (strips, pairs of tokens, WIDTH)."""
    tokens, columns = x.shape
    for strip in range(first, last):
        start, count = strip * WIDTH, min(WIDTH, columns - strip * WIDTH)
        if count < WIDTH or tokens % 2:
            strips[strip] = np.uint32(0)
        for pair in range(tokens // 2):
            low, high = x[2 * pair, start : start + count], x[2 * pair + 1, start : start + count]
            if count == WIDTH:
                for c in range(WIDTH):  # of a constant length: becomes SIMD
                    strips[strip, pair, c] = np.uint32(low[c]) | np.uint32(high[c]) << np.uint32(16)
            else:
                for c in range(count):
                    strips[strip, pair, c] = np.uint32(low[c]) | np.uint32(high[c]) << np.uint32(16)
        if tokens % 2:
            for c in range(count):
                strips[strip, tokens // 2, c] = np.uint32(x[tokens - 1, start + c])


paired = CACHE.entry(_paired, types.void(_bits, _strips, types.int64, types.int64))


def _add_products(strips: Vector, sums: Vector, first: Scalar, last: Scalar) -> None:
    """Add products of strips to `sums`, (columns, columns), of which those above the diagonal count.

    Of the pairs (row strip <= column strip), counted column by column, `first` to `last - 1` are made.
    """
    columns = sums.shape[0]
    every = strips.shape[1]
    data, out, stride = strips.ctypes.data, sums.ctypes.data, columns * _WORD
    edge = np.zeros((WIDTH, WIDTH), np.float32)
    for start in range(0, every, TOKENS // 2):
        pairs = min(TOKENS // 2, every - start)
        column, row = 0, first
        while row > column:
            row -= column + 1
            column += 1
        for _ in range(first, last):
            whole = (column + 1) * WIDTH <= columns
            right = data + (column * every + start) * WIDTH * _WORD
            left = data + (row * every + start) * WIDTH * _WORD
            for r in range(0, WIDTH, ROWS):
                if whole:
                    add_tile(
                        left + r * _WORD, right, pairs, out + ((row * WIDTH + r) * columns + column * WIDTH) * _WORD, stride
                    )
                else:
                    add_tile(left + r * _WORD, right, pairs, edge.ctypes.data + r * WIDTH * _WORD, WIDTH * _WORD)
            if not whole:
                for r in range(min(WIDTH, columns - row * WIDTH)):
                    for c in range(columns - column * WIDTH):
                        sums[row * WIDTH + r, column * WIDTH + c] += edge[r, c]
                edge[:] = np.float32(0.0)
            row += 1
            if row > column:
                row, column = 0, column + 1


add_products = CACHE.entry(_add_products, types.void(_strips, _sums, types.int64, types.int64))
