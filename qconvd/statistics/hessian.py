"""The Hessian of a linear's squared output error: X^T X of what the linear was multiplied with.

Source: Frantar et al., GPTQ (arXiv 2210.17323), equation 2. Linears that are fed the same activations (q, k and v; gate and up)
have one Hessian, and every target of a pass that asks for it is handed the same object.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

T = TypeVar("T")


class Hessian:
    """X^T X over all tokens, and what was derived from it."""

    def __init__(self, array: NDArray[np.float32], tokens: int) -> None:
        """`array` is float32 of shape (columns, columns), symmetric: the sum of x x^T over `tokens` rows x. Not copied."""
        array.flags.writeable = False
        self.array = array
        self.tokens = tokens
        self._made: dict[Hashable, Any] = {}
        self._locks: dict[Hashable, threading.Lock] = {}
        self._lock = threading.Lock()

    @property
    def columns(self) -> int:
        return int(self.array.shape[0])

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """What `make` gives, computed by the first who asks for `key` and handed to all others; they wait meanwhile.

        This is how one factorisation serves q, k and v, and every variant that orders and damps alike. What `make` raises is
        raised to its caller, and the next one tries again. It is let go of with the Hessian, when its layer is done.
        """
        with self._lock:
            mine = self._locks.setdefault(key, threading.Lock())
        with mine:
            if key not in self._made:
                self._made[key] = make()
            found: T = self._made[key]
            return found
