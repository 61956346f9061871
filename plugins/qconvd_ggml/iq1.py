"""IQ1_S and IQ1_M: groups of 8 weights on 2048 of the 3⁸ points of {-1, 0, 1}⁸, all moved by 1/8 up or down.

ggml's quantize_row_iq1_s_impl and quantize_row_iq1_m_impl (ggml-quants.c):

1. A block's weights (32 in IQ1_S, 16 in IQ1_M) are sorted. The best three levels are some first part of them, a middle part
   and the rest, so all pairs of borders are tried, with the levels moved up and down (IQ1_M: each half of the block by
   itself), by sums of w and w x up to each place. The largest sum(w x q)² / sum(w q q) wins, the first on ties.
2. Groups that are no point go to the best point near by (closest.py); then the scale is fitted again.
3. A super-block has a half, D = (largest scale) / 15 times a factor, and 3 bits l per block for the scale (2 l + 1) D.
   IQ1_M fits D once more over all its weights.

Equal weights are sorted by their places, as a stable sort does it. llama.cpp calls qsort, whose order of equal elements
is the C library's affair: with glibc, which sorts small arrays by merging, it is this one.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from qconvd_ggml.closest import LONGEST, address, moved_level, search
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
    lattice_kernel,
    load,
    nearest_int,
    put16,
    shared,
)
from qconvd_ggml.weighting import weigh_by_super_block

S_WIDTH, M_WIDTH = 32, 16
SUPER = 256
_MOVED = np.float32(0.125)
_LEAST_S, _LEAST_M = np.float32(1e-12), np.float32(1e-7)
_WORST = np.float32(-3.4028234663852886e38)


_prepare, _choose, _exact = search(8, moved=True)


@inline
def _rank_step(j: Scalar, lane: Scalar, x: Vector, rank: Scalar, fixed: Scalar) -> Scalar:
    v, i = fixed
    other = x[j * LANES + lane]
    return np.int32(rank + (np.int32(1) if (other < v) | ((other == v) & (j < i)) else np.int32(0)))


@inline
def _order(x: Vector, width: Scalar, ranks: Any, rank: Vector, place: Vector) -> None:
    """Fills each weight's place when a lane is sorted, and for each place the weight. NaN counts as 0."""
    clean = np.empty(width * LANES, np.float32)
    for j in range(width * LANES):
        clean[j] = x[j] if x[j] == x[j] else np.float32(0)
    for i in range(width):
        for lane in range(LANES):
            rank[i * LANES + lane] = ranks(0, lane, clean, np.int32(0), (clean[i * LANES + lane], i))
    for i in range(width):
        for lane in range(LANES):
            place[np.uint64(rank[i * LANES + lane] * LANES + lane)] = np.uint8(i)


@shared
def _borders_s(x: Vector, w: Vector, place: Vector, scale: Vector, low: Vector, high: Vector, shifts: Vector) -> None:
    """Step 1 of IQ1_S: fills scale, borders and, for both halves, whether the levels are moved down; -1 where nothing is."""
    width, zero = S_WIDTH, np.float32(0)
    sx, sw = np.zeros((width + 1) * LANES, np.float32), np.zeros((width + 1) * LANES, np.float32)
    for j in range(width):
        for lane in range(LANES):
            weight = np.uint64(np.int64(place[j * LANES + lane]) * LANES + lane)
            sx[(j + 1) * LANES + lane] = sx[j * LANES + lane] + w[weight] * x[weight]
            sw[(j + 1) * LANES + lane] = sw[j * LANES + lane] + w[weight]
    best, found = np.full(LANES, _WORST, np.float32), np.full(LANES, -1, np.int32)
    end_x, end_w = sx[width * LANES :], sw[width * LANES :]
    for i1 in range(width + 1):
        x1, w1 = sx[i1 * LANES : (i1 + 1) * LANES], sw[i1 * LANES : (i1 + 1) * LANES]
        for i2 in range(i1, width + 1):
            x2, w2 = sx[i2 * LANES : (i2 + 1) * LANES], sw[i2 * LANES : (i2 + 1) * LANES]
            borders = np.int32(4 * (64 * i1 + i2))
            for lane in range(LANES):
                xa, xb, xc = x1[lane], x2[lane] - x1[lane], end_x[lane] - x2[lane]
                wa, wb, wc = w1[lane], w2[lane] - w1[lane], end_w[lane] - w2[lane]
                top, kept, at = best[lane], scale[lane], found[lane]
                p0, p1, p2 = np.float32(-0.875), np.float32(0.125), np.float32(1.125)
                xq = xa * p0 + xb * p1 + xc * p2
                qq = wa * p0 * p0 + wb * p1 * p1 + wc * p2 * p2
                better = (qq > zero) & (xq * xq > top * qq)
                s = xq / qq
                kept = s if better else kept
                top = s * xq if better else top
                at = borders if better else at
                xq = xa * -p2 + xb * -p1 + xc * -p0
                qq = wa * -p2 * -p2 + wb * -p1 * -p1 + wc * -p0 * -p0
                better = (qq > zero) & (xq * xq > top * qq)
                s = xq / qq
                scale[lane] = s if better else kept
                best[lane] = s * xq if better else top
                found[lane] = np.int32(borders + np.int32(3)) if better else at
    _unpack(found, low, high, shifts)


