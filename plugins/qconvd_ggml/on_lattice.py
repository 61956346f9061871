"""The search that IQ2 and IQ3 share: blocks of weights in groups of 8 or 4, each group's magnitudes on a point of a lattice.

Per block of `width` weights, as in ggml's quantize_row_iq2_xxs_impl … quantize_row_iq3_s_impl (ggml-quants.c):

1. Signs are taken off. Types that store 7 signs for 8 weights need an even number of negative ones; where it is odd, the
   weight that counts least, w x², keeps its own sign and is a negative magnitude from here on.
2. For each of a row of scales around (largest magnitude) / (largest coordinate): round each group to odd numbers,
   and go to the lattice point there or the best one near by (closest.py). The scale whose points have the largest
   sum(w x q)² / sum(w q q) wins, the first on ties; the least squares scale of those points takes its place.
3. Groups that had no point of their own are placed again with that scale, and the scale is fitted again.
4. The blocks of a super-block share a half, D = (largest scale) / 31 times a factor of the type's; each has 4 bits l for
   the scale (2 l + 1) D.

Steps 1 to 3 run over a tile; only the choice among near points goes group by group. A scale that is not a number counts as 0,
where ggml aborts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from qconvd_ggml.closest import LONGEST, address, prefetch, search
from qconvd_ggml.lattice import CHUNK, Lattice
from qconvd_ggml.measure import STEP, measure
from qconvd_ggml.tile import (
    LANES,
    Importance,
    Scalar,
    Vector,
    f16_bits,
    f16_value,
    fold,
    inline,
    load,
    nearest_int,
    pick,
    put16,
    shared,
)
from qconvd_ggml.weighting import super_block_squares, weigh_by_super_block

SUPER = 256
AHEAD = 8
"""How many places before its turn the points of one are fetched from memory."""
OWN, ANY, ALWAYS = 0, 1, 2
"""Which groups step 3 places again: those without a point of their own, all if there is such a one, all."""


class Kind(NamedTuple):
    """In what the types differ."""

    width: int
    """Weights of a block."""
    group: int
    """Weights of a group, 8 or 4."""
    span: int
    """Step 2 tries 2 * span + 1 scales."""
    step: float
    """By how much the largest coordinate changes from one to the next."""
    even: bool
    """Whether the number of negative weights in 8 is even."""
    least: float
    """Blocks whose largest magnitude is below this are all zero."""
    again: int
    factor: float
    """Of the shared half."""
    squares: float
    """Of the mean square in the weighting with an importance matrix: 1 or 2."""
    share: float
    """Of that mean square in the weighting without one."""
    clear: bool
    """Whether a super-block without a scale is all zero bytes; otherwise it keeps points and signs."""
    size: int
    """Bytes of a super-block."""
    closes_up: bool = False
    """Whether points and signs of blocks behind an all-zero one move up, as `_close_up` says."""


def _first_scale(kind: Kind) -> Callable[..., None]:
    """Fills `top`, the magnitude that step 2's scales refer to, and a scale for blocks in which nothing counts."""
    highest = np.float32(15 if kind.group == 4 else 5)

    @inline
    def first_scale(x: Vector, w: Vector, most: Vector, top: Vector, scale: Vector) -> None:  # noqa: ARG001
        for lane in range(LANES):
            top[lane] = most[lane]
            scale[lane] = most[lane] / highest

    return first_scale


@inline
def _sign_step(i: Scalar, lane: Scalar, x: Vector, state: Scalar, w: Vector) -> Scalar:
    bits, least, at = state
    v = x[i * LANES + lane]
    counts = w[i * LANES + lane] * v * v
    lower = counts < least
    bits = np.uint32(bits | (np.uint32(0) if v >= np.float32(0) else np.uint32(np.uint32(1) << np.uint32(i))))
    return (bits, counts if lower else least, np.uint32(i) if lower else at)


_signs = fold(_sign_step, 8)


