"""Size against error over a job's artifacts, as SVG: what each type costs and what it gives."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from qconvd.quantities import show_size

WIDTH, HEIGHT = 720, 340
LEFT, RIGHT, TOP, BOTTOM = 70, 100, 18, 48
UNITS = ((1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"), (1, "B"))
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
    label_x: float
    label_y: float


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
    largest = max(1, *(p.nbytes for p in points))
    measured = [p.error for p in points if p.error > EXACT]
    low = math.floor(math.log10(min(measured, default=1e-3)))
    high = max(math.ceil(math.log10(max(measured, default=1e-2))), low + 1)
    exact = len(measured) < len(points)
    steps = high - low + exact

    def x(nbytes: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * nbytes / (largest * 1.04 or 1)

    def y(power: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (power - low + exact) / steps

    unit, name = next((u, n) for u, n in UNITS if largest >= u)
    step = _round(largest / unit / 5)
    xs = [Tick(x(n * step * unit), f"{n * step:g} {name}") for n in range(int(largest * 1.04 / (step * unit)) + 1)]
    ys = [Tick(y(power), _percent(power)) for power in range(low, high + 1)]
    if exact:
        ys.insert(0, Tick(y(low - 1), "exact"))
    placed = [(x(p.nbytes), y(math.log10(p.error) if p.error > EXACT else low - 1), p) for p in points]
    return Plot(list(_marks(placed)), xs, ys)


def _marks(placed: Sequence[tuple[float, float, Point]]) -> Iterable[Mark]:
    """Points with labels where nothing else is, as far as there is room."""
    taken = [(px - 6, px + 6, py) for px, py, _ in placed]
    for px, py, point in sorted(placed, key=lambda p: (p[1], p[0])):
        wide = 7.2 * len(point.label)
        places = [(px + 10, py + 4), (px - 10 - wide, py + 4), *((px + 10, py + 4 + step) for step in (13, -13, 26, -26, 39))]
        free = [p for p in places if p[0] >= LEFT and TOP < p[1] < HEIGHT - BOTTOM and not _hit(p, wide, taken)]
        left, at = (free or places)[0]
        taken.append((left, left + wide, at - 4))
        error = f"{100 * point.error:.3g} % error" if point.error > EXACT else "exact"
        yield Mark(px, py, point.label, f"{point.label}: {show_size(point.nbytes)}, {error}", left, at)


def _hit(place: tuple[float, float], wide: float, taken: Iterable[tuple[float, float, float]]) -> bool:
    left, at = place
    return any(left < right and left + wide > start and abs(at - 4 - y) < 12 for start, right, y in taken)


def _round(value: float) -> float:
    """A round number at or above `value`: 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(n for n in (1, 2, 5, 10) if n * power >= value) * power


def _percent(power: int) -> str:
    return f"{10.0 ** (power + 2):g} %"
