"""What the daemon sleeps on: rung by watchers' threads and by signals, heard by the one loop."""

from __future__ import annotations

import os
import select
from typing import Self


class Bell:
    """Wakes one sleeper. `ring` is safe from threads and from signal handlers, where a lock of Python's is not."""

    def __init__(self) -> None:
        self._descriptor = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def ring(self) -> None:
        if self._descriptor >= 0:
            os.eventfd_write(self._descriptor, 1)

    def wait(self, seconds: float) -> bool:
        """Sleep until it rings, at most so long. Rings that came before count; returns whether it rang."""
        ready, _, _ = select.select([self._descriptor], [], [], max(0.0, seconds))
        if ready:
            os.eventfd_read(self._descriptor)
        return bool(ready)

    def close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        os.close(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
