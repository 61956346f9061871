"""The daemon's HTTP server: a thread with an event loop of its own. Nothing of it is imported before it listens.

The daemon's thread calls `configure`, `turned` and `close`; the web's thread reads what they set (site.py) and touches nothing
else of the daemon's.
"""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, TypeAlias

from qconvd.config import UNIX, Config
from qconvd.web import sockets
from qconvd.web.site import Site

if TYPE_CHECKING:
    from qconvd.web.serving import Serving

log = logging.getLogger(__name__)
BODY_LIMIT = 1 << 20
"""Bytes of a request's body."""
END_SECONDS = 5.0
"""How long the thread may take to end."""

Answer: TypeAlias = tuple[int, str]
Post: TypeAlias = Callable[[bytes, Mapping[str, str]], Answer]


class WebServer:
    """Listens on one address. `posts` maps paths to what answers a POST there by itself, whoever asks."""

    def __init__(self, posts: Mapping[str, Post]) -> None:
        self._posts = posts
        self._site = Site()
        self._asked, self._address = "", ""
        self._listening: socket.socket | None = None
        self._serves: _Serves | None = None

    @property
    def address(self) -> str:
        """Where it listens, with the port that the system chose for 0; empty if it is closed."""
        return self._address

    def configure(self, config: Config) -> None:
        """Serve this configuration from now on, where it listens now: `listen` moves it."""
        self._site.config = config

    def listen(self, where: str | None) -> None:
        """Listen at `address:port` or `unix:/path` and nowhere else; None closes. Raises `QconvdError`."""
        if (where or "") == self._asked:
            return
        self.close()
        if not where:
            return
        listening = sockets.bound(where)
        self._asked, self._listening, self._address = where, listening, sockets.shown(listening)
        self._site.listens_at(self._address)
        self._serves = _Serves(self._site, self._posts, listening)
        log.info("listens on %s", _as_url(self.address), extra={"action": "web.listening", "address": self.address})
        if not self._site.only_here and self._site.token_error():
            log.warning("other machines reach %s, and no token is set: only webhooks are heard there; %s", self.address,
                        self._site.token_error(), extra={"action": "web.no_token"})  # fmt: skip

    def turned(self, trouble: str = "", *, stopping: bool = False) -> None:
        """The daemon's loop went round once more. `trouble` is what keeps it from working, if anything does."""
        self._site.turned(trouble, stopping=stopping)

    def close(self) -> None:
        """Stop listening."""
        if self._serves is not None and self._listening is not None:
            self._serves.stop()
            sockets.released(self._listening, self._address)
        self._asked, self._address = "", ""
        self._listening, self._serves = None, None


class _Serves:
    """The thread of one listening socket."""

    def __init__(self, site: Site, posts: Mapping[str, Post], listening: socket.socket) -> None:
        self._site, self._posts, self._listening = site, posts, listening
        self._lock = threading.Lock()
        self._stopped = False
        self._serving: Serving | None = None
        self._thread = threading.Thread(target=self._run, name="web", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Let the thread end, and wait for that."""
        with self._lock:
            self._stopped, serving = True, self._serving
        if serving is not None:
            serving.stop()
        self._thread.join(END_SECONDS)

    def _run(self) -> None:
        # starlette and uvicorn take a quarter of a second, for which the daemon's thread does not wait: who connects meanwhile
        # is in the socket's queue. A daemon without a page does without them.
        try:
            from qconvd.web.serving import Serving

            serving = Serving(self._site, self._posts)
        except Exception:
            log.exception("the HTTP server cannot be started", extra={"action": "web.ended"})
            return
        with self._lock:
            if self._stopped:
                return
            self._serving = serving
        serving.run(self._listening)


def _as_url(address: str) -> str:
    return address if address.startswith(UNIX) else f"http://{address}"
