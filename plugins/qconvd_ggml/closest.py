"""Which point of a lattice a group of weights goes to, where its own place has none.

ggml looks at every point in the place's list and takes the first with the least d = sum w (s q - x)², in float32
(iq2_find_best_neighbour, iq3_find_best_neighbour); it does so for every scale s that the search tries. Here

    d = s² sum(w q²) - 2 s sum(w x q) + sum(w x²) = s (s a - 2 b) + c

so a and b are computed once per place and point, and then a scale costs three operations per point. This is not rounded as
ggml's sum is, but both are within _DELTA * (s² a + c) of the truth. As s² a <= 2 c + 2 d, no point can be ggml's choice whose
d is above (1 + 5 _DELTA) times the least one plus 7 _DELTA c. Almost always that leaves one point. Where it leaves more, or
where the numbers are so large or small that the reasoning fails, ggml's own sum is made.

A point p that is left alone at two scales is ggml's choice at every scale between them. "Another point's d is above (1 + e)
times that of p plus f c" is, divided by s, A s - B - (e + f) c / s > 0 with some A and B, whose left side is a concave function
of s: what is true at both ends is true between. Wherever p is left alone it is true of the exact sums, with
e = (5 - 4 * 0.3) _DELTA and f = (7 - 6 * 0.3) _DELTA, as d takes 0.3 _DELTA of roundings here at most; ggml's own, 0.4 _DELTA,
are less than these leave.

What is done for each place and scale is written in LLVM's own language, as vectors of CHUNK points: of loops over so few points
LLVM makes single instructions. Products and sums may be rounded once where the processor can do that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from qconvd_ggml.lattice import CHUNK
from qconvd_ggml.tile import Scalar, Vector, inline, shared

LONGEST = 304
"""Room for the longest list of any lattice (292 points), in whole chunks."""
_DELTA = 6e-6
"""100 roundings of float32; ggml's sum of 8 terms and this one take fewer than 40 and 30."""
_NEARLY, _SLACK = float(np.float32(1 + 5 * _DELTA)), float(np.float32(7 * _DELTA))
_FAR = float(np.float32(1e30))
"""a of no point, above that of any: the weights that `prepare` goes on with add up to less than 1e25, and q² is at most 225."""
_HUGE = np.float32(3.4028234663852886e38)

_I8, _I32, _I64, _FLOAT = ir.IntType(8), ir.IntType(32), ir.IntType(64), ir.FloatType()
_BYTES, _WORDS, _FLOATS = ir.VectorType(_I8, CHUNK), ir.VectorType(_I32, CHUNK), ir.VectorType(_FLOAT, CHUNK)
_BITS = ir.IntType(CHUNK)


@inline
def address(array: Vector) -> Scalar:
    """Where an array begins. Whoever calls must keep the array: an address alone keeps nothing."""
    return np.int64(array.ctypes.data)


@inline
def _coordinate(coordinate: Scalar, shift: Scalar) -> Scalar:  # noqa: ARG001
    return np.float32(coordinate)


def search(width: int, *, moved: bool = False) -> tuple[Any, Any, Any]:
    """For groups of `width` weights: prepare(…) -> c, choose(…) -> number in the list, exact(…) -> the same by ggml's sum.

    A point's q are its coordinates, or with `moved` (coordinate - 3) / 2 + shift; otherwise `shift` is nothing. Arrays are
    given by their addresses: numba counts references to arrays and slices, which took more time here than the arithmetic.

    prepare(coordinates, count, shift, x, w, a, b): fills float32 a and twice b of `count` points, at least one, of which
    `coordinates` are the first chunk's; x and w are the group's weights and what they count, float32. Returns c, or -1 if c
    or the sum of w is so small or large that only `exact` will do.
    choose(a, b, count, c, s): the only point that can be ggml's choice; -1 if there are more, or c or s is such a number.
    exact(points, near, chunk, count, shift, x, w, first, s), with arrays, x and w from `first` on: ggml's own way. Where no sum
    is finite, the first point; ggml aborts there.
    """
    value = moved_level if moved else _coordinate

    def typed(typing: Any, coordinates: Any, count: Any, shift: Any, x: Any, w: Any, a: Any, b: Any) -> Any:  # noqa: ARG001
        return _PREPARE, _emitting(_Preparing(width, moved))

    @shared
    def exact(
        points: Vector,
        near: Vector,
        chunk: Scalar,
        count: Scalar,
        shift: Scalar,
        x: Vector,
        w: Vector,
        first: Scalar,
        s: Scalar,
    ) -> Scalar:
        least, chosen = _HUGE, 0
        for j in range(count):
            at = np.uint64(near[np.uint64(chunk * CHUNK + j)]) * np.uint64(width)
            d = np.float32(0)
            for i in range(width):
                diff = s * value(points[at + np.uint64(i)], shift) - x[np.uint64(first) + np.uint64(i)]
                d += w[np.uint64(first) + np.uint64(i)] * diff * diff
            if d < least:
                least = d
                chosen = j
        return chosen

    return intrinsic(typed), _choose, exact


