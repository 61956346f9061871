"""Products of columns of bfloat16 with each other, summed up in float32.

Columns are laid out in strips of WIDTH, two tokens of a column in one word, as the processor's dot product of pairs
(AVX512-BF16's VDPBF16PS) takes them. A tile of ROWS x WIDTH sums stays in registers over TOKENS tokens, and is then added to
the whole: no sum has more than TOKENS addends at once, and none depends on how many threads there are.

VDPBF16PS takes subnormal numbers (below 1e-38) for zero, and rounds after each of the two products.
"""

from __future__ import annotations

from functools import cache
from typing import Any, TypeAlias

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from qconvd.calibration.kernels import CACHE
from qconvd.calibration.kernels.emitted import emitting

Scalar: TypeAlias = Any
Vector: TypeAlias = Any

WIDTH = 64
"""Columns of a strip: four vectors of 16, whose ROWS times as many sums stay in registers; two of AMX's squares."""
ROWS = 4
TOKENS = 256
PAIRS = 16
"""Strips hold a multiple of so many pairs of tokens, the last ones zero: AMX takes so many at once."""
GROUP = 8
"""Strips that stay in the cache while all others are multiplied with them."""
_VECTOR, WORD = 16, 4
_DOT = "llvm.x86.avx512bf16.dpbf16ps.512"

_bits = types.Array(types.uint16, 2, "C", readonly=True)
_floats = types.Array(types.float32, 2, "A", readonly=True)
STRIPS = types.Array(types.uint32, 3, "C")
SUMS = types.Array(types.float32, 2, "A")
PAIRED = types.Array(types.int64, 2, "C", readonly=True)


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
_BFLOATS, _PAIRS = ir.VectorType(_BFloat(), _VECTOR), ir.VectorType(_BFloat(), 2 * _VECTOR)
_HALVES = ir.VectorType(ir.IntType(16), _VECTOR)


def _each(number: int) -> Any:
    return ir.Constant(_WORDS, [number] * _VECTOR)


class _Emitter:
    """Emits what LLVM makes one instruction of."""

    def __init__(self, builder: Any) -> None:
        self.builder, self.has_dot = builder, compiled_with("avx512bf16")

    def multiplied(self, rows: Any, columns: Any, pairs: Any, out: Any) -> None:
        """out[r, c] = sum over pairs of rows[r] . columns[c]; all but `pairs` (at least one) are addresses and bytes."""
        build = self.builder
        before = build.block
        loop, after = build.append_basic_block("pairs"), build.append_basic_block("summed")
        build.branch(loop)
        build.position_at_end(loop)
        pair = build.phi(_I64)
        pair.add_incoming(_I64(0), before)
        sums = [[build.phi(_FLOATS) for _ in range(0, WIDTH, _VECTOR)] for _ in range(ROWS)]
        offset = build.mul(pair, _I64(WIDTH * WORD))
        rows, columns = build.add(rows, offset), build.add(columns, offset)
        right = [self._load(columns, c * WORD, _WORDS) for c in range(0, WIDTH, _VECTOR)]
        for r, of_row in enumerate(sums):
            left = self._spread(self._load(rows, r * WORD, _I32))
            for column, total in zip(right, of_row, strict=True):
                total.add_incoming(ir.Constant(_FLOATS, [0.0] * _VECTOR), before)
                total.add_incoming(self._dot(total, left, column), loop)
        following = build.add(pair, _I64(1))
        pair.add_incoming(following, loop)
        build.cbranch(build.icmp_signed("<", following, pairs), loop, after)
        build.position_at_end(after)
        for r, of_row in enumerate(sums):
            row = build.add(out, _I64(r * WIDTH * WORD))
            for c, total in enumerate(of_row):
                place = build.inttoptr(build.add(row, _I64(c * _VECTOR * WORD)), _FLOATS.as_pointer())
                build.store(total.incomings[1][0], place, align=WORD)

    def _load(self, address: Any, offset: int, kind: Any) -> Any:
        place = self.builder.inttoptr(self.builder.add(address, _I64(offset)), kind.as_pointer())
        return self.builder.load(place, align=WORD)

    def _spread(self, word: Any) -> Any:
        nothing = ir.Constant(_WORDS, ir.Undefined)
        first = self.builder.insert_element(nothing, word, _I32(0))
        return self.builder.shuffle_vector(first, nothing, _each(0))

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
        return self.builder.bitcast(self.builder.shl(words, _each(16)), _FLOATS)

    def _upper(self, words: Any) -> Any:
        return self.builder.bitcast(self.builder.and_(words, _each(0xFFFF0000)), _FLOATS)

    def rounded_pairs(self, low: Any, high: Any, out: Any) -> None:
        """Words of two bfloat16: from 16 float32 at `low` and as many at `high`."""
        build = self.builder
        both = build.or_(self._rounded(low), build.shl(self._rounded(high), _each(16)))
        build.store(both, build.inttoptr(out, _WORDS.as_pointer()), align=WORD)

    def added(self, made: Any, out: Any) -> None:
        """Add 16 numbers to others."""
        build = self.builder
        total = build.fadd(self._load(made, 0, _FLOATS), self._load(out, 0, _FLOATS))
        build.store(total, build.inttoptr(out, _FLOATS.as_pointer()), align=WORD)

    def _rounded(self, address: Any) -> Any:
        """Words of one bfloat16. NaN stays NaN."""
        build = self.builder
        if self.has_dot:
            halves = build.bitcast(build.fptrunc(self._load(address, 0, _FLOATS), _BFLOATS), _HALVES)
            return build.zext(halves, _WORDS)
        bits = self._load(address, 0, _WORDS)
        odd = build.and_(build.lshr(bits, _each(16)), _each(1))
        nearest = build.lshr(build.add(bits, build.add(odd, _each(0x7FFF))), _each(16))
        quiet = build.or_(build.lshr(bits, _each(16)), _each(0x40))
        nan = build.icmp_unsigned(">", build.and_(bits, _each(0x7FFFFFFF)), _each(0x7F800000))
        return build.select(nan, quiet, nearest)