@shared
def _borders_m(x: Vector, w: Vector, place: Vector, scale: Vector, low: Vector, high: Vector, shifts: Vector) -> None:
    """Step 1 of IQ1_M: as above; bit 1 of `shifts` is the first half's move, bit 0 the second's."""
    width, zero = M_WIDTH, np.float32(0)
    rows = width + 1
    sx, sw = np.zeros(2 * rows * LANES, np.float32), np.zeros(2 * rows * LANES, np.float32)
    for j in range(width):
        for lane in range(LANES):
            i = np.int64(place[j * LANES + lane])
            weight = np.uint64(i * LANES + lane)
            for half in range(2):
                to = (half * rows + j) * LANES + lane
                inside = (i >= width // 2) == (half == 1)
                sx[to + LANES] = sx[to] + w[weight] * x[weight] if inside else sx[to]
                sw[to + LANES] = sw[to] + w[weight] if inside else sw[to]
    best, found = np.full(LANES, _WORST, np.float32), np.full(LANES, -1, np.int32)
    second = rows * LANES
    up, down = np.float32(1.125), np.float32(0.875)
    up1, up2, down1, down2 = np.float32(0.75), np.float32(-1.25), np.float32(1.25), np.float32(-0.75)
    tx0, tw0 = sx[width * LANES : rows * LANES], sw[width * LANES : rows * LANES]
    tx1, tw1 = sx[second + width * LANES :], sw[second + width * LANES :]
    for i1 in range(width + 1):
        xa0, wa0 = sx[i1 * LANES : (i1 + 1) * LANES], sw[i1 * LANES : (i1 + 1) * LANES]
        xa1, wa1 = sx[second + i1 * LANES : second + (i1 + 1) * LANES], sw[second + i1 * LANES : second + (i1 + 1) * LANES]
        for i2 in range(i1, width + 1):
            xb0, wb0 = sx[i2 * LANES : (i2 + 1) * LANES], sw[i2 * LANES : (i2 + 1) * LANES]
            xb1, wb1 = sx[second + i2 * LANES : second + (i2 + 1) * LANES], sw[second + i2 * LANES : second + (i2 + 1) * LANES]
            borders = np.int32(4 * (64 * i1 + i2))
            for lane in range(LANES):
                s0, s1 = xa0[lane] + xb0[lane], xa1[lane] + xb1[lane]
                xp0, xm0 = tx0[lane] * up - s0, tx0[lane] * down - s0
                xp1, xm1 = tx1[lane] * up - s1, tx1[lane] * down - s1
                wp0 = tw0[lane] * up * up + wa0[lane] * up1 + wb0[lane] * up2
                wm0 = tw0[lane] * down * down + wa0[lane] * down1 + wb0[lane] * down2
                wp1 = tw1[lane] * up * up + wa1[lane] * up1 + wb1[lane] * up2
                wm1 = tw1[lane] * down * down + wa1[lane] * down1 + wb1[lane] * down2
                top, kept, at = best[lane], scale[lane], found[lane]
                for k in range(4):
                    xq = (xp0 if k < 2 else xm0) + (xp1 if k % 2 == 0 else xm1)
                    qq = (wp0 if k < 2 else wm0) + (wp1 if k % 2 == 0 else wm1)
                    better = (qq > zero) & (xq * xq > top * qq)
                    s = xq / qq
                    kept = s if better else kept
                    top = s * xq if better else top
                    at = np.int32(borders + np.int32(k)) if better else at
                best[lane], scale[lane], found[lane] = top, kept, at
    _unpack(found, low, high, shifts)


@inline
def _unpack(found: Vector, low: Vector, high: Vector, shifts: Vector) -> None:
    for lane in range(LANES):
        low[lane] = np.int32(found[lane] >> np.int32(8))
        high[lane] = np.int32(np.int32(found[lane] >> np.int32(2)) & np.int32(63))
        shifts[lane] = np.int32(found[lane] & np.int32(3)) if found[lane] >= 0 else np.int32(-1)


@inline
def _moved(shifts: Scalar, group: Scalar, groups_of: Scalar) -> Scalar:
    """By how much the levels of a group are moved."""
    down = np.int32(shifts >> np.int32(1 if group < groups_of // 2 else 0)) & np.int32(1)
    return -_MOVED if down else _MOVED


def _build(width: int, least: np.float32, borders: Any, finish: Any) -> Any:
    groups_of, per = width // 8, SUPER // width
    size = 50 if width == S_WIDTH else 56
    ranks = fold(_rank_step, width)
    zero = np.float32(0)

    @shared
    def place_groups(
        lattice: Lattice, x: Vector, w: Vector, alive: Vector, scale: Vector, shifts: Vector, code: Vector, point: Vector,
        q: Vector, room: Vector,
    ) -> None:  # fmt: skip
        """Step 2: fills points and levels of all groups, and fits the scale again where one had no point of its own.

        `room` is for 2 * LONGEST numbers.
        """
        points, places, chunks, counts, near, coordinates = lattice
        xs, ws = np.empty(8, np.float32), np.empty(8, np.float32)
        a, b, listed_at = address(room), address(room) + 4 * LONGEST, address(coordinates)
        for lane in range(LANES):
            elsewhere = False
            for g in range(groups_of):
                listed = np.int64(places[np.uint64(code[g * LANES + lane])]) if alive[lane] else 0
                moved = _moved(shifts[lane], g, groups_of)
                if listed < 0:
                    elsewhere = True
                    for i in range(8):
                        at = np.uint64((g * 8 + i) * LANES + lane)
                        xs[i] = x[at]
                        ws[i] = w[at]
                    count, chunk = np.int64(counts[np.uint64(-1 - listed)]), np.int64(chunks[np.uint64(-1 - listed)])
                    c = _prepare(listed_at + chunk * (8 * CHUNK), count, moved, address(xs), address(ws), a, b)
                    j = _choose(a, b, count, c, scale[lane])
                    if j < 0:
                        j = _exact(points, near, chunk, count, moved, xs, ws, 0, scale[lane])
                    listed = np.int64(near[np.uint64(chunk * CHUNK + j)])
                point[g * LANES + lane] = np.uint16(listed)
                for i in range(8):
                    at = np.uint64((g * 8 + i) * LANES + lane)
                    q[at] = moved_level(points[np.uint64(listed * 8 + i)], moved)
            if elsewhere:
                xq, qq = zero, zero
                for j in range(width):
                    at = np.uint64(j * LANES + lane)
                    wq = w[at] * q[at]
                    xq += wq * x[at]
                    qq += wq * q[at]
                scale[lane] = xq / qq if (xq > zero) & (qq > zero) else scale[lane]

    @shared
    def run(
        source: int, narrow: Vector, wide: Vector, importance: Importance, out: Vector, groups: int, sums: Vector,
        lattice: Lattice,
    ) -> None:  # fmt: skip
        x, y, w = np.empty(width * LANES, np.float32), np.empty(width * LANES, np.float32), np.empty(width * LANES, np.float32)
        q, room = np.empty(width * LANES, np.float32), np.empty(2 * LONGEST, np.float32)
        rank, place = np.empty(width * LANES, np.int32), np.empty(width * LANES, np.uint8)
        code, point = np.empty(groups_of * LANES, np.uint16), np.empty(groups_of * LANES, np.uint16)
        scale, square, d = np.empty(LANES, np.float32), np.empty(LANES, np.float32), np.empty(LANES, np.float32)
        low, high, shifts = np.empty(LANES, np.int32), np.empty(LANES, np.int32), np.empty(LANES, np.int32)
        alive, level = np.empty(LANES, np.bool_), np.empty(LANES, np.uint8)
        for first in range(0, groups, LANES):
            load(source, narrow, wide, first, width, y, x)
            weigh_by_super_block(x, y, importance, first, per, width, np.float32(2 / SUPER), square, w)
            _order(x, width, ranks, rank, place)
            scale[:] = zero
            borders(x, w, place, scale, low, high, shifts)
            for lane in range(LANES):
                most = zero
                for j in range(width):
                    a = abs(x[j * LANES + lane])
                    most = most if most > a else a
                alive[lane] = (most >= least) & (shifts[lane] >= 0) & (scale[lane] == scale[lane])
                turned = scale[lane] < zero
                for g in range(groups_of):
                    bits = np.uint32(0)
                    for i in range(8):
                        r = rank[(g * 8 + i) * LANES + lane]
                        l = np.uint32(0 if r < low[lane] else (1 if r < high[lane] else 2))  # noqa: E741
                        l = np.uint32(2) - l if turned else l  # noqa: E741
                        bits = np.uint32(bits | np.uint32(l << np.uint32(2 * i)))
                    code[g * LANES + lane] = np.uint16(bits)
                moved = np.int32(np.int32(3) - shifts[lane]) if turned else shifts[lane]
                shifts[lane] = moved if alive[lane] else np.int32(0)
                scale[lane] = abs(scale[lane]) if alive[lane] else zero
            place_groups(lattice, x, w, alive, scale, shifts, code, point, q, room)
            tile = out[first // per * size : (first + LANES) // per * size]
            for block in range(LANES // per):
                largest = zero
                for k in range(per):
                    largest = max(largest, scale[block * per + k])
                unit = largest / np.float32(15)
                for k in range(per):
                    lane = block * per + k
                    fit = nearest_int(np.float32(0.5) * (np.float32(1) / unit * scale[lane] - np.float32(1)))
                    level[lane] = np.uint8(max(np.int32(0), min(np.int32(7), fit))) if largest > zero else np.uint8(0)
                finish(
                    x, w, q, point, shifts, level, largest > zero, unit, block * per, tile[block * size : (block + 1) * size], d
                )
            for j in range(width):
                for lane in range(LANES):
                    y[j * LANES + lane] = d[lane] * q[j * LANES + lane]
            for at in range(0, width * LANES, STEP * LANES):
                measure(x[at : at + STEP * LANES], y[at : at + STEP * LANES], sums)

    return run


@inline
def _finish_s(
    x: Vector, w: Vector, q: Vector, point: Vector, shifts: Vector, level: Vector, any_scale: Scalar, unit: Scalar,  # noqa: ARG001
    first: Scalar, out: Vector, d: Vector,
) -> None:  # fmt: skip
    """Step 3 for the super-block whose first lane is `first`."""
    half = f16_bits(unit * np.float32(1.125)) if any_scale else np.uint16(0)
    put16(out, 0, half)
    for k in range(8):
        lane = first + k
        word = np.uint16(0)
        for g in range(4):
            index = point[g * LANES + lane]
            out[2 + 4 * k + g] = np.uint8(index & np.uint16(255))
            word |= np.uint16(np.uint16(index >> np.uint16(8)) << np.uint16(3 * g))
        if any_scale:
            word |= np.uint16(np.uint16(level[lane]) << np.uint16(12))
            word |= np.uint16(0x8000) if shifts[lane] else np.uint16(0)
        put16(out, 34 + 2 * k, word)
        d[lane] = f16_value(half) * np.float32(2 * np.int32(level[lane]) + 1)


@inline
def _finish_m(
    x: Vector, w: Vector, q: Vector, point: Vector, shifts: Vector, level: Vector, any_scale: Scalar, unit: Scalar,
    first: Scalar, out: Vector, d: Vector,
) -> None:  # fmt: skip
    """Step 3, and D fitted to all 256 weights."""
    xq, qq = np.float32(0), np.float32(0)
    for lane in range(first, first + 16):
        times = np.float32(2 * np.int32(level[lane]) + 1)
        for j in range(M_WIDTH):
            at = j * LANES + lane
            scaled = q[at] * times
            wq = w[at] * scaled
            xq += wq * x[at]
            qq += wq * scaled
    fitted = xq / qq if qq > np.float32(0) else unit
    half = f16_bits(fitted * np.float32(1.1125)) if any_scale else np.uint16(0)
    for k in range(4):
        word = np.uint16(np.uint16(np.uint16(half >> np.uint16(4 * k)) & np.uint16(15)) << np.uint16(12))
        for i in range(4):
            word |= np.uint16(np.uint16(level[first + 4 * k + i]) << np.uint16(3 * i))
        put16(out, 48 + 2 * k, word)
    for k in range(16):
        lane = first + k
        a, b = point[lane], point[LANES + lane]
        out[2 * k] = np.uint8(a & np.uint16(255))
        out[2 * k + 1] = np.uint8(b & np.uint16(255))
        high = np.uint8(np.uint8(a >> np.uint16(8)) | np.uint8(np.uint8(b >> np.uint16(8)) << np.uint8(4)))
        if any_scale:
            high |= np.uint8(8 if shifts[lane] & 2 else 0) | np.uint8(128 if shifts[lane] & 1 else 0)
        out[32 + k] = high
        d[lane] = f16_value(half) * np.float32(2 * np.int32(level[lane]) + 1)


_s = _build(S_WIDTH, _LEAST_S, _borders_s, _finish_s)
_m = _build(M_WIDTH, _LEAST_M, _borders_m, _finish_m)


@lattice_kernel
def iq1_s(
    kind: int, narrow: Vector, wide: Vector, importance: Importance, out: Vector, groups: int, sums: Vector, lattice: Lattice
) -> None:
    """IQ1_S: 50 bytes for 256 weights; a group is a block of 32."""
    _s(kind, narrow, wide, importance, out, groups, sums, lattice)


@lattice_kernel
def iq1_m(
    kind: int, narrow: Vector, wide: Vector, importance: Importance, out: Vector, groups: int, sums: Vector, lattice: Lattice
) -> None:
    """IQ1_M: 56 bytes for 256 weights; a group is a block of 16."""
    _m(kind, narrow, wide, importance, out, groups, sums, lattice)
