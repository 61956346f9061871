"""What commands print with: tables that fit the terminal, pairs, JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

WIDTH = 80
"""Columns where the output is no terminal; then nothing is cut, long cells go on in the next line."""


def console(*, stderr: bool = False) -> Console:
    """Where to print: colours and the real width on a terminal, plain text of 80 columns elsewhere."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    return Console(
        file=stream, highlight=False, markup=False, emoji=False, soft_wrap=False, width=None if stream.isatty() else WIDTH
    )


def table(
    headings: Sequence[str],
    rows: Sequence[Sequence[object]],
    *,
    right: Sequence[int] = (),
    whole: Sequence[int] = (),
    under: Sequence[str] = (),
) -> None:
    """Print aligned columns; those in `right` are numbers, those in `whole` are never broken.

    `under` holds a line to stand below each row, for what may be longer than any column.
    """
    from rich.table import Table

    grid = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold", show_edge=False)
    for number, heading in enumerate(headings):
        numeric = number in right
        grid.add_column(heading, justify="right" if numeric else "left", no_wrap=numeric or number in whole, overflow="fold")
    for row in rows:
        grid.add_row(*(safe(str(cell)) for cell in row))
    out = console()
    with out.capture() as captured:
        out.print(grid)
    # rich pads every line to the table's width.
    lines = [line.rstrip() for line in captured.get().splitlines()]
    if under:
        lines = [lines[0], *(one for line, path in zip(lines[1:], under, strict=True) for one in (line, f"  {safe(path)}"))]
    print("\n".join(lines))


def pairs(rows: Sequence[tuple[str, object]]) -> None:
    """Print `name  value` lines, aligned; empty values are left out."""
    shown = [(name, str(value)) for name, value in rows if value not in ("", None)]
    width = max((len(name) for name, _ in shown), default=0)
    for name, value in shown:
        print(f"{name:<{width}}  {safe(value)}")


def filled(text: str, before: str = "") -> str:
    """A sentence in lines that fit, each after the first indented as far as `before` reaches."""
    import textwrap

    width = console().width
    indent = " " * len(before)
    return textwrap.fill(
        safe(text), width, initial_indent=before, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def as_json(data: Any) -> None:
    """Print JSON."""
    print(json.dumps(data, indent=2, ensure_ascii=False, default=str))


def note(text: str) -> None:
    """Say something beside the output, on stderr."""
    print(text, file=sys.stderr, flush=True)


def safe(text: str) -> str:
    """Text that may come from a model's files, without what would steer a terminal."""
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)