@inline
def _split_signs(x: Vector, w: Vector, even: bool, sign: Vector, magnitude: Vector) -> None:
    """Step 1 for 8 weights of each lane; the vectors begin at the first of them."""
    odd = np.empty(LANES, np.uint32)
    for lane in range(LANES):
        bits, _, at = _signs(0, lane, x, (np.uint32(0), np.float32(np.inf), np.uint32(0)), w)
        parity = bits ^ (bits >> np.uint32(4))
        parity = parity ^ (parity >> np.uint32(2))
        parity = (parity ^ (parity >> np.uint32(1))) & np.uint32(1)
        odd[lane] = np.uint32(parity << at) if even else np.uint32(0)
        sign[lane] = np.uint8(bits ^ odd[lane])
    for i in range(8):
        for lane in range(LANES):
            v = x[i * LANES + lane]
            a = v if v >= np.float32(0) else -v
            magnitude[i * LANES + lane] = -a if np.uint32(odd[lane] >> np.uint32(i)) & np.uint32(1) else a


@inline
def _fit_step(j: Scalar, lane: Scalar, q: Vector, state: Scalar, fixed: Scalar) -> Scalar:
    xq, qq = state
    w, wx = fixed
    v = q[j * LANES + lane]
    return (xq + wx[j * LANES + lane] * v, qq + w[j * LANES + lane] * v * v)


@inline
def _put_point(points: Vector, point: Scalar, group: Scalar, q: Vector, first: Scalar, lane: Scalar) -> None:
    at, to = np.uint64(point) * np.uint64(group), np.uint64(first * LANES + lane)
    for i in range(group):
        q[to + np.uint64(i * LANES)] = np.float32(points[at + np.uint64(i)])


@inline
def _close_up(alive: Vector, first: Scalar, per: Scalar, groups_of: Scalar, point: Vector, sign: Vector) -> None:
    """What ggml does in IQ3_S where a block of a super-block is all zero and another is not.

    It does not move on in the output when it skips the block, so the low 8 bits of the points and the signs of all later blocks
    stand one place too early; the highest bits of the points and the scales stand right. A reader sees other weights than were
    meant. That is reproduced here, so that the bytes are the same; the error figures tell of it.
    """
    to = first
    for lane in range(first, first + per):
        if not alive[lane]:
            continue
        if to < lane:
            for g in range(groups_of):
                low, high = point[g * LANES + lane] & np.uint16(255), point[g * LANES + to] & np.uint16(256)
                point[g * LANES + to] = np.uint16(low | high)
                point[g * LANES + lane] &= np.uint16(256)
            for g in range(4):
                sign[g * LANES + to] = sign[g * LANES + lane]
                sign[g * LANES + lane] = np.uint8(0)
        to += 1


