"""Text of the log: what comes from a model's files or names can neither steer a terminal nor pass for a line of its own."""

from __future__ import annotations

import math
import re
from typing import Any

_NEW_LINE = re.compile(r"\n(?!  )")
"""Unless it is what a `QconvdError` has to say in its second line, which is indented."""


def escaped(text: str) -> str:
    """Text with everything but printable characters and line ends as escapes, as `\\x1b`."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def sentence(text: str) -> str:
    """A message: of its line ends, those stay that a `QconvdError` has before what to do."""
    return escaped(_NEW_LINE.sub(r"\\n", text))


def one_line(text: str) -> str:
    """A name or a path: without any line end."""
    return escaped(text).replace("\n", "\\n")


def plain(value: Any) -> Any:
    """A field's value as JSON has it: numbers stay, all else is text in one line; of collections, each element."""
    if value is None or isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(v) for v in value]
    return one_line(str(value))
