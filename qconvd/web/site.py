"""What the web's thread knows of the daemon: what the daemon's thread last said. Single values, so no lock is needed."""

from __future__ import annotations

import secrets
import socket
import time
from collections.abc import Callable
from pathlib import Path

from qconvd.config import UNIX, Config
from qconvd.errors import QconvdError
from qconvd.hub.tokens import Token, web_token
from qconvd.web.sockets import only_here

SILENCE = 120.0
"""Seconds without a turn of the daemon's loop after which it is taken for hung."""


class Site:
    """One daemon, as its page sees it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.config: Config | None = None
        self.trouble = ""
        self.stopping = False
        self.only_here = True
        self.form_secret = secrets.token_hex(32)
        """In every form of ours. No other site can read it, so a form without it is not one of ours."""
        self._clock = clock
        self._turned_at: float | None = None
        self._address = ""

    # Said by the daemon's thread

    def listens_at(self, address: str) -> None:
        """It is served at this address, as `shown` has it."""
        self._address, self.only_here = address, only_here(address)

    def turned(self, trouble: str, *, stopping: bool) -> None:
        """The daemon's loop went round."""
        self.trouble, self.stopping = trouble, stopping
        self._turned_at = self._clock()

    # Read by the web's thread

    @property
    def state(self) -> Path:
        assert self.config is not None
        return self.config.state

    def token(self) -> Token | None:
        """What clients must bring; None if nothing is set. Raises `QconvdError` if it cannot be read."""
        return web_token(self.config.web.token_file if self.config else None)

    def token_error(self) -> str:
        """Why there is no token, as a sentence; empty if there is one."""
        try:
            return "" if self.token() else "name a file with one in `web.token_file`"
        except QconvdError as error:
            return str(error)

    def hosts(self) -> set[str]:
        """The names by which this daemon may be called, beside bare addresses. Ports are a proxy's own affair."""
        own = "" if self._address.startswith(UNIX) else self._address.rpartition(":")[0].strip("[]")
        # Where other machines come, nobody is served without the token, so it harms nobody to go by the machine's name.
        machine = "" if self.only_here else socket.gethostname().lower()
        return {"localhost", own, machine, machine.partition(".")[0], *(self.config.web.hosts if self.config else ())} - {""}

    def unwell(self) -> str:
        """Why the daemon is to be taken for hung; empty if it goes round."""
        if self._turned_at is None:
            return "it has not begun its work yet"
        silent = self._clock() - self._turned_at
        return f"its loop has not gone round for {silent:.0f} s" if silent > SILENCE else ""

    def unready(self) -> str:
        """Why nothing would come of work that is handed in now; empty if it would be taken."""
        if self.stopping:
            return "it is stopping"
        return self.unwell() or (f"it cannot go on: {self.trouble}" if self.trouble else "")