def build(kind: Kind, pack: Any, value: Any, unit: Any, first_scale: Any = None) -> Any:
    """The kernel of one type, for an entry point to call.

    pack(point, sign, level, half, first, out) writes the super-block whose first lane is `first`; value(q) is what a reader
    takes for coordinate q, times unit(half's value, l).
    """
    width, group = kind.width, kind.group
    bits, steps = (3, 8) if group == 4 else (2, 3)
    groups_of, per = width // group, SUPER // width
    side = groups_of * LANES  # groups of a tile: what lies side by side for each scale
    tries = 2 * kind.span + 1
    highest = np.float32(2 * steps - 1)
    least, factor, step = np.float32(kind.least), np.float32(kind.factor), np.float32(kind.step)
    squares_factor, share = np.float32(kind.squares / SUPER), np.float32(kind.share)
    even, again, clear, size, span = kind.even, kind.again, kind.clear, kind.size, kind.span
    closes_up = kind.closes_up
    start_scale = first_scale or _first_scale(kind)
    prepare, choose, exact = search(group)
    top_level = np.int32(steps - 1)
    half_one, one, zero = np.float32(0.5), np.float32(1), np.float32(0)

    @inline
    def code_step(i: Scalar, lane: Scalar, x: Vector, code: Scalar, inverse: Scalar) -> Scalar:
        level = nearest_int(half_one * (inverse * x[i * LANES + lane] - one))
        level = max(np.int32(0), min(top_level, level))
        return np.int32(code | np.int32(np.int32(level) << np.int32(bits * i)))

    code_of = fold(code_step, group)
    fit = fold(_fit_step, width)

    @shared
    def codes(x: Vector, inverse: Vector, code: Vector) -> None:
        """The place of every group, with each lane's own inverse scale."""
        for g in range(groups_of):
            part = x[g * group * LANES : (g + 1) * group * LANES]
            row = code[g * LANES : (g + 1) * LANES]
            for lane in range(LANES):
                row[lane] = np.uint16(code_of(0, lane, part, np.int32(0), inverse[lane]))

    @shared
    def begins(code: Vector, alive: Vector, new: Vector, at: Vector) -> Scalar:
        """Where a group has another place than with the scale before: flags, and a list, from the last scale to the first.

        Returns the length of the list, which has no lanes in which nothing counts.
        """
        counts_here = np.empty(side, np.uint16)
        for k in range(side):
            counts_here[k] = np.uint16(alive[k % LANES])
        number = np.uint64(0)
        for t in range(tries - 1, -1, -1):
            here, flags = code[t * side : (t + 1) * side], new[t * side : (t + 1) * side]
            if t > 0:
                before = code[(t - 1) * side : t * side]
                for k in range(side):
                    flags[k] = np.uint16(here[k] != before[k])
            else:
                flags[:] = np.uint16(1)
            for k in range(side):
                at[number] = np.int32(t * side + k)
                number += np.uint64(flags[k] & counts_here[k])
        return np.int64(number)

    @shared
    def without_point(
        lattice: Lattice, code: Vector, at: Vector, number: Scalar, point: Vector, stop: Vector, chunk: Vector, count: Vector
    ) -> Scalar:
        """Gives places that are points themselves their point; of the others makes `at` a list, with where each ends.

        Returns how many these are. Without branches, which here would mostly be guessed wrong.
        """
        later = np.full(side, tries, np.int32)
        left = np.uint64(0)
        for i in range(number):
            here = np.uint64(at[np.uint64(i)])
            t, k = np.int32(here // np.uint64(side)), here % np.uint64(side)
            listed = lattice.places[np.uint64(code[here])]
            off = listed < np.int32(0)
            which = np.uint64(-1 - listed) if off else np.uint64(0)
            point[here] = np.uint16(listed)
            at[left], stop[left] = np.int32(here), later[k]
            chunk[left], count[left] = lattice.chunks[which], lattice.counts[which]
            left += np.uint64(off)
            later[k] = t
        return np.int64(left)

    @shared
    def place(
        lattice: Lattice, x: Vector, w: Vector, alive: Vector, code: Vector, scales: Vector, point: Vector, new: Vector,
        room: Vector,
    ) -> None:  # fmt: skip
        """Step 2's points of every group for all scales. `x` and `w` hold the weights of each lane in order.

        `new` is overwritten, as long as `code`; `room` is for 2 * LONGEST numbers. In phases, each over all groups, so that
        little waits for memory or for a branch that was guessed wrong.
        """
        points, near = lattice.points, lattice.near
        coordinates, listed = address(lattice.coordinates), address(near)
        xs, ws, a, b = address(x), address(w), address(room), address(room) + 4 * LONGEST
        at, stop = np.empty(tries * side + 1, np.int32), np.empty(tries * side + 1, np.int32)
        chunks, counts = np.empty(tries * side + 1, np.int32), np.empty(tries * side + 1, np.int32)
        number = without_point(lattice, code, at, begins(code, alive, new, at), point, stop, chunks, counts)
        for i in range(number):
            ahead = np.int64(chunks[np.uint64(min(i + AHEAD, number - 1))])
            for line in range(group * CHUNK // 64):
                prefetch(coordinates + ahead * (group * CHUNK) + line * 64)
            prefetch(listed + ahead * (2 * CHUNK))
            here = np.uint64(at[np.uint64(i)])
            begin, k = here // np.uint64(side), here % np.uint64(side)
            lane, g = k % np.uint64(LANES), k // np.uint64(LANES)
            first = np.int64(lane * np.uint64(width) + g * np.uint64(group))
            chunk, count = np.int64(chunks[np.uint64(i)]), np.int64(counts[np.uint64(i)])
            c = prepare(coordinates + chunk * (group * CHUNK), count, zero, xs + first * 4, ws + first * 4, a, b)
            # The first scale of the place, the last, and those between them only if their points differ (closest.py).
            kept, steps = np.int64(-1), np.int64(stop[np.uint64(i)]) - np.int64(begin)
            for v in range(steps):
                later = np.uint64(0 if v == 0 else (steps - 1 if v == 1 else v - 1))
                s = scales[(begin + later) * np.uint64(LANES) + lane]
                found = choose(a, b, count, c, s)
                same = (found >= 0) & (found == kept)
                if same & (v == 1):
                    break
                if v < 2:
                    kept = found
                if found < 0:
                    found = exact(points, near, chunk, count, zero, x, w, first, s)
                goes = here + later * np.uint64(side)
                point[goes] = near[np.uint64(chunk * CHUNK + found)]
                new[goes] = np.uint16(1)
                if same:
                    break
        for t in range(1, tries):
            before, now = point[(t - 1) * side : t * side], point[t * side : (t + 1) * side]
            flags = new[t * side : (t + 1) * side]
            for i in range(side):
                now[i] = pick(flags[i] != np.uint16(0), now[i], before[i])

    @shared
    def place_again(
        lattice: Lattice, x: Vector, w: Vector, alive: Vector, first: Vector, code: Vector, scale: Vector, point: Vector,
        refit: Vector, room: Vector,
    ) -> None:  # fmt: skip
        """Step 3: `first` are the codes of step 2's best scale, or -1 where no scale was better than nothing."""
        points, places, chunks, counts, near = lattice.points, lattice.places, lattice.chunks, lattice.counts, lattice.near
        coordinates, xs, ws = address(lattice.coordinates), address(x), address(w)
        a, b = address(room), address(room) + 4 * LONGEST
        for lane in range(LANES):
            refit[lane] = False
            if not alive[lane]:
                continue
            off = again == ALWAYS
            for g in range(groups_of):
                own = first[g * LANES + lane]
                off = off | (again == ANY if own < 0 else places[max(own, 0)] < 0)
            s = scale[lane]
            if not (off & (s > zero)):
                continue
            refit[lane] = True
            for g in range(groups_of):
                own = first[g * LANES + lane]
                if again == OWN and (own < 0 or places[max(own, 0)] >= 0):
                    continue
                listed = np.int64(places[np.int64(code[g * LANES + lane])])
                if listed < 0:
                    begin = lane * width + g * group
                    count, chunk = np.int64(counts[np.uint64(-1 - listed)]), np.int64(chunks[np.uint64(-1 - listed)])
                    c = prepare(coordinates + chunk * (group * CHUNK), count, zero, xs + begin * 4, ws + begin * 4, a, b)
                    j = choose(a, b, count, c, s)
                    if j < 0:
                        j = exact(points, near, chunk, count, zero, x, w, begin, s)
                    listed = np.int64(near[np.uint64(chunk * CHUNK + j)])
                point[g * LANES + lane] = np.uint16(listed)

    @shared
    def run(
        source: int, narrow: Vector, wide: Vector, importance: Importance, out: Vector, groups: int, sums: Vector,
        lattice: Lattice,
    ) -> None:  # fmt: skip
        points = lattice.points
        x, y, w = np.empty(width * LANES, np.float32), np.empty(width * LANES, np.float32), np.empty(width * LANES, np.float32)
        magnitude, wx, q = np.empty_like(x), np.empty_like(x), np.empty_like(x)
        rows_x, rows_w = np.empty_like(x), np.empty_like(x)
        sign = np.empty(width // 8 * LANES, np.uint8)
        code, point = np.empty(tries * groups_of * LANES, np.uint16), np.zeros(tries * groups_of * LANES, np.uint16)
        new, room = np.empty_like(code), np.empty(2 * LONGEST, np.float32)
        own, chosen = np.empty(groups_of * LANES, np.int32), np.empty(groups_of * LANES, np.uint16)
        last = np.empty(groups_of * LANES, np.uint16)
        inverse, scales = np.empty(tries * LANES, np.float32), np.empty(tries * LANES, np.float32)
        most, top, scale, best = (
            np.empty(LANES, np.float32), np.empty(LANES, np.float32), np.empty(LANES, np.float32), np.empty(LANES, np.float32),
        )  # fmt: skip
        winner, alive, refit = np.empty(LANES, np.int32), np.empty(LANES, np.bool_), np.empty(LANES, np.bool_)
        level, d, half = np.empty(LANES, np.uint8), np.empty(LANES, np.float32), np.empty(LANES // per, np.uint16)
        for first in range(0, groups, LANES):
            load(source, narrow, wide, first, width, y, x)
            if importance.values.size == 0 and share != zero:
                super_block_squares(x, per, width, best)
                for lane in range(LANES):
                    best[lane] *= squares_factor
                for j in range(width):
                    for lane in range(LANES):
                        v = x[j * LANES + lane]
                        w[j * LANES + lane] = share * best[lane] + v * v
            else:
                weigh_by_super_block(x, y, importance, first, per, width, squares_factor, best, w)
            for k in range(width // 8):
                part = slice(k * 8 * LANES, (k + 1) * 8 * LANES)
                _split_signs(x[part], w[part], even, sign[k * LANES : (k + 1) * LANES], magnitude[part])
            for lane in range(LANES):
                most[lane] = magnitude[lane]
            for j in range(width):
                for lane in range(LANES):
                    v = magnitude[j * LANES + lane]
                    most[lane] = pick(most[lane] > v, most[lane], v)
            for j in range(width):
                for lane in range(LANES):
                    wx[j * LANES + lane] = w[j * LANES + lane] * magnitude[j * LANES + lane]
            for lane in range(LANES):
                for j in range(width):
                    rows_x[lane * width + j] = magnitude[j * LANES + lane]
                    rows_w[lane * width + j] = np.sqrt(w[j * LANES + lane])
            start_scale(magnitude, w, most, top, scale)
            for lane in range(LANES):
                alive[lane] = (most[lane] >= least) & (most[lane] > zero) & (top[lane] > zero)
                best[lane] = zero
                winner[lane] = -1
            for t in range(tries):
                numerator = highest + np.float32(t - span) * step
                now = inverse[t * LANES : (t + 1) * LANES]
                for lane in range(LANES):
                    now[lane] = numerator / top[lane]
                    scales[t * LANES + lane] = one / now[lane]
                codes(magnitude, now, code[t * groups_of * LANES : (t + 1) * groups_of * LANES])
            place(lattice, rows_x, rows_w, alive, code, scales, point, new, room)
            for t in range(tries):
                for g in range(groups_of):
                    at, before = (t * groups_of + g) * LANES, (max(t - 1, 0) * groups_of + g) * LANES
                    for lane in range(LANES):
                        here = point[np.uint64(at + lane)]
                        if t == 0 or here != point[np.uint64(before + lane)]:
                            _put_point(points, here, group, q, g * group, lane)
                for lane in range(LANES):
                    xq, qq = fit(0, lane, q, (zero, zero), (w, wx))
                    better = (qq > zero) & (xq * xq > best[lane] * qq)
                    s = xq / qq
                    scale[lane] = pick(better, s, scale[lane])
                    best[lane] = pick(better, s * xq, best[lane])
                    winner[lane] = pick(better, np.int32(t), winner[lane])
            for g in range(groups_of):
                for lane in range(LANES):
                    t = winner[lane]
                    at = (max(t, 0) * groups_of + g) * LANES + lane
                    won = alive[lane] & (t >= 0)
                    own[g * LANES + lane] = np.int32(code[at]) if won else np.int32(-1)
                    chosen[g * LANES + lane] = point[at] if won else np.uint16(0)
            for lane in range(LANES):
                inverse[lane] = one / scale[lane]
            codes(magnitude, inverse[:LANES], last)
            place_again(lattice, rows_x, rows_w, alive, own, last, scale, chosen, refit, room)
            for g in range(groups_of):
                for lane in range(LANES):
                    _put_point(points, chosen[g * LANES + lane], group, q, g * group, lane)
            for lane in range(LANES):
                xq, qq = fit(0, lane, q, (zero, zero), (w, wx))
                s = xq / qq if refit[lane] & (qq > zero) else scale[lane]
                for k in range(width // 8):
                    bits_of = sign[k * LANES + lane]
                    bits_of = np.uint8(bits_of ^ (np.uint8(255) if s < zero else np.uint8(0)))
                    sign[k * LANES + lane] = bits_of if alive[lane] else np.uint8(0)
                s = abs(s)
                scale[lane] = s if alive[lane] & (s == s) else zero
            tile = out[first // per * size : (first + LANES) // per * size]
            for block in range(LANES // per):
                largest = zero
                for k in range(per):
                    largest = max(largest, scale[block * per + k])
                shared_d = largest / np.float32(31)
                inverse_d = one / shared_d
                half[block] = f16_bits(shared_d * factor) if largest > zero else np.uint16(0)
                if clear and largest == zero:
                    for k in range(per):
                        alive[block * per + k] = False
                    for i in range(groups_of):
                        chosen[i * LANES + block * per : i * LANES + (block + 1) * per] = np.uint16(0)
                    for i in range(width // 8):
                        sign[i * LANES + block * per : i * LANES + (block + 1) * per] = np.uint8(0)
                for k in range(per):
                    lane = block * per + k
                    l = max(np.int32(0), min(np.int32(15), nearest_int(half_one * (inverse_d * scale[lane] - one))))  # noqa: E741
                    level[lane] = np.uint8(l) if largest > zero else np.uint8(0)
                    d[lane] = unit(f16_value(half[block]), np.float32(level[lane]))
                if closes_up:
                    _close_up(alive, block * per, per, groups_of, chosen, sign)
                pack(chosen, sign, level, half[block], block * per, tile[block * size : (block + 1) * size])
            if closes_up:
                for g in range(groups_of):
                    for lane in range(LANES):
                        _put_point(points, chosen[g * LANES + lane], group, q, g * group, lane)
            for j in range(width):
                bit = np.uint8(j % 8)
                for lane in range(LANES):
                    v = d[lane] * value(q[j * LANES + lane])
                    negative = np.uint8(sign[j // 8 * LANES + lane] >> bit) & np.uint8(1)
                    y[j * LANES + lane] = -v if negative else v
            for at in range(0, width * LANES, STEP * LANES):
                measure(x[at : at + STEP * LANES], y[at : at + STEP * LANES], sums)

    return run


@inline
def put_signs(sign: Vector, level: Vector, lane: Scalar, out: Vector, at: Scalar) -> None:
    """Four bytes for the block in `lane`: seven signs each of its four groups of 8, and its scale in the highest bits."""
    word = np.uint32(level[lane]) << np.uint32(28)
    for g in range(4):
        word = np.uint32(word | np.uint32(np.uint32(sign[g * LANES + lane] & np.uint8(127)) << np.uint32(7 * g)))
    put16(out, at, np.uint16(word & np.uint32(0xFFFF)))
    put16(out, at + 2, np.uint16(word >> np.uint32(16)))


@inline
def put_levels(level: Vector, first: Scalar, count: Scalar, out: Vector, at: Scalar) -> None:
    """The scales of `count` blocks from lane `first` on, two to a byte, the earlier one low."""
    for k in range(count // 2):
        out[at + k] = np.uint8(level[first + 2 * k] | np.uint8(level[first + 2 * k + 1] << np.uint8(4)))
