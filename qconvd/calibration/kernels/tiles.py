"""The products of products.py on AMX: sums of 32 x 32 at a time, in the processor's registers for tiles.

One operand is laid out as in products.py; the other once more (`turned`), since a tile of it has a column in each row.

TDPBF16PS takes subnormal numbers (below 1e-38) for zero.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from qconvd.calibration.kernels import CACHE
from qconvd.calibration.kernels.emitted import emitting
from qconvd.calibration.kernels.products import PAIRED, PAIRS, STRIPS, SUMS, TOKENS, WIDTH, WORD, Scalar, Vector, add_made

SIDE = PAIRS
"""Rows of a tile, and words in each of them."""
SQUARE = 2 * SIDE
"""Rows and columns of sums that are made at once: with fewer, loading tiles takes longer than multiplying them."""
_LINE = SIDE * WORD
_STEP = PAIRS * WIDTH * WORD
"""Bytes of an operand that one instruction takes a part of."""
_LEFT, _RIGHT = 4, 6
"""Registers 0 to 3 hold sums, those from these on two tiles of each operand."""
_PALETTE, _LINES, _ROWS = 0, 16, 48
"""Where a configuration of the registers holds its kind, and for each register the bytes of a row (16 bits) and the rows."""
_I8, _I64 = ir.IntType(8), ir.IntType(64)

_left = types.Array(types.uint32, 4, "C")


class _Emitter:
    """Emits calls of LLVM's functions for tiles."""

    def __init__(self, builder: Any) -> None:
        self.builder = builder

    def configured(self, config: Any) -> None:
        self._call("ldtilecfg", self._pointer(config))

    def released(self) -> None:
        self._call("tilerelease")

    def multiplied(self, left: Any, right: Any, steps: Any, out: Any) -> None:
        """out[r, c] = sum over pairs of left[r] . right[c], SQUARE x SQUARE; PAIRS of them in each of `steps` (at least one).

        All but `steps` are addresses.
        """
        build = self.builder
        for tile in range(4):
            self._call("tilezero", _I8(tile))
        before = build.block
        loop, done = build.append_basic_block("pairs"), build.append_basic_block("summed")
        build.branch(loop)
        build.position_at_end(loop)
        step, of_left, of_right = (build.phi(_I64) for _ in range(3))
        for i in range(2):
            self._move("tileloadd64", _LEFT + i, build.add(of_left, _I64(i * SIDE * _LINE)), _LINE)
            self._move("tileloadd64", _RIGHT + i, build.add(of_right, _I64(i * _LINE)), WIDTH * WORD)
        for tile in range(4):
            self._call("tdpbf16ps", _I8(tile), _I8(_LEFT + tile // 2), _I8(_RIGHT + tile % 2))
        for value, first, more in ((step, _I64(0), 1), (of_left, left, _STEP), (of_right, right, _STEP)):
            value.add_incoming(first, before)
            value.add_incoming(build.add(value, _I64(more)), loop)
        build.cbranch(build.icmp_signed("<", step.incomings[1][0], steps), loop, done)
        build.position_at_end(done)
        for tile in range(4):
            at = (tile // 2 * SIDE * SQUARE + tile % 2 * SIDE) * WORD
            self._move("tilestored64", tile, build.add(out, _I64(at)), SQUARE * WORD)

    def _move(self, name: str, tile: int, address: Any, stride: int) -> None:
        self._call(name, _I8(tile), self._pointer(address), _I64(stride))

    def _call(self, name: str, *arguments: Any) -> None:
        module, full = self.builder.module, f"llvm.x86.{name}"
        kind = ir.FunctionType(ir.VoidType(), [a.type for a in arguments])
        self.builder.call(module.globals.get(full) or ir.Function(module, kind, full), arguments)

    def _pointer(self, address: Any) -> Any:
        return self.builder.inttoptr(address, _I8.as_pointer())


def _multiplied(typing: Any, left: Any, right: Any, steps: Any, out: Any) -> Any:  # noqa: ARG001
    return emitting(4, lambda b, *a: _Emitter(b).multiplied(*a))


def _configured(typing: Any, config: Any) -> Any:  # noqa: ARG001
    return emitting(1, lambda b, *a: _Emitter(b).configured(*a))


def _released(typing: Any) -> Any:  # noqa: ARG001
    return emitting(0, lambda b, *a: _Emitter(b).released(*a))


multiplied: Any = intrinsic(_multiplied)
configured: Any = intrinsic(_configured)
released: Any = intrinsic(_released)


def _turned(strips: Vector, left: Vector, first: Scalar, last: Scalar) -> None:
    """Lay out strips once more as left operand: (strips, blocks of SIDE pairs, WIDTH, SIDE)."""
    for strip in range(first, last):
        for block in range(strips.shape[1] // SIDE):
            for column in range(WIDTH):
                for pair in range(SIDE):
                    left[strip, block, column, pair] = strips[strip, block * SIDE + pair, column]


turned = CACHE.entry(_turned, types.void(STRIPS, _left, types.int64, types.int64))


def _add_in_tiles(left: Vector, right: Vector, sums: Vector, pairs: Vector, first: Scalar, last: Scalar) -> None:
    """As `add_products`, but that `left` is as `turned` made it."""
    every = right.shape[1]
    config = np.zeros(64, np.uint8)
    config[_PALETTE] = 1
    for tile in range(8):
        config[_LINES + 2 * tile] = _LINE
        config[_ROWS + tile] = SIDE
    made = np.empty((SQUARE, SQUARE), np.float32)
    configured(config.ctypes.data)
    for i in range(first, last):
        row, column = pairs[i, 0] * WIDTH, pairs[i, 1] * WIDTH
        for start in range(0, every, TOKENS // 2):
            steps = min(TOKENS // 2, every - start) // PAIRS
            of_left = left.ctypes.data + (row * every + start * WIDTH) * WORD
            of_right = right.ctypes.data + (column * every + start * WIDTH) * WORD
            for r in range(0, min(WIDTH, sums.shape[0] - row), SQUARE):
                for c in range(0, min(WIDTH, sums.shape[1] - column), SQUARE):
                    multiplied(of_left + r * _LINE, of_right + c * WORD, steps, made.ctypes.data)
                    add_made(made, sums, row + r, column + c)
    released()


add_in_tiles = CACHE.entry(_add_in_tiles, types.void(_left, STRIPS, SUMS, PAIRED, types.int64, types.int64))
