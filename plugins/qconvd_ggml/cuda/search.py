"""The searches for scales of sub-blocks, in Triton: ggml's make_qkx2_quants, make_qx_quants and make_q3_quants (ggml-quants.c).

Weights come transposed, `x[j * lanes + lane]` being weight `j` of sub-block `lane`, so that neighbouring threads read
neighbouring numbers. A program holds LANES sub-blocks, one thread each, and a sub-block's weights stay in that thread's
registers through all steps. Every thread follows ggml's order of float operations, no sum is divided among threads; quotients
and roots are the ones rounded to nearest, and the kernels are to be launched with OPTIONS, without which the compiler
contracts a product and a sum into one rounding. The candidates are a table of float32 that the caller makes, so they are the
CPU's.

Triton reads annotations, so only constants have one. Only operations of triton.language itself are used: what its standard
library adds is compiled code even in the interpreter, if triton was imported before that was asked for.
"""

from __future__ import annotations

import triton
import triton.language as tl

OPTIONS = {"enable_fp_fusion": False, "num_warps": 4}
"""Launch options."""
LANES = 128
"""Sub-blocks of a program: one per thread of its four warps."""
MAGIC = tl.constexpr(12582912.0)
"""1.5 * 2^23: added to a float32 below 2^22, it leaves no bits for a fraction: the sum is rounded, ties to even."""


@triton.jit
def _weights(x, lanes, lane, WIDTH: tl.constexpr):
    """A sub-block's weights, one block of registers for each; beyond the last sub-block zeros."""
    held = ()
    for j in tl.static_range(WIDTH):
        held = held + (tl.load(x + j * lanes + lane, mask=lane < lanes, other=0.0),)  # noqa: RUF005 — Triton knows no *
    return held


@triton.jit
def _level(v, LOW: tl.constexpr, HIGH: tl.constexpr):
    """The whole number in LOW … HIGH nearest to v, as a float32."""
    return tl.minimum(tl.maximum((v + MAGIC) - MAGIC, LOW), HIGH)


@triton.jit
def _nearest_int(v):
    """ggml's nearest_int, also for what is too large for it."""
    return ((v + MAGIC).to(tl.int32, bitcast=True) & 0x7FFFFF) - 0x400000


@triton.jit
def _count(v, root, MAGNITUDES: tl.constexpr):
    """What an error of this weight counts."""
    return tl.abs(v) if MAGNITUDES else root + tl.abs(v)


@triton.jit
def _error(v, root, inverse, low, scale, minimum, WIDTH: tl.constexpr, TOP: tl.constexpr,
           MAGNITUDES: tl.constexpr):  # fmt: skip
    total = low * 0.0
    for j in tl.static_range(WIDTH):
        e = scale * _level(inverse * (v[j] - low), 0.0, TOP) + minimum - v[j]
        total += _count(v[j], root, MAGNITUDES) * (tl.abs(e) if MAGNITUDES else e * e)
    return total


@triton.jit
def affine(x, lanes, tries, found, COUNT: tl.constexpr, WIDTH: tl.constexpr, TOP: tl.constexpr,
           MAGNITUDES: tl.constexpr, LANES: tl.constexpr):  # fmt: skip
    """A scale and a minimum of levels 0 … TOP: make_qkx2_quants. `tries` are COUNT numerators of inverse scales.

    Fills `found[i * lanes + lane]`: scale, minimum (never above zero), and the inverse scale and minimum of the levels. With
    MAGNITUDES (Q2_K) an error counts |x|, by size; otherwise the root mean square of the sub-block plus |x|, squared.
    """
    lane = tl.program_id(0) * LANES + tl.arange(0, LANES)
    v = _weights(x, lanes, lane, WIDTH)
    zero = v[0] * 0.0
    high = v[0]
    low = v[0]
    squares = zero
    for j in tl.static_range(WIDTH):
        low = tl.minimum(low, v[j])
        high = tl.maximum(high, v[j])
        squares += v[j] * v[j]
    low = tl.minimum(low, 0.0)
    root = tl.sqrt_rn(tl.div_rn(squares, zero + WIDTH))
    total = zero
    weighted = zero
    for j in tl.static_range(WIDTH):
        w = _count(v[j], root, MAGNITUDES)
        total += w
        weighted += w * v[j]
    kept = tl.div_rn(zero + TOP, high - low)
    scale = tl.div_rn(zero + 1.0, kept)
    shift = low
    best = _error(v, root, kept, low, scale, low, WIDTH, TOP, MAGNITUDES)
    for k in range(COUNT):
        inverse = tl.div_rn(zero + tl.load(tries + k), high - low)
        q_sum = zero
        qq_sum = zero
        xq_sum = zero
        for j in tl.static_range(WIDTH):
            q = _level(inverse * (v[j] - low), 0.0, TOP)
            wq = _count(v[j], root, MAGNITUDES) * q
            q_sum += wq
            qq_sum += wq * q
            xq_sum += wq * v[j]
        determinant = total * qq_sum - q_sum * q_sum
        minimum = tl.div_rn(qq_sum * weighted - q_sum * xq_sum, determinant)
        above = minimum > 0.0
        d = tl.where(above, tl.div_rn(xq_sum, qq_sum), tl.div_rn(total * xq_sum - weighted * q_sum, determinant))
        minimum = tl.where(above, 0.0, minimum)
        e = _error(v, root, inverse, low, d, minimum, WIDTH, TOP, MAGNITUDES)
        better = (determinant > 0.0) & (e < best)
        best = tl.where(better, e, best)
        scale = tl.where(better, d, scale)
        kept = tl.where(better, inverse, kept)
        shift = tl.where(better, low, shift)
        low = tl.where(better, minimum, low)
    inside = lane < lanes
    tl.store(found + lane, scale, mask=inside)
    tl.store(found + lanes + lane, low, mask=inside)
    tl.store(found + 2 * lanes + lane, kept, mask=inside)
    tl.store(found + 3 * lanes + lane, shift, mask=inside)


