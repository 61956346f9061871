"""Where the daemon's log goes. Only `qconvd run` imports this; all else logs with the standard library."""

from __future__ import annotations

import logging
import os
import sys
import threading
from pathlib import Path
from types import TracebackType

from qconvd.config.log import Log, LogFormat
from qconvd.errors import ConfigError
from qconvd.logs import journal
from qconvd.logs.formats import ForPeople, as_entry, as_json, formatter, take_structlog_along

log = logging.getLogger(__name__)


class DaemonLog:
    """The log of this process, as a configuration says; what the command line says comes before that."""

    def __init__(self, format: LogFormat | None = None, *, verbose: bool = False, address: Path = journal.SOCKET) -> None:
        self._format = format
        self._verbose = verbose
        self._address = address
        self.shown: LogFormat = "human"
        """The format in force; never `auto`."""

    def apply(self, wanted: Log) -> None:
        """Log like this from now on. Raises `ConfigError`, and changes nothing, if there is no journal to write to."""
        shown = self._format or wanted.format
        if shown == "auto":
            shown = "journal" if is_the_journal(2) and self._address.is_socket() else "human"
        handler = self._handler(shown)
        self.shown = shown
        take_structlog_along()
        # Not `basicConfig(force=True)`: between its two steps, lines of other threads would be lost.
        root = logging.getLogger()
        before = root.handlers
        root.handlers = [handler]
        for old in before:
            old.close()
        root.setLevel("DEBUG" if self._verbose else wanted.level.upper())
        # Its debug lines are two for every file, in its own terms.
        logging.getLogger("watchdog").setLevel(logging.INFO)
        # What would be written past the log.
        logging.captureWarnings(True)
        sys.excepthook = _ends
        threading.excepthook = _thread_ends

    def _handler(self, shown: LogFormat) -> logging.Handler:
        if shown == "journal":
            try:
                handler: logging.Handler = journal.JournalHandler(self._address)
            except OSError as error:
                raise ConfigError(
                    f"there is no journal at {self._address}: {os.strerror(error.errno or 0)}",
                    where="log.format",
                    fix="write `log: {format: json}`, or `auto`, which looks whether there is one",
                ) from error
            handler.setFormatter(formatter(as_entry))
            return handler
        handler = logging.StreamHandler()
        people = ForPeople(stamp=not is_the_journal(2), color=has_colors(2))
        handler.setFormatter(formatter(as_json if shown == "json" else people))
        return handler


def is_the_journal(descriptor: int) -> bool:
    """Whether systemd has connected it to the journal: `$JOURNAL_STREAM` names its device and inode (systemd.exec(5))."""
    try:
        found = os.fstat(descriptor)
    except OSError:
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"


def has_colors(descriptor: int) -> bool:
    """Whether it is a terminal whose user has nothing against colours (https://no-color.org)."""
    try:
        terminal = os.isatty(descriptor)
    except OSError:
        return False
    return terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _ends(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    log.critical("a defect of qconvd ends it", exc_info=(kind, error, trace), extra={"action": "daemon.defect"})


def _thread_ends(hook: threading.ExceptHookArgs) -> None:
    if hook.exc_value is None:  # the interpreter is at its end
        return
    name = hook.thread.name if hook.thread else ""
    log.critical("a defect ends the thread %s", name, exc_info=(hook.exc_type, hook.exc_value, hook.exc_traceback),
                 extra={"action": "daemon.thread_ended"})  # fmt: skip
