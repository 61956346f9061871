"""One attempt to tell somebody: what it says when it comes to nothing, and how it is broken off."""

from __future__ import annotations

import threading
from collections.abc import Callable

from qconvd.errors import QconvdError


class NotSent(QconvdError):
    """An attempt came to nothing. `again`: whether another may help; `after`: seconds that the other side asks to wait."""

    def __init__(self, what: str, *, where: str = "", fix: str = "", again: bool = False, after: float | None = None) -> None:
        super().__init__(what, where=where, fix=fix)
        self.again = again
        self.after = after


class BreakOff:
    """Lets another thread end an attempt: `end` calls what the attempt has said to call."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._call: Callable[[], object] | None = None
        self.ended = False

    def by(self, call: Callable[[], object] | None) -> None:
        """From now on this ends the attempt; at once, if it is to end already."""
        with self._lock:
            self._call = call
            if self.ended and call is not None:
                call()

    def end(self) -> None:
        with self._lock:
            self.ended = True
            if self._call is not None:
                self._call()