@triton.jit
def _largest(v, WIDTH: tl.constexpr):
    """The largest magnitude, and the first weight that has it."""
    magnitude = v[0] * 0.0
    signed = magnitude
    for j in tl.static_range(WIDTH):
        more = tl.abs(v[j]) > magnitude
        signed = tl.where(more, v[j], signed)
        magnitude = tl.where(more, tl.abs(v[j]), magnitude)
    return magnitude, signed


@triton.jit
def _fit(v, inverse, WIDTH: tl.constexpr, HALF: tl.constexpr):
    """Sums of x² x q and x² q q."""
    xq = inverse * 0.0
    qq = xq
    for j in tl.static_range(WIDTH):
        q = _level(inverse * v[j], -HALF, HALF - 1)
        xq += v[j] * v[j] * v[j] * q
        qq += v[j] * v[j] * q * q
    return xq, qq


@triton.jit
def symmetric(x, lanes, tries, found, COUNT: tl.constexpr, WIDTH: tl.constexpr, HALF: tl.constexpr,
              LANES: tl.constexpr):  # fmt: skip
    """A scale of levels -HALF … HALF - 1: make_qx_quants, an error counting x². `tries` are COUNT numerators of inverse scales.

    Fills `found[i * lanes + lane]`: scale, inverse scale of the levels, largest magnitude.
    """
    lane = tl.program_id(0) * LANES + tl.arange(0, LANES)
    v = _weights(x, lanes, lane, WIDTH)
    zero = v[0] * 0.0
    magnitude, signed = _largest(v, WIDTH)
    kept = tl.div_rn(zero - HALF, signed)
    xq, qq = _fit(v, kept, WIDTH, HALF)
    scale = tl.where(qq != 0.0, tl.div_rn(xq, qq), 0.0)
    best = scale * xq
    for k in range(COUNT):
        inverse = tl.div_rn(zero + tl.load(tries + k), signed)
        xq, qq = _fit(v, inverse, WIDTH, HALF)
        better = (qq > 0.0) & (xq * xq > best * qq)
        s = tl.div_rn(xq, qq)
        scale = tl.where(better, s, scale)
        best = tl.where(better, s * xq, best)
        kept = tl.where(better, inverse, kept)
    inside = lane < lanes
    tl.store(found + lane, scale, mask=inside)
    tl.store(found + lanes + lane, kept, mask=inside)
    tl.store(found + 2 * lanes + lane, magnitude, mask=inside)


@triton.jit
def improved(x, lanes, found, levels, WIDTH: tl.constexpr, HALF: tl.constexpr,
             LANES: tl.constexpr):  # fmt: skip
    """A scale of levels -HALF … HALF - 1, improved level by level, five times: make_q3_quants, an error counting x².

    Fills `found[i * lanes + lane]` with the sums whose quotient is the scale and the largest magnitude, and
    `levels[j * lanes + lane]` with the levels.
    """
    lane = tl.program_id(0) * LANES + tl.arange(0, LANES)
    inside = lane < lanes
    v = _weights(x, lanes, lane, WIDTH)
    magnitude, signed = _largest(v, WIDTH)
    inverse = tl.div_rn(magnitude * 0.0 - HALF, signed)
    xq, qq = _fit(v, inverse, WIDTH, HALF)
    q = ()
    for j in tl.static_range(WIDTH):
        q = q + (_level(inverse * v[j], -HALF, HALF - 1),)  # noqa: RUF005 — as above
    for _ in range(5):
        now = ()
        for j in tl.static_range(WIDTH):
            weight = v[j] * v[j]
            others_xq = xq - weight * v[j] * q[j]
            others_qq = qq - weight * q[j] * q[j]
            other = tl.minimum(tl.maximum(_nearest_int(tl.div_rn(v[j] * others_qq, others_xq)), -HALF), HALF - 1).to(tl.float32)
            new_xq = others_xq + weight * v[j] * other
            new_qq = others_qq + weight * other * other
            taken = (others_xq > 0.0) & (other != q[j]) & (new_qq > 0.0) & (new_xq * new_xq * qq > xq * xq * new_qq)
            now = now + (tl.where(taken, other, q[j]),)  # noqa: RUF005 — as above
            xq = tl.where(taken, new_xq, xq)
            qq = tl.where(taken, new_qq, qq)
        q = now
    tl.store(found + lane, xq, mask=inside)
    tl.store(found + lanes + lane, qq, mask=inside)
    tl.store(found + 2 * lanes + lane, magnitude, mask=inside)
    for j in tl.static_range(WIDTH):
        tl.store(levels + j * lanes + lane, q[j], mask=inside)
