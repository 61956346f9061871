"""What all kernels are built from: tiles of 64 lanes, unrolled folds over them, and ggml's 16-bit conversions.

A tile holds LANES groups of weights side by side and transposed: `x[j * LANES + lane]` is weight `j` of group `lane`. A group
is a block of 32 for the legacy types and a sub-block of 16 or 32 for the K types. Each function marked `inline` is the scalar
algorithm for one lane, in ggml's own order of float operations; its loop over the weights is a fold unrolled at compile time,
so the loop over the lanes is the innermost one that LLVM sees, and becomes SIMD. No fastmath: nothing is contracted or
reordered, so the bytes are those of a llama.cpp built for plain x86-64, on any CPU.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cache as memo
from typing import Any, NamedTuple, TypeAlias, TypeVar

import numpy as np
from llvmlite import ir
from numba import types
from numba.core.errors import TypingError
from numba.extending import intrinsic

from qconvd_ggml.cache import CACHE
from qconvd_ggml.lattice import Lattice

LANES = 64
BF16, F16, F32 = 0, 1, 2
"""What the source holds: the first argument of every kernel."""

Scalar: TypeAlias = Any
"""A number inside a kernel; which width it has is decided by the explicit np.float32(…) and np.uint32(…) around it."""
Vector: TypeAlias = Any
"""A numpy array inside a kernel."""
Function = TypeVar("Function", bound=Callable[..., Any])

_i64 = types.int64
_halves = types.Array(types.uint16, 1, "C", readonly=True)
_singles = types.Array(types.float32, 1, "C", readonly=True)
_bytes = types.Array(types.uint8, 1, "C")
_sums = types.Array(types.float64, 1, "C")
SIGNATURE = types.void(_i64, _halves, _singles, _bytes, _i64, _sums)
"""(source kind, source if 16 bits wide, source if F32, bytes to fill, number of groups, sums for the report).

A read-only parameter takes writable arrays too, so this one signature serves every caller and is compiled once.
"""


class Importance(NamedTuple):
    """How much errors count, and which groups of the rows a call is about."""

    values: Vector
    """One float32 per column of the rows; empty where there is no importance matrix."""
    squares: Vector
    """The sum of the squares of each row for kernels that ask for it (`kernels.Entry.squares`), otherwise nothing.

    The last tile of the rows is filled up with zeros; this reaches as far as it does.
    """
    columns: Scalar
    first: Scalar
    """Group `g` of a call is group `first + g` of the rows: it begins at column `(first + g) * width % columns` of row
    `(first + g) * width // columns`."""


_tuple: Any = types.NamedTuple
_importance = _tuple((_singles, _singles, _i64, _i64), Importance)
_lattice = _tuple(
    [types.Array(kind, 1, "C") for kind in (types.int8, types.int32, types.int32, types.int32, types.uint16, types.int8)],
    Lattice,
)
WEIGHTED_SIGNATURE = types.void(_i64, _halves, _singles, _importance, _bytes, _i64, _sums)
"""(source kind, source if 16 bits wide, source if F32, importance, bytes to fill, number of groups, sums for the report).

