"""The ASGI application: the guard, the daemon's webhooks, and the routes behind them."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Mapping
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Router
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from qconvd.errors import QconvdError
from qconvd.ledger import Ledger
from qconvd.web import guard
from qconvd.web.guard import Turned
from qconvd.web.server import BODY_LIMIT, Post
from qconvd.web.site import Site
from qconvd.wire import NOTHING

log = logging.getLogger(__name__)


class Application:
    """Everything behind the port. The ledger is opened with the first request that asks for more than a webhook."""

    def __init__(self, site: Site, posts: Mapping[str, Post]) -> None:
        self._site = site
        self._posts = posts
        self._routes: Routes | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "http"
        request, begun = Request(scope, receive), False

        async def sent(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        answering = _with_headers(sent)
        try:
            await (await self._answer(request))(scope, receive, answering)
        except Turned as turned:
            log.debug("refused: %s", turned.message, extra={"action": "web.refused", "status": turned.status})
            await _turned(turned)(scope, receive, answering)
        except (ClientDisconnect, asyncio.CancelledError):
            return  # nobody is there any more, or the port is closed
        except Exception:
            log.exception("%s %s failed", request.method, request.url.path, extra={"action": "web.failed"})
            if not begun:
                failed = failure(500, "something is wrong with qconvd itself; its log says more")
                await failed(scope, receive, answering)

    def end(self) -> None:
        """Let streams end, and who waits for the daemon. Called in the loop."""
        if self._routes is not None:
            self._routes.end()

    def close(self) -> None:
        """Give back what was opened. Called when the loop has ended."""
        if self._routes is not None:
            self._routes.close()

    async def _answer(self, request: Request) -> ASGIApp:
        if (post := self._posts.get(request.url.path)) is not None:
            return await self._heard(request, post)
        if self._site.config is None:
            raise Turned(404, NOTHING)
        guard.admit(self._site, request)
        if request.method not in ("GET", "HEAD"):
            request.scope["qconvd.body"] = await whole_body(request)
        if self._routes is None:
            self._routes = Routes(self._site)
        return self._routes.router

    async def _heard(self, request: Request, post: Post) -> Response:
        """What answers for itself: it has a secret of its own, and comes from anywhere."""
        if request.method != "POST":
            raise Turned(405, "only POST")
        headers = {k.decode("latin-1").lower(): v.decode("latin-1") for k, v in request.headers.raw}
        status, sentence = post(await whole_body(request), headers)
        return failure(status, sentence)


class Routes:
    """The routes of one site, and what they share."""

    def __init__(self, site: Site) -> None:
        from qconvd.web.asking import Asker
        from qconvd.web.endpoints import api_routes
        from qconvd.web.health import health_routes
        from qconvd.web.html import html_routes
        from qconvd.web.metrics import Metrics
        from qconvd.web.pages import Pages
        from qconvd.web.reading import Reader
        from qconvd.web.streams import Streams
        from qconvd.web.watcher import Watcher

        self._ledger = Ledger(site.state / "ledger.sqlite", only_read=True)
        reader = Reader(site, self._ledger)
        self._asker = asker = Asker(site, self._ledger)
        pages, self._streams = Pages(site, reader), Streams()
        watcher = Watcher(site, self._ledger, pages, self._streams)
        self._streams.watching = watcher
        self.router = _Answering(Router(
            [
                *api_routes(reader, asker), *html_routes(site, pages, asker, self._streams, watcher),
                *health_routes(site, Metrics(site, reader, self._streams)),
            ],
            redirect_slashes=False,
        ))  # fmt: skip

    def end(self) -> None:
        """Let streams end, and who waits for the daemon."""
        self._asker.end()
        self._streams.end()

    def close(self) -> None:
        """Give back what was opened."""
        self._ledger.close()


class _Answering:
    """A router whose refusals are ours."""

    def __init__(self, router: Router) -> None:
        self._router = router

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            # Without an `app` in the scope, starlette raises what would otherwise be its own answers.
            await self._router({**scope, "app": None}, receive, send)
        except HTTPException as error:
            words = {404: NOTHING, 405: "this path does not take that method"}
            answer = failure(error.status_code, words.get(error.status_code, error.detail))
            answer.headers.update(error.headers or {})
            await answer(scope, receive, send)


async def whole_body(request: Request) -> bytes:
    """The body. Raises `Turned` for one without a length, or one that is too long."""
    length = request.headers.get("content-length", "")
    if not length.isdecimal():
        raise Turned(411, "a request has to say its length")
    if int(length) > BODY_LIMIT:
        raise Turned(413, "that is too long")
    body = bytearray()
    async for piece in request.stream():
        body += piece
    return bytes(body)


def failure(status: int, message: str, where: str = "", fix: str = "") -> JSONResponse:
    """An answer in words."""
    said = {"status": status, "message": message, "where": where, "fix": fix}
    return _Json({k: v for k, v in said.items() if v or k in ("status", "message")}, status)


def refused(error: QconvdError, status: int) -> JSONResponse:
    """A `QconvdError` as an answer."""
    return failure(status, error.what, error.where, error.fix)


class _Json(JSONResponse):
    def render(self, content: Any) -> bytes:
        return json.dumps(content, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"


def _turned(turned: Turned) -> Response:
    if turned.page:
        return RedirectResponse(turned.page, 303)
    answer = failure(turned.status, turned.message, fix=turned.fix)
    if turned.status == 401:
        answer.headers["www-authenticate"] = 'Bearer realm="qconvd"'
    if turned.status in (411, 413):
        answer.headers["connection"] = "close"  # what is left of the body is not read
    return answer


def _with_headers(send: Send) -> Send:
    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers.raw.extend(guard.HEADERS)
            headers.setdefault("cache-control", "no-store")
        await send(message)

    return sent