def _multiplied(typing: Any, rows: Any, columns: Any, pairs: Any, out: Any) -> Any:  # noqa: ARG001
    return emitting(4, lambda b, *a: _Emitter(b).multiplied(*a))


def _rounded_pairs(typing: Any, low: Any, high: Any, out: Any) -> Any:  # noqa: ARG001
    return emitting(3, lambda b, *a: _Emitter(b).rounded_pairs(*a))


def _added(typing: Any, made: Any, out: Any) -> Any:  # noqa: ARG001
    return emitting(2, lambda b, *a: _Emitter(b).added(*a))


multiplied: Any = intrinsic(_multiplied)
added: Any = intrinsic(_added)
rounded_pairs: Any = intrinsic(_rounded_pairs)


def compiled_with(feature: str) -> bool:
    """Whether kernels are compiled for a processor with this feature of LLVM's."""
    from numba import config

    settings: Any = config
    return f"+{feature}" in (settings.CPU_FEATURES or "").split(",")


def _paired(x: Vector, strips: Vector, first: Scalar, last: Scalar) -> None:
    """Lay out columns of (tokens, columns) bfloat16 bits: strips first to last - 1 of (strips, pairs of tokens, WIDTH).

    What `strips` has more than there are tokens and columns is zero.
    """
    tokens, columns = x.shape
    for strip in range(first, last):
        start, count = strip * WIDTH, min(WIDTH, columns - strip * WIDTH)
        strips[strip, 0 if count < WIDTH else tokens // 2 :] = np.uint32(0)
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


def _paired_floats(x: Vector, strips: Vector) -> None:
    """As `paired`, all strips, of (tokens, columns) float32, each row contiguous, which is rounded."""
    tokens, columns = x.shape
    edge = np.zeros((2, WIDTH), np.float32)
    for strip in range(strips.shape[0]):
        start, count = strip * WIDTH, min(WIDTH, columns - strip * WIDTH)
        strips[strip, -(-tokens // 2) :] = np.uint32(0)
        for pair in range(-(-tokens // 2)):
            low = x.ctypes.data + 2 * pair * x.strides[0] + start * WORD
            high = low + x.strides[0]
            if count < WIDTH or 2 * pair + 1 == tokens:
                edge[:] = np.float32(0.0)
                for of_two in range(min(2, tokens - 2 * pair)):
                    for c in range(count):
                        edge[of_two, c] = x[2 * pair + of_two, start + c]
                low, high = edge.ctypes.data, edge.ctypes.data + WIDTH * WORD
            out = strips.ctypes.data + (strip * strips.shape[1] + pair) * WIDTH * WORD
            for c in range(0, WIDTH * WORD, _VECTOR * WORD):
                rounded_pairs(low + c, high + c, out + c)


paired = CACHE.entry(_paired, types.void(_bits, STRIPS, types.int64, types.int64))
paired_floats = CACHE.entry(_paired_floats, types.void(_floats, STRIPS))


def _add_made(made: Vector, sums: Vector, row: Scalar, column: Scalar) -> None:
    """Add what was made to `sums` from a place on, as far as they go."""
    rows, columns = min(made.shape[0], sums.shape[0] - row), min(made.shape[1], sums.shape[1] - column)
    for i in range(rows):
        of_made = made.ctypes.data + i * made.strides[0]
        out = sums.ctypes.data + (row + i) * sums.strides[0] + column * WORD
        for c in range(0, columns - _VECTOR + 1, _VECTOR):
            added(of_made + c * WORD, out + c * WORD)
        for c in range(columns // _VECTOR * _VECTOR, columns):
            sums[row + i, column + c] += made[i, c]


add_made = CACHE.block(_add_made)


def _add_products(left: Vector, right: Vector, sums: Vector, pairs: Vector, first: Scalar, last: Scalar) -> None:
    """Add products of strips to `sums`, (columns of left, columns of right): `first` to `last - 1` of `pairs` of strips."""
    every = right.shape[1]
    made = np.empty((ROWS, WIDTH), np.float32)
    for i in range(first, last):
        row, column = pairs[i, 0] * WIDTH, pairs[i, 1] * WIDTH
        for start in range(0, every, TOKENS // 2):
            count = min(TOKENS // 2, every - start)
            of_left = left.ctypes.data + (row * every + start * WIDTH) * WORD
            of_right = right.ctypes.data + (column * every + start * WIDTH) * WORD
            for r in range(0, min(WIDTH, sums.shape[0] - row), ROWS):
                multiplied(of_left + r * WORD, of_right, count, made.ctypes.data)
                add_made(made, sums, row + r, column)


add_products = CACHE.entry(_add_products, types.void(STRIPS, STRIPS, SUMS, PAIRED, types.int64, types.int64))


@cache
def pairs_of_strips(left: int, right: int, triangle: bool) -> NDArray[np.int64]:
    """(count, 2): which of so many strips to multiply with each other; of a triangle, those on and above the diagonal.

    In an order in which GROUP strips of `right` stay in the cache.
    """
    groups = (range(first, min(first + GROUP, right)) for first in range(0, right, GROUP))
    pairs = [(row, c) for group in groups for row in range(left) for c in group if row <= c or not triangle]
    return np.array(pairs, np.int64)
