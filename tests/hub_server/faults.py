"""What goes wrong on demand. A fault meets the next `times` requests (all, with -1) after the first `skip` that match.

status   answer with `status` and `headers`, and do nothing
drop     read `bytes` of the request and cut the connection, nothing is done
cut      do it, and cut the connection after `bytes` of the reply's body
lost     do it, and cut the connection before the reply
hang     wait `seconds` and then cut the connection, nothing is done
slow     wait `seconds`, then go on as if nothing had happened
flip     do it, and change one bit of each part of the reply's body: another file under the same name
whole    do it as if no range was asked for: all of a file comes
stale    answer as of the commit before the last one
hold     wait until the server is told to be calm: `when` before or after it was done, the reply comes after that
"""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass, field


@dataclass
class Fault:
    match: str
    kind: str = "status"
    times: int = 1
    skip: int = 0
    status: int = 503
    headers: dict[str, str] = field(default_factory=dict)
    bytes: int = 0
    seconds: float = 0.0
    when: str = "before"
    body: str = '{"error": "injected"}'


class Faults:
    def __init__(self) -> None:
        self.held = 0
        self._faults: list[Fault] = []
        self._lock = threading.Lock()
        self._calm = threading.Event()

    def add(self, fault: Fault) -> None:
        with self._lock:
            self._calm.clear()
            self._faults.append(fault)

    def calm(self) -> None:
        with self._lock:
            self._faults.clear()
            self._calm.set()

    def meet(self, request: str) -> Fault | None:
        """The fault that this request meets, if any."""
        with self._lock:
            for fault in self._faults:
                if fault.times and re.search(fault.match, request):
                    if fault.skip:
                        fault.skip -= 1
                        continue
                    fault.times -= 1
                    return fault
        return None

    def hold(self, most: float = 120.0) -> None:
        with self._lock:
            self.held += 1
        self._calm.wait(most)
        with self._lock:
            self.held -= 1
