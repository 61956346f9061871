"""The casts in numba: tiles of plain numbers in one pass, with all figures of the report. What is odd is left to casts.py.

Written in LLVM's own language, as vectors of a fixed width: bytes and figures are the same however wide the processor's are.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from qconvd_fp16.casts import BEYOND, LEAST, MOST
from qconvd_fp16.kernels import CACHE, ready

Scalar: TypeAlias = Any
Vector: TypeAlias = Any

TILE = 4096
"""Numbers that are added up in float32 at a time, and are looked at one by one if one of them is odd."""
LANES = 16
TYPES = ("F16", "BF16", "F32")
BYTES = {"F16": 2, "BF16": 2, "F32": 4}
PAIRS = tuple((source, target) for source in TYPES for target in TYPES)

_I16, _I32, _I64 = ir.IntType(16), ir.IntType(32), ir.IntType(64)
_HALVES, _SHORTS = ir.VectorType(ir.HalfType(), LANES), ir.VectorType(_I16, LANES)
_WORDS, _FLOATS = ir.VectorType(_I32, LANES), ir.VectorType(ir.FloatType(), LANES)


def _each(number: int) -> Any:
    return ir.Constant(_WORDS, [number] * LANES)


class _Emitter:
    """Emits a loop over vectors; `source` and `target` as in TYPES."""

    def __init__(self, build: Any, source: str, target: str) -> None:
        self.build, self.source, self.target = build, source, target

    def tile(self, x: Any, out: Any, lanes: Any) -> None:
        """Cast TILE numbers at `x` to `out`; of the same type nothing is written.

        `lanes` get sums of squares and of errors' squares, the largest error, the largest number's bits, and how many are lost.
        """
        build, before = self.build, self.build.block
        loop, after = build.append_basic_block("vectors"), build.append_basic_block("cast")
        build.branch(loop)
        build.position_at_end(loop)
        at = build.phi(_I64)
        at.add_incoming(_I64(0), before)
        sums = [build.phi(kind) for kind in (_FLOATS, _FLOATS, _FLOATS, _WORDS, _WORDS)]
        for found in sums:
            found.add_incoming(ir.Constant(found.type, [0.0 if found.type == _FLOATS else 0] * LANES), before)
        value = self._read(build.add(x, build.mul(at, _I64(BYTES[self.source]))))
        became = self._written(value, build.add(out, build.mul(at, _I64(BYTES[self.target]))))
        error, size = build.fsub(became, value), self._size(value)
        zero = build.icmp_unsigned("==", self._size(became), _each(0))
        lost = build.and_(build.icmp_unsigned("!=", size, _each(0)), zero)
        new = (
            build.fadd(sums[0], build.fmul(value, value)),
            build.fadd(sums[1], build.fmul(error, error)),
            self._most(sums[2], build.bitcast(self._size(error), _FLOATS)),
            build.select(build.icmp_unsigned(">", size, sums[3]), size, sums[3]),
            build.add(sums[4], build.zext(lost, _WORDS)),
        )
        for found, following in zip(sums, new, strict=True):
            found.add_incoming(following, loop)
        following = build.add(at, _I64(LANES))
        at.add_incoming(following, loop)
        build.cbranch(build.icmp_signed("<", following, _I64(TILE)), loop, after)
        build.position_at_end(after)
        for number, made in enumerate(new):
            build.store(made, self._at(build.add(lanes, _I64(number * LANES * 4)), made.type), align=4)

    def _read(self, address: Any) -> Any:
        """Numbers as float32."""
        build = self.build
        if self.source == "F32":
            return build.load(self._at(address, _FLOATS), align=1)
        if self.source == "F16":
            return build.fpext(build.load(self._at(address, _HALVES), align=1), _FLOATS)
        shorts = build.load(self._at(address, _SHORTS), align=1)
        return build.bitcast(build.shl(build.zext(shorts, _WORDS), _each(16)), _FLOATS)

    def _written(self, value: Any, address: Any) -> Any:
        """What numbers become, as float32, when it is stored."""
        build = self.build
        if self.source == self.target:
            return value
        if self.target == "F32":
            build.store(value, self._at(address, _FLOATS), align=1)
            return value
        if self.target == "F16":
            halves = build.fptrunc(value, _HALVES)
            build.store(halves, self._at(address, _HALVES), align=1)
            return build.fpext(halves, _FLOATS)
        bits = build.bitcast(value, _WORDS)
        odd = build.and_(build.lshr(bits, _each(16)), _each(1))
        nearest = build.lshr(build.add(bits, build.add(odd, _each(0x7FFF))), _each(16))
        build.store(build.trunc(nearest, _SHORTS), self._at(address, _SHORTS), align=1)
        return build.bitcast(build.shl(nearest, _each(16)), _FLOATS)

    def _size(self, value: Any) -> Any:
        """The bits without the sign."""
        return self.build.and_(self.build.bitcast(value, _WORDS), _each(0x7FFFFFFF))

    def _most(self, a: Any, b: Any) -> Any:
        return self.build.select(self.build.fcmp_ordered(">", b, a), b, a)

    def _at(self, address: Any, kind: Any) -> Any:
        return self.build.inttoptr(address, kind.as_pointer())


def _emitted(typing: Any, pair: Any, x: Any, out: Any, lanes: Any) -> Any:  # noqa: ARG001
    """A tile of PAIRS[pair]; the others are addresses."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ARG001
        chosen, *addresses = arguments
        after = builder.append_basic_block("done")
        choice = builder.switch(chosen, after)
        for number, (source, target) in enumerate(PAIRS):
            block = builder.append_basic_block(f"{source}-{target}")
            choice.add_case(_I64(number), block)
            builder.position_at_end(block)
            _Emitter(builder, source, target).tile(*addresses)
            builder.branch(after)
        builder.position_at_end(after)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.intp, types.intp), generate