The arrays of a tuple must be as read-only as they are said to be: numba turns no writable array into a read-only one there.
"""
LATTICE_SIGNATURE = types.void(_i64, _halves, _singles, _importance, _bytes, _i64, _sums, _lattice)
"""The same, and the lattice. The importance is empty where there is none."""
SQUARES_SIGNATURE = types.void(_i64, _halves, _singles, _i64, types.Array(types.float32, 1, "C"))
"""(source kind, source if 16 bits wide, source if F32, columns, one sum per row to fill)."""


def kernel(function: Function) -> Any:
    """An entry point of SIGNATURE: kept in the disk cache, compiled when `kernels.ready` asks.

    It must stand at module level and reach its building blocks as globals, otherwise numba cannot find it in the cache again.
    """
    return CACHE.entry(function, SIGNATURE)


def weighted_kernel(function: Function) -> Any:
    """The same with WEIGHTED_SIGNATURE: for encoding with an importance matrix."""
    return CACHE.entry(function, WEIGHTED_SIGNATURE)


def lattice_kernel(function: Function) -> Any:
    """The same with LATTICE_SIGNATURE."""
    return CACHE.entry(function, LATTICE_SIGNATURE)


def squares_kernel(function: Function) -> Any:
    """The same with SQUARES_SIGNATURE."""
    return CACHE.entry(function, SQUARES_SIGNATURE)


def inline(function: Function) -> Function:
    """A building block that becomes part of whoever calls it."""
    return CACHE.block(function)


def shared(function: Function) -> Function:
    """A building block that stays a function of its own, called once per tile.

    Within a large kernel LLVM gives up making SIMD of some loops that it does make SIMD of in a small function. That it is not
    to be inlined must be said: numba takes this setting over from the caller.
    """
    # Its machine code is found by its name and a number that numba counts from the start of the process. Kernels that different
    # processes compiled meet in one through the cache, so what the closure holds must be in the name.
    digest = hashlib.sha256(repr(_held(function)).encode()).hexdigest()[:16]
    function.__qualname__ = f"{function.__qualname__}_{digest}"
    return CACHE.block(function, inline=False)


def _held(function: Any) -> list[Any]:
    """What a closure holds, and the closures in it hold: numbers, and names of functions."""
    plain = getattr(function, "py_func", None) or getattr(function, "__wrapped__", function)
    values = [cell.cell_contents for cell in plain.__closure__ or ()]
    return [plain.__qualname__, *(_held(v) if callable(v) else repr(v) for v in values)]


def _pick(typing: Any, condition: Any, yes: Any, no: Any) -> Any:  # noqa: ARG001
    if yes != no:
        raise TypingError(f"pick between {yes} and {no}")

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ARG001
        # LLVM 22 writes `a[i] = yes if condition else a[i]` with a masked store, which is slow on AMD's processors. It does
        # not see through `freeze`, which becomes no instruction.
        chosen = builder.select(*arguments)
        frozen = ir.instructions.Instruction(builder.block, chosen.type, "freeze", [chosen])
        builder._insert(frozen)
        return frozen

    return yes(types.boolean, yes, no), generate


pick: Any = intrinsic(_pick)
"""pick(condition, yes, no): `yes if condition else no`, both of which are computed: LLVM's `select`.

