"""Lines of the log: what comes from a model's files or names can neither steer a terminal nor pass for a line of its own."""

from __future__ import annotations

import logging
import re
from types import TracebackType
from typing import TypeAlias

_Exception: TypeAlias = (
    tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]
)  # as `logging` has it
_NEW_LINE = re.compile(r"\n(?!  )")
"""Unless it is what a `QconvdError` has to say in its second line, which is indented."""


class LogLines(logging.Formatter):
    """Writes control characters of messages as escapes, as `\\x1b`."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = escaped(_NEW_LINE.sub(r"\\n", record.message))
        return super().formatMessage(record)

    def formatException(self, ei: _Exception) -> str:
        return escaped(super().formatException(ei))


def escaped(text: str) -> str:
    """Text with everything but printable characters and line ends as escapes."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)
