"""What a line of the log looks like: for people, as JSON, or as an entry of the journal. All three say the same.

Modules log with the standard library; what a line is about goes into `extra`: `extra={"action": "model.gone", "model": name}`.
structlog makes the line of it, so that what a plugin logs with structlog itself comes out the same way.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

import structlog
from structlog.stdlib import ExtraAdder, ProcessorFormatter
from structlog.typing import EventDict, Processor, ProcessorReturnValue

from qconvd.logs import journal
from qconvd.logs.text import escaped, one_line, plain, sentence

_OURS = ("_record", "_from_structlog", "event", "exc_info", "stack_info", "exception", "positional_args")
_COLORS = {"debug": "2", "warning": "33", "error": "31", "critical": "1;31"}
"""Select Graphic Rendition, ECMA-48 8.3.117: faint, yellow, red, bold red."""


def described(_: Any, __: str, event: EventDict) -> EventDict:
    """A line as data: time, level, logger, action, message, then whatever fields it has, at last a traceback.

    No value holds a control character but for the line ends that qconvd itself puts into messages and tracebacks.
    """
    record = event["_record"]
    fields = {one_line(str(k)): plain(v) for k, v in event.items() if k not in _OURS and v not in (None, "", [], ())}
    said: EventDict = {
        "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "level": record.levelname.lower(),
        "logger": one_line(record.name),
        "action": fields.pop("action", None) or f"library.{one_line(record.name.partition('.')[0])}",
        "message": sentence(str(event["event"])),
    }
    said.update({k: v for k, v in fields.items() if k not in said})
    if event.get("exception"):
        said["exception"] = escaped(str(event["exception"]))
    return said


class ForPeople:
    """Level and message, with the local time before them unless something else keeps it."""

    def __init__(self, *, stamp: bool = True, color: bool = False) -> None:
        self._stamp, self._color = stamp, color

    def __call__(self, _: Any, __: str, said: EventDict) -> ProcessorReturnValue:
        at = datetime.fromisoformat(said["time"]).timestamp()
        stamp = time.strftime("%Y-%m-%d %H:%M:%S ", time.localtime(at)) if self._stamp else ""
        level = f"{said['level'].upper():<7}"
        if self._color:
            stamp = f"\x1b[2m{stamp}\x1b[0m" if stamp else ""
            level = f"\x1b[{_COLORS[said['level']]}m{level}\x1b[0m" if said["level"] in _COLORS else level
        return f"{stamp}{level} {journal.told(said)}"


def as_json(_: Any, __: str, said: EventDict) -> ProcessorReturnValue:
    """An object in one line."""
    return structlog.processors.JSONRenderer(ensure_ascii=False)(_, __, said)


def as_entry(_: Any, __: str, said: EventDict) -> ProcessorReturnValue:
    """An entry of the journal. A formatter returns text, so its bytes come as text: `JournalHandler` makes them bytes again."""
    return journal.entry(said).decode(errors="surrogateescape")


def formatter(shown: Processor) -> ProcessorFormatter:
    """A formatter for a handler of the standard library; `shown` is what makes a line of the data."""
    return ProcessorFormatter(
        foreign_pre_chain=[ExtraAdder()], processors=[structlog.processors.format_exc_info, described, shown]
    )


def take_structlog_along() -> None:
    """Let what is logged with structlog itself (by a plugin) go to the same log."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars, structlog.stdlib.filter_by_level,
            structlog.stdlib.PositionalArgumentsFormatter(), ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger, logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )  # fmt: skip
