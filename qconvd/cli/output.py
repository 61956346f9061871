"""What commands print with: tables that fit the terminal, pairs, JSON."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console

WIDTH = 80
"""Columns where the output is no terminal; then nothing is cut, long cells go on in the next line."""
UNBROKEN = 100_000
"""Columns of a table whose rows are one line each, however long: a terminal breaks it, a file need not."""
INDENT = "    "


def console(*, stderr: bool = False, width: int | None = None) -> Console:
    """Where to print: colours and the real width on a terminal, plain text of 80 columns elsewhere."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    return Console(
        file=stream, highlight=False, markup=False, emoji=False, soft_wrap=False,
        width=width or (None if stream.isatty() else WIDTH),
    )  # fmt: skip


def table(
    headings: Sequence[str],
    rows: Sequence[Sequence[object]],
    *,
    right: Sequence[int] = (),
    whole: Sequence[int] = (),
    under: Sequence[str] = (),
    sentences: Sequence[Sequence[str]] = (),
) -> None:
    """Print aligned columns; those in `right` are numbers, those in `whole` are never broken.

    `under` holds a line to stand below each row, for what may be longer than any column. `sentences` holds some for each
    row: a lone one stands beside it if there is room, others below it in lines that fit. With either, no column is broken.
    """
    grid = _unbroken(headings, rows, right) if under or sentences else _grid(headings, rows, right, whole)
    # rich pads every line to the table's width.
    lines = [line.rstrip() for line in grid]
    if under:
        lines = [lines[0], *(one for line, path in zip(lines[1:], under, strict=True) for one in (line, f"  {safe(path)}"))]
    if sentences:
        beside = max(map(_width, grid), default=0)
        lines = [
            lines[0],
            *(one for line, texts in zip(lines[1:], sentences, strict=True) for one in _told(line, texts, beside)),
        ]
    print("\n".join(lines))


def _unbroken(headings: Sequence[str], rows: Sequence[Sequence[object]], right: Sequence[int]) -> list[str]:
    """A line for each row, however long. By hand: rich takes seconds for a thousand rows."""
    from rich.cells import cell_len
    from rich.text import Text

    cells = [list(headings), *([" ".join(safe(str(cell)).split("\n")) for cell in row] for row in rows)]
    widths = [max(1, *(cell_len(row[column]) for row in cells)) for column in range(len(headings))]

    def line(row: Sequence[str]) -> str:
        gaps = [" " * (width - cell_len(cell)) for cell, width in zip(row, widths, strict=True)]
        filled = (gap + cell if at in right else cell + gap for at, (cell, gap) in enumerate(zip(row, gaps, strict=True)))
        return "  ".join(filled)

    out = console(width=UNBROKEN)
    with out.capture() as captured:
        out.print(Text(line(cells[0]), style="bold"), end="")
    return [captured.get(), *map(line, cells[1:])]


def _grid(headings: Sequence[str], rows: Sequence[Sequence[object]], right: Sequence[int], whole: Sequence[int]) -> list[str]:
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
    return captured.get().splitlines()


def _told(line: str, texts: Sequence[str], beside: int) -> list[str]:
    """A row with its sentences."""
    from rich.cells import cell_len

    texts = [safe(text) for text in texts if text]
    if len(texts) == 1 and "\n" not in texts[0] and beside + 2 + cell_len(texts[0]) <= console().width:
        return [f"{line}{' ' * (beside + 2 - _width(line))}{texts[0]}"]
    return [line, *(filled(part, INDENT) for text in texts for part in text.splitlines())]


def _width(line: str) -> int:
    """Columns that a line takes on a terminal, without the codes for colours."""
    from rich.text import Text

    return Text.from_ansi(line).cell_len


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


def fitting(text: str, stream: TextIO) -> str:
    """Lines broken between words on a terminal, which would break them within; elsewhere they stay as they are."""
    if not stream.isatty():
        return text
    import textwrap

    width = os.get_terminal_size(stream.fileno()).columns or WIDTH  # 0 on a serial line
    lines = []
    for line in text.splitlines():
        indent = " " * (len(line) - len(line.lstrip()))
        lines += textwrap.wrap(line, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False) or [""]
    return "\n".join(lines)


def as_json(data: Any) -> None:
    """Print JSON."""
    print(json.dumps(data, indent=2, ensure_ascii=False, default=str))


def note(text: str) -> None:
    """Say something beside the output, on stderr."""
    print(fitting(safe(text), sys.stderr), file=sys.stderr, flush=True)


def safe(text: str) -> str:
    """Text that may come from a model's files, without what would steer a terminal."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)