@inline
def moved_level(coordinate: Scalar, shift: Scalar) -> Scalar:
    """q of IQ1's coordinates 1, 3 and 5: -1, 0 and 1, moved by `shift`."""
    return (np.float32(coordinate) - np.float32(3)) * np.float32(0.5) + shift


_PREPARE = types.float32(types.intp, types.intp, types.float32, types.intp, types.intp, types.intp, types.intp)
_CHOOSE = types.intp(types.intp, types.intp, types.intp, types.float32, types.float32)


def _emitting(emit: Callable[..., Any]) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ARG001
        made = emit(builder, *arguments)
        return context.get_dummy_value() if made is None else made

    return generate


def _splat(build: Any, number: Any) -> Any:
    """A vector with one number in all places."""
    nothing = ir.Constant(ir.VectorType(number.type, CHUNK), ir.Undefined)
    return build.shuffle_vector(build.insert_element(nothing, number, _I32(0)), nothing, ir.Constant(_WORDS, [0] * CHUNK))


def _each(number: float) -> Any:
    return ir.Constant(_FLOATS, [number] * CHUNK)


def _at(build: Any, address: Any, index: Any, kind: Any, size: int) -> Any:
    return build.inttoptr(build.add(address, build.mul(index, _I64(size))), kind.as_pointer())


def _called(build: Any, name: str, result: Any, *arguments: Any) -> Any:
    function = build.module.declare_intrinsic(name, fnty=ir.FunctionType(result, [a.type for a in arguments]))
    return build.call(function, arguments)


def _fused(build: Any, x: Any, y: Any, z: Any) -> Any:
    return _called(build, f"llvm.fmuladd.v{CHUNK}f32", _FLOATS, x, y, z)


class _Loop:
    """Emits a loop over chunks, at least one; what it carries from one to the next begins as `start`."""

    def __init__(self, build: Any, chunks: Any, start: tuple[Any, ...]) -> None:
        self.build, self.chunks = build, chunks
        before, self.block = build.block, build.append_basic_block("chunk")
        self.after = build.append_basic_block("chunks")
        build.branch(self.block)
        build.position_at_end(self.block)
        self.n = build.phi(_I64)
        self.n.add_incoming(_I64(0), before)
        self.carried = []
        for first in start:
            phi = build.phi(first.type)
            phi.add_incoming(first, before)
            self.carried.append(phi)

    def end(self, *carried: Any) -> None:
        following = self.build.add(self.n, _I64(1))
        self.n.add_incoming(following, self.block)
        for phi, new in zip(self.carried, carried, strict=True):
            phi.add_incoming(new, self.block)
        self.build.cbranch(self.build.icmp_signed("<", following, self.chunks), self.block, self.after)
        self.build.position_at_end(self.after)


def _chunks(build: Any, count: Any) -> Any:
    return build.lshr(build.add(count, _I64(CHUNK - 1)), _I64(CHUNK.bit_length() - 1))


