"""Bits per weight against perplexity as an SVG that is legible on light and dark pages, without a library."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from math import ceil, floor, log

WIDTH, HEIGHT = 860, 560
LEFT, RIGHT, TOP, BOTTOM = 64, 24, 40, 52
LETTER, LINE = 6.4, 12
"""What a letter of a label takes, and a line."""

STYLE = """
text { font: 11px system-ui, sans-serif; fill: #24292f }
.quiet { fill: #6e7781 }
.rule { stroke: #d0d7de }
.pair { stroke: #8c959f; stroke-dasharray: 2 2 }
circle { stroke-width: 1.6 }
.plain { fill: none; stroke: #0969da }
.imatrix { fill: #bc4c00 }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 }
  .quiet { fill: #9198a1 }
  .rule { stroke: #3d444d }
  .pair { stroke: #656c76 }
  .plain { stroke: #4493f8 }
  .imatrix { fill: #f0883e }
}
"""

Point = tuple[str, bool, float, float]
"""Type, with importance matrix, bits per weight, perplexity."""


def svg(points: Sequence[Point], most_bits: float = 9.2) -> str:
    """A plot of all points below `most_bits`; the best perplexity is drawn as a line. The perplexity's axis is logarithmic.

    What has ten times the best perplexity is no model any more and would only press the others together.
    """
    best = min(p for _, _, _, p in points)
    shown = [p for p in points if p[2] < most_bits and p[3] < 10 * best]
    low, high = floor(min(b for _, _, b, _ in shown)), ceil(max(b for _, _, b, _ in shown))
    bottom, top = log(best * 0.97), log(max(p for _, _, _, p in shown) * 1.1)

    def x(bits: float) -> float:
        return LEFT + (bits - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    def y(perplexity: float) -> float:
        return HEIGHT - BOTTOM - (log(perplexity) - bottom) / (top - bottom) * (HEIGHT - TOP - BOTTOM)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">',
        "<title>Perplexity against bits per weight</title>",
        f"<style>{STYLE}</style>",
    ]
    for bits in range(low, high + 1):
        parts.append(_rule(x(bits), TOP, x(bits), HEIGHT - BOTTOM))
        parts.append(_text(x(bits), HEIGHT - BOTTOM + 18, str(bits), "middle", "quiet"))
    for value in _ticks(best, max(p for _, _, _, p in shown)):
        parts.append(_rule(LEFT, y(value), WIDTH - RIGHT, y(value)))
        parts.append(_text(LEFT - 8, y(value) + 4, str(value), "end", "quiet"))
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 12, "bits per weight", "middle", "quiet"))
    parts.append(_text(LEFT, TOP - 18, "perplexity (logarithmic; lower is better)", "start", "quiet"))
    parts.append(f'<circle class="plain" cx="{WIDTH - 250}" cy="{TOP - 22}" r="4"/>')
    parts.append(_text(WIDTH - 240, TOP - 18, "without", "start"))
    parts.append(f'<circle class="imatrix" cx="{WIDTH - 180}" cy="{TOP - 22}" r="4"/>')
    parts.append(_text(WIDTH - 170, TOP - 18, "with importance matrix", "start"))
    parts.append(f'<line class="pair" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(best):.1f}" y2="{y(best):.1f}"/>')

    places = [(name, weighted, x(bits), y(perplexity), bits, perplexity) for name, weighted, bits, perplexity in shown]
    plain = {name: (px, py) for name, weighted, px, py, _, _ in places if not weighted}
    for name, weighted, px, py, bits, perplexity in places:
        if weighted and name in plain:
            qx, qy = plain[name]
            parts.append(f'<line class="pair" x1="{px:.1f}" y1="{py:.1f}" x2="{qx:.1f}" y2="{qy:.1f}"/>')
        said = f"{name}{' with importance matrix' if weighted else ''}: {bits:.2f} bits per weight, perplexity {perplexity:.2f}"
        kind = "imatrix" if weighted else "plain"
        parts.append(f'<circle class="{kind}" cx="{px:.1f}" cy="{py:.1f}" r="4"><title>{escape(said)}</title></circle>')
    parts += _labels([(name, px, py) for name, _, px, py, _, _ in places])
    return "\n".join([*parts, "</svg>\n"])


def _labels(points: Sequence[tuple[str, float, float]]) -> Iterator[str]:
    """Names beside their points, each once, where there is room for it; the others are told by pointing."""
    taken = [(px - 5, py - 5, px + 5, py + 5) for _, px, py in points]
    named: set[str] = set()
    for name, px, py in sorted(points, key=lambda p: (p[2], p[1])):
        if name in named:
            continue
        size = LETTER * len(name)
        for left, base, anchor in _around(px, py, size):
            box = (left, base - LINE + 2, left + size, base + 2)
            inside = box[0] > LEFT and box[2] < WIDTH and box[1] > TOP - 8 and box[3] < HEIGHT - BOTTOM
            if inside and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                named.add(name)
                yield _text(left if anchor == "start" else left + size, base, name, anchor)
                break


def _around(px: float, py: float, size: float) -> Iterator[tuple[float, float, str]]:
    for down in (4, -8, 16, -20, 28):
        yield px + 8, py + down, "start"
        yield px - 8 - size, py + down, "end"


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _ticks(low: float, high: float) -> list[int]:
    steps = [n * 10**e for e in range(6) for n in (1, 1.5, 2, 3, 5, 7)]
    return [int(s) for s in steps if low * 0.97 <= s <= high * 1.1 and s == int(s)]


def _rule(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="rule" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, text: str, anchor: str, kind: str = "") -> str:
    css = f' class="{kind}"' if kind else ""
    return f'<text{css} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