Of Python's own expression numba makes a branch, and LLVM may leave it one, as it would rather not divide, or read memory, for
nothing. Without AVX-512's masks the loop over the lanes is then no SIMD.
"""


@memo
def fold(step: Function, count: int) -> Function:
    """`step(j, lane, x, state, fixed) -> state`, done for j, j+1, … j+count-1 in this order, without a loop."""
    if count == 1:
        return step
    if count % 4 == 0:
        quarter = count // 4
        part = fold(step, quarter)

        @inline
        def four(j: Scalar, lane: Scalar, x: Vector, state: Scalar, fixed: Scalar) -> Scalar:
            state = part(j, lane, x, state, fixed)
            state = part(j + quarter, lane, x, state, fixed)
            state = part(j + 2 * quarter, lane, x, state, fixed)
            return part(j + 3 * quarter, lane, x, state, fixed)

        return four  # type: ignore[return-value]
    half = count // 2
    first, second = fold(step, half), fold(step, count - half)

    @inline
    def both(j: Scalar, lane: Scalar, x: Vector, state: Scalar, fixed: Scalar) -> Scalar:
        return second(j + half, lane, x, first(j, lane, x, state, fixed), fixed)

    return both  # type: ignore[return-value]


@inline
def f16_bits(value: Scalar) -> Scalar:
    """float32 to the bits of an IEEE half, round to nearest even; NaN becomes the quiet NaN 0x7e00 with its sign.

    The method of ggml_compute_fp32_to_fp16: scaling up and down makes what is too big infinite; adding a power of two whose
    exponent follows the value's own rounds the mantissa to the bits that a half has room for.
    """
    bits = np.float32(value).view(np.uint32)
    doubled = np.uint32(bits << np.uint32(1))
    exponent = max(np.uint32(doubled & np.uint32(0xFF000000)), np.uint32(0x71000000))
    magnitude = (np.float32(abs(value)) * np.float32(2.0**112)) * np.float32(2.0**-110)
    rounded = np.uint32((exponent >> np.uint32(1)) + np.uint32(0x07800000)).view(np.float32) + magnitude
    parts = np.float32(rounded).view(np.uint32)
    finite = np.uint32(np.uint32(parts >> np.uint32(13)) & np.uint32(0x7C00)) + np.uint32(parts & np.uint32(0x0FFF))
    sign = np.uint32(np.uint32(bits >> np.uint32(16)) & np.uint32(0x8000))
    return np.uint16(sign | (np.uint32(0x7E00) if doubled > np.uint32(0xFF000000) else np.uint32(finite)))


@inline
def f16_value(half: Scalar) -> Scalar:
    """The float32 that the bits of an IEEE half stand for; NaN is quieted and keeps its payload."""
    word = np.uint32(np.uint32(half) << np.uint32(16))
    doubled = np.uint32(word + word)
    normal = np.uint32((doubled >> np.uint32(4)) + np.uint32(0x70000000)).view(np.float32) * np.float32(2.0**-112)
    tiny = np.uint32((doubled >> np.uint32(17)) | np.uint32(0x3F000000)).view(np.float32) - np.float32(0.5)
    value = np.float32(tiny if doubled < np.uint32(1 << 27) else normal).view(np.uint32)
    return np.uint32(value | np.uint32(word & np.uint32(0x80000000))).view(np.float32)


@inline
def bf16_bits(value: Scalar) -> Scalar:
    """float32 to bfloat16, round to nearest even; NaN keeps its high bits and is made quiet (ggml_compute_fp32_to_bf16)."""
    bits = np.float32(value).view(np.uint32)
    quiet = np.uint32((bits >> np.uint32(16)) | np.uint32(64))
    odd = np.uint32((bits >> np.uint32(16)) & np.uint32(1))
    rounded = np.uint32(np.uint32(bits + np.uint32(0x7FFF) + odd) >> np.uint32(16))
    return np.uint16(quiet if np.uint32(bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000) else rounded)


@inline
def bf16_value(bits: Scalar) -> Scalar:
    """The float32 that the bits of a bfloat16 stand for."""
    return np.uint32(np.uint32(bits) << np.uint32(16)).view(np.float32)


@inline
def whole(value: Scalar) -> Scalar:
    """float32 to int32 towards zero, with 0 for what does not fit: a plain cast of that is undefined.

    C's `(int8_t) x` gives the low byte of 0x80000000 there on x86-64, which is 0 as well.
    """
    return np.int32(value if abs(value) < np.float32(2.0**31) else np.float32(0))


_MAGIC = np.float32(1.5 * 2.0**23)
"""Added to a float32 below 2^22, it leaves no bits for a fraction: the sum is rounded to a whole number, ties to even."""
_MAGIC_BITS = np.int32(0x4B400000)


@inline
def nearest_int(value: Scalar) -> Scalar:
    """The whole number that ggml's nearest_int takes to be nearest, as int32: ties to even, and for what is not below 2^22
    in magnitude whatever its bits say; 0 for the default NaN, -2^22 for an infinity."""
    return np.int32((np.float32(value + _MAGIC).view(np.int32) & np.int32(0x7FFFFF)) - np.int32(0x400000))


@memo
def levels(low: int, high: int) -> Callable[[Any], Any]:
    """The level in low … high nearest to a float32, as a float32, in four instructions; |value| must be below 2^22."""
    least, most = np.int32(_MAGIC_BITS + low), np.int32(_MAGIC_BITS + high)

    @inline
    def nearest(value: Scalar) -> Scalar:
        # Bits of positive floats are in the order of the floats, and integers have a minimum and maximum without NaN.
        bits = np.float32(value + _MAGIC).view(np.int32)
        bits = bits if bits > least else least
        bits = bits if bits < most else most
        return np.int32(bits).view(np.float32) - _MAGIC

    return nearest


@memo
def deal(ways: int) -> Callable[..., None]:
    """Deal out `ways` equal parts of an array in turn, as cards are dealt: element i of part k comes to place `i * ways + k`.

    That turns the bits of an element's place by log2(ways). A matrix of powers of two is transposed by a few deals whose ways
    multiply to the number of its rows; each reads straight on and writes straight on, which LLVM makes SIMD of, unlike the
    loop over rows and columns.
    """
    if ways == 8:

        @shared
        def dealt(source: Vector, out: Vector) -> None:
            n = source.size // 8
            a, b, c, d = source[:n], source[n : 2 * n], source[2 * n : 3 * n], source[3 * n : 4 * n]
            e, f, g, h = source[4 * n : 5 * n], source[5 * n : 6 * n], source[6 * n : 7 * n], source[7 * n : 8 * n]
            for i in range(n):
                out[8 * i], out[8 * i + 1], out[8 * i + 2], out[8 * i + 3] = a[i], b[i], c[i], d[i]
                out[8 * i + 4], out[8 * i + 5], out[8 * i + 6], out[8 * i + 7] = e[i], f[i], g[i], h[i]

    elif ways == 4:

        @shared
        def dealt(source: Vector, out: Vector) -> None:
            n = source.size // 4
            a, b, c, d = source[:n], source[n : 2 * n], source[2 * n : 3 * n], source[3 * n : 4 * n]
            for i in range(n):
                out[4 * i], out[4 * i + 1], out[4 * i + 2], out[4 * i + 3] = a[i], b[i], c[i], d[i]

    else:
        raise ValueError(f"dealing in {ways} ways")
    return dealt


_deal = deal(8)


@inline
def widen(kind: Scalar, narrow: Vector, wide: Vector, start: Scalar, count: Scalar, out: Vector) -> None:
    """Fill `out` with `count` weights of the source from `start` on, as float32."""
    # Slices, so that the indices below are seen to be positive: a sign check per element would keep SIMD away.
    if kind == BF16:
        halves = narrow[start : start + count]
        for i in range(count):
            out[i] = bf16_value(halves[i])
    elif kind == F16:
        halves = narrow[start : start + count]
        for i in range(count):
            out[i] = f16_value(halves[i])
    else:
        singles = wide[start : start + count]
        for i in range(count):
            out[i] = singles[i]


@inline
def load(kind: Scalar, narrow: Vector, wide: Vector, first: Scalar, width: Scalar, scratch: Vector, x: Vector) -> None:
    """Fill a tile with `width` weights each of the LANES groups from `first` on; `scratch` is room for as many."""
    start, stop = first * width, (first + LANES) * width
    if kind == F32:
        _deal(wide[start:stop], scratch)
        _deal(scratch, x)
    else:
        halves = scratch.view(np.uint16)
        once, twice = halves[: LANES * width], halves[LANES * width : 2 * LANES * width]
        _deal(narrow[start:stop], once)
        _deal(once, twice)
        widen(kind, twice, wide, 0, LANES * width, x)


@inline
def no_importance(wide: Vector) -> Importance:
    """What kernels that do with and without an importance matrix are given when there is none; `wide` is any float32 array."""
    return Importance(wide[:0], wide[:0], 1, 0)


@shared
def load_importance(importance: Importance, start: Scalar, width: Scalar, scratch: Vector, w: Vector) -> None:
    """Fill a tile with what `width` weights each of the LANES groups from the call's group `start` on count."""
    values, columns = importance.values, importance.columns
    for lane in range(LANES):
        column = (importance.first + start + lane) * width % columns
        part = values[column : column + width]
        for j in range(width):
            w[lane * width + j] = part[j]
    _deal(w, scratch)
    _deal(scratch, w)


@memo
def in_order(width: int) -> Callable[..., None]:
    """Puts the bytes of a tile of groups of `width`, 16 or 32, into the order of their weights: run(tile, scratch)."""
    first, second = deal(width // 4), deal(4)

    @inline
    def run(tile: Vector, scratch: Vector) -> None:
        first(tile, scratch)
        second(scratch, tile)

    return run


_nibbles_in_order = in_order(16)


@inline
def pair_nibbles(q: Vector, pairs: Vector, scratch: Vector) -> None:
    """Of a tile of blocks of 32 levels, the bytes of each block: the low nibbles are the first 16, the high ones the others."""
    upper = q[pairs.size : 2 * pairs.size]
    for i in range(pairs.size):
        pairs[i] = np.uint8((q[i] & np.uint8(15)) | np.uint8(upper[i] << np.uint8(4)))
    _nibbles_in_order(pairs, scratch)


@inline
def put16(out: Vector, at: Scalar, value: Scalar) -> None:
    """Write 16 bits, low byte first."""
    out[at] = np.uint8(value & 0xFF)
    out[at + 1] = np.uint8(value >> 8)