class _Preparing:
    def __init__(self, width: int, moved: bool) -> None:
        self.width, self.moved = width, moved

    def __call__(self, build: Any, coordinates: Any, count: Any, shift: Any, x: Any, w: Any, a: Any, b: Any) -> Any:
        c, most, ws, wxs = _FLOAT(0.0), _FLOAT(0.0), [], []
        for i in range(self.width):
            weight = build.load(_at(build, w, _I64(i), _FLOAT, 4), align=4)
            number = build.load(_at(build, x, _I64(i), _FLOAT, 4), align=4)
            product = build.fmul(weight, number)
            c, most = build.fadd(c, build.fmul(product, number)), build.fadd(most, weight)
            ws.append(_splat(build, weight))
            wxs.append(_splat(build, product))
        sound = build.and_(build.fcmp_ordered(">", c, _FLOAT(float(np.float32(1e-25)))),
                           build.fcmp_ordered("<", c, _FLOAT(float(np.float32(1e25)))))  # fmt: skip
        sound = build.and_(sound, build.fcmp_ordered("<", most, _FLOAT(float(np.float32(1e25)))))
        shifts = _splat(build, shift)
        loop = _Loop(build, _chunks(build, count), ())
        first = build.add(coordinates, build.mul(loop.n, _I64(self.width * CHUNK)))
        sum_a, sum_b = _each(0.0), _each(0.0)
        for i in range(self.width):
            q = build.sitofp(build.load(_at(build, first, _I64(i), _BYTES, CHUNK), align=1), _FLOATS)
            if self.moved:
                q = build.fadd(build.fmul(build.fsub(q, _each(3.0)), _each(0.5)), shifts)
            sum_a = _fused(build, ws[i], build.fmul(q, q), sum_a)
            sum_b = _fused(build, wxs[i], q, sum_b)
        left = build.trunc(build.sub(count, build.mul(loop.n, _I64(CHUNK))), _I32)
        there = build.icmp_signed("<", ir.Constant(_WORDS, list(range(CHUNK))), _splat(build, left))
        build.store(build.select(there, sum_a, _each(_FAR)), _at(build, a, loop.n, _FLOATS, 4 * CHUNK), align=4)
        build.store(build.select(there, build.fadd(sum_b, sum_b), _each(0.0)),
                    _at(build, b, loop.n, _FLOATS, 4 * CHUNK), align=4)  # fmt: skip
        loop.end()
        return build.select(sound, c, _FLOAT(-1.0))


def _choosing(build: Any, a: Any, b: Any, count: Any, c: Any, s: Any) -> Any:
    chunks, scales, constants = _chunks(build, count), _splat(build, s), _splat(build, c)

    def distances(n: Any) -> Any:
        squares = build.load(_at(build, a, n, _FLOATS, 4 * CHUNK), align=4)
        products = build.load(_at(build, b, n, _FLOATS, 4 * CHUNK), align=4)
        return _fused(build, build.fsub(build.fmul(scales, squares), products), scales, constants)

    # As integers floats keep their order where they are positive; one that is rounded below zero counts as least, too.
    loop = _Loop(build, chunks, (ir.Constant(_WORDS, [0x7F7FFFFF] * CHUNK),))
    bits = build.bitcast(distances(loop.n), _WORDS)
    least = build.select(build.icmp_signed("<", bits, loop.carried[0]), bits, loop.carried[0])
    loop.end(least)
    least = build.bitcast(_called(build, f"llvm.vector.reduce.smin.v{CHUNK}i32", _I32, least), _FLOAT)
    limits = _splat(build, build.fadd(build.fmul(least, _FLOAT(_NEARLY)), build.fmul(_FLOAT(_SLACK), c)))
    loop = _Loop(build, chunks, (_I64(0), _I64(0)))
    near = build.bitcast(build.fcmp_ordered("<=", distances(loop.n), limits), _BITS)
    number = build.add(loop.carried[0], build.zext(build.ctpop(near), _I64))
    first = build.cttz(near, ir.IntType(1)(0))
    at = build.add(build.mul(loop.n, _I64(CHUNK)), build.zext(first, _I64))
    found = build.select(build.icmp_unsigned("!=", near, _BITS(0)), at, loop.carried[1])
    loop.end(number, found)
    sound = build.fcmp_ordered(">", c, _FLOAT(0.0))
    sound = build.and_(sound, build.fcmp_ordered(">", s, _FLOAT(float(np.float32(1e-18)))))
    sound = build.and_(sound, build.fcmp_ordered("<", s, _FLOAT(float(np.float32(1e6)))))
    sound = build.and_(sound, build.icmp_unsigned("==", number, _I64(1)))
    return build.select(sound, found, _I64(-1))


def _choose_typed(typing: Any, a: Any, b: Any, count: Any, c: Any, s: Any) -> Any:  # noqa: ARG001
    return _CHOOSE, _emitting(_choosing)


_choose: Any = intrinsic(_choose_typed)


def _prefetch_typed(typing: Any, address: Any) -> Any:  # noqa: ARG001
    def emit(build: Any, address: Any) -> None:
        pointer = build.inttoptr(address, _I8.as_pointer())
        _called(build, "llvm.prefetch.p0", ir.VoidType(), pointer, _I32(0), _I32(3), _I32(1))

    return types.void(types.intp), _emitting(emit)


prefetch: Any = intrinsic(_prefetch_typed)
"""prefetch(address): memory that will be read soon; any address may be given."""
