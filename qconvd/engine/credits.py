"""Memory in flight, bounded: bytes are asked for before they are read or made, and given back when they are written."""

from __future__ import annotations

import threading


class Credits:
    """A number of bytes that may be in use at a time. More than all of them is granted only to one who is alone."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self.peak = 0
        self._held = 0
        self._changed = threading.Condition()

    def take(self, nbytes: int, timeout: float) -> bool:
        """Wait up to `timeout` seconds for `nbytes`; whether they were granted."""
        with self._changed:
            if not self._changed.wait_for(lambda: self.used == 0 or self.used + nbytes <= self.limit - self._held, timeout):
                return False
            self.used += nbytes
            self.peak = max(self.peak, self.used)
            return True

    def give(self, nbytes: int) -> None:
        """Bytes are free again."""
        with self._changed:
            self.used -= nbytes
            self._changed.notify_all()

    def hold(self, nbytes: int) -> None:
        """So many bytes are in use by what is no item (statistics), until this is called again. Who is alone is let pass."""
        with self._changed:
            self._held = nbytes
            self._changed.notify_all()

    def idle(self, timeout: float) -> bool:
        """Wait up to `timeout` seconds until nothing is in use; whether that is so."""
        with self._changed:
            return self._changed.wait_for(lambda: self.used == 0, timeout)
