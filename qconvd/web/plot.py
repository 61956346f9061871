"""Size against error over a job's artifacts, as SVG: what each type costs and what it gives."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from qconvd.quantities import show_size

WIDTH, HEIGHT = 720, 340
LEFT, RIGHT, TOP, BOTTOM = 70, 100, 18, 48
EXACT = 1e-9
"""A relative error below which an artifact is its source."""


@dataclass(frozen=True)
class Point:
    """An artifact: bytes, and RMS of its error over that of the weights."""

    label: str
    nbytes: int
    error: float


@dataclass(frozen=True)
class Mark:
    """A point of the drawing, in its units, with its label."""

    x: float
    y: float
    label: str
    title: str
    label_y: float
    anchor: str


@dataclass(frozen=True)
class Tick:
    """A line of the grid."""

    at: float
    text: str


@dataclass(frozen=True)
class Plot:
    """Everything that the template draws."""

    marks: list[Mark]
    xs: list[Tick]
    ys: list[Tick]
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT
    top: int = TOP
    bottom: int = HEIGHT - BOTTOM


def plot(points: Sequence[Point]) -> Plot | None:
    """The drawing; None if there is nothing to compare. The error's axis is logarithmic, and exact ones lie at its end."""
    if len(points) < 2:
        return None
    largest = max(p.nbytes for p in points)
    measured = [p.error for p in points if p.error > EXACT]
    low = math.floor(math.log10(min(measured, default=1e-3)))
    high = max(math.ceil(math.log10(max(measured, default=1e-2))), low + 1)
    exact = len(measured) < len(points)
    steps = high - low + exact

    def x(nbytes: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * nbytes / (largest * 1.04 or 1)

    def y(power: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (power - low + exact) / steps

    step = _round(largest / 5)
    xs = [Tick(x(n * step), show_size(n * step)) for n in range(int(largest * 1.04 / step) + 1)]
    ys = [Tick(y(power), _percent(power)) for power in range(low, high + 1)]
    if exact:
        ys.insert(0, Tick(y(low - 1), "exact"))
    placed = [(x(p.nbytes), y(math.log10(p.error) if p.error > EXACT else low - 1), p) for p in points]
    return Plot(list(_marks(placed)), xs, ys)


def _marks(placed: Iterable[tuple[float, float, Point]]) -> Iterable[Mark]:
    """Points with labels that do not lie on each other, as far as there is room below."""
    taken: list[tuple[float, float, float]] = []
    for px, py, point in sorted(placed, key=lambda p: (p[1], p[0])):
        wide = 7.5 * len(point.label) + 14
        anchor = "start"
        start = px + 9
        at = py + 4
        while any(start < e and start + wide > s and abs(at - t) < 13 for s, e, t in taken) and at < HEIGHT - BOTTOM - 4:
            at += 13
        taken.append((start, start + wide, at))
        error = f"{100 * point.error:.3g} % error" if point.error > EXACT else "exact"
        yield Mark(px, py, point.label, f"{point.label}: {show_size(point.nbytes)}, {error}", at, anchor)


def _round(value: float) -> float:
    """A round number of a binary unit near `value`."""
    unit = 1024 ** max(0, int(math.log(max(value, 1), 1024)))
    power = 10 ** math.floor(math.log10(max(value / unit, 1)))
    return float(unit * power) * next(n for n in (1, 2, 5, 10) if n * power * unit >= value)


def _percent(power: int) -> str:
    return f"{10.0 ** (power + 2):g} %"
