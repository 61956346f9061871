"""Loggers that write to where a test can read."""

from __future__ import annotations

import io
import logging
import sys
import threading
from collections.abc import Callable, Iterator

import pytest
from structlog.typing import Processor

from qconvd.logs.formats import formatter


@pytest.fixture
def logged() -> Callable[[Processor], tuple[logging.Logger, io.StringIO]]:
    """A logger whose lines look as asked, and where they go."""

    def made(shown: Processor) -> tuple[logging.Logger, io.StringIO]:
        log, out = logging.Logger("qconvd.test"), io.StringIO()
        handler = logging.StreamHandler(out)
        handler.setFormatter(formatter(shown))
        log.addHandler(handler)
        return log, out

    return made


@pytest.fixture
def restored() -> Iterator[None]:
    """The process logs afterwards as it did before."""
    root, watchdog = logging.getLogger(), logging.getLogger("watchdog")
    before = (root.handlers, root.level, watchdog.level, sys.excepthook, threading.excepthook)
    yield
    logging.captureWarnings(False)
    for handler in root.handlers:
        handler.close()
    root.handlers, sys.excepthook, threading.excepthook = before[0], before[3], before[4]
    root.setLevel(before[1])
    watchdog.setLevel(before[2])