_tile: Any = intrinsic(_emitted)


def _tiles(pair: Scalar, beyond: Scalar, x: Vector, out: Vector, sums: Vector, odd: Vector) -> None:
    """Cast `odd.size` tiles of bytes, and say of each whether it must be looked at; of the others add the figures to `sums`."""
    lanes = np.empty(5 * LANES, np.uint32)
    numbers = lanes.view(np.float32)
    from_step, to_step = x.size // odd.size, out.size // odd.size
    for tile in range(odd.size):
        _tile(pair, x.ctypes.data + tile * from_step, out.ctypes.data + tile * to_step, lanes.ctypes.data)
        square, error, most, bits, lost = 0.0, 0.0, np.float32(0), np.uint32(0), 0
        for i in range(LANES):
            square += numbers[i]
            error += numbers[LANES + i]
            most = max(most, numbers[2 * LANES + i])
            bits = max(bits, lanes[3 * LANES + i])
            lost += lanes[4 * LANES + i]
        # Of squares that float32 cannot hold the sum is nothing that could be told.
        small = (bits != 0 and square < LEAST) or (most != 0 and error < LEAST)
        odd[tile] = bits >= beyond or small or square > MOST
        if not odd[tile]:
            sums[0] += square
            sums[1] += error
            sums[2] = max(sums[2], most)
            sums[3] += lost


_bytes = types.Array(types.uint8, 1, "C")
entry = CACHE.entry(
    _tiles,
    types.void(
        types.int64, types.uint32, types.Array(types.uint8, 1, "C", readonly=True), _bytes,
        types.Array(types.float64, 1, "C"), _bytes,
    ),
)  # fmt: skip


def tiles(x: Vector, out: Vector, source: str, target: str) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """Cast whole tiles of flat arrays. Which are odd, so that they were not cast; of the others the figures.

    Those are the sums of squares and of errors' squares, the largest error, and how many became zero.
    """
    sums, odd = np.zeros(4), np.empty(x.size // TILE, np.uint8)
    # Of the same type nothing is written, and `out` may be what must not be.
    to = out.view(np.uint8) if source != target else np.empty(0, np.uint8)
    ready()(PAIRS.index((source, target)), np.uint32(BEYOND[target]), x.view(np.uint8), to, sums, odd)
    return odd, sums
