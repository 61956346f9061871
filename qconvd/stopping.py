"""How a worker hears that it shall stop."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from qconvd.engine.run import Cancelled
from qconvd.tasks import EXIT_CANCELLED


class Stop:
    """Whether SIGTERM or SIGINT came to this process."""

    def __init__(self) -> None:
        self._asked = False
        self.at_once = False
        """Whether the process ends when the signal comes, instead of when somebody asks."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._ask)

    def __call__(self) -> bool:
        return self._asked

    def _ask(self, *_: object) -> None:
        self._asked = True
        if self.at_once:
            os._exit(EXIT_CANCELLED)


@contextmanager
def ends_at_once(cancelled: Callable[[], bool]) -> Iterator[None]:
    """What takes seconds and asks nobody, such as importing torch: who stops the worker does not wait for its end.

    Nothing may be begun in it that must not be left in the middle. To be entered by the main thread, which hears signals.
    """
    if not isinstance(cancelled, Stop):
        yield
        return
    cancelled.at_once = True
    try:
        if cancelled():
            raise Cancelled
        yield
    finally:
        cancelled.at_once = False
