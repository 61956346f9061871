"""The routes of the pages: what a browser asks for, forms that work without scripts, and the streams behind both."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import resources
from urllib.parse import parse_qs

from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from qconvd.errors import QconvdError
from qconvd.web import answers
from qconvd.web.app import _Json, refused
from qconvd.web.asking import Asker, locator_of
from qconvd.web.endpoints import STATUSES
from qconvd.web.guard import COOKIE, COOKIE_SECONDS, Turned, cookie_for, is_token
from qconvd.web.pages import JOB, OVERVIEW, Pages
from qconvd.web.questions import LARGEST
from qconvd.web.site import Site
from qconvd.web.streams import READERS, Frame, Streams
from qconvd.web.watcher import API, Watcher
from qconvd.wire import NOTHING, PREFIX

ACTIONS = ("retry", "cancel", "reconvert", "publish", "priority")
"""What a job's buttons ask; another request of the daemon's is another word here and a button in the template."""
STATIC = {"qconvd.css": "text/css", "qconvd.js": "text/javascript", "icon.svg": "image/svg+xml"}
WRONG_TOKEN_SECONDS = 0.5
"""How long somebody waits who tries tokens."""
LONGEST_TEXT = 4096


@dataclass(frozen=True)
class Html:
    """What the pages' handlers share."""

    site: Site
    pages: Pages
    asker: Asker
    streams: Streams
    watcher: Watcher

    async def overview(self, _: Request) -> Response:
        return HTMLResponse(await asyncio.to_thread(self.pages.overview))

    async def job(self, request: Request) -> Response:
        id = _number(request.path_params["job"])
        try:
            return HTMLResponse(await asyncio.to_thread(self.pages.job, id))
        except QconvdError as error:
            text = await asyncio.to_thread(self.pages.said, "There is no such job", str(error), "/", ok=False)
            return HTMLResponse(text, 404)

    async def plan(self, request: Request) -> Response:
        model, recipe = (_text(request.query_params.get(name, "")) for name in ("model", "recipe"))
        if not model:
            return RedirectResponse("/", 303)

        def planned() -> tuple[str, int]:
            try:
                found: answers.Plan | QconvdError = self.asker.plan(model, recipe or None)
            except QconvdError as error:
                found = error
            return self.pages.plan(found, model, recipe), 200 if isinstance(found, answers.Plan) else 400

        text, status = await asyncio.to_thread(planned)
        return HTMLResponse(text, status)

    async def act(self, request: Request) -> Response:
        """A button of a job."""
        action, id = request.path_params["action"], _number(request.path_params["job"])
        if action not in ACTIONS:
            raise Turned(404, NOTHING)
        form = self._form(request)
        try:
            if action == "priority":
                await asyncio.to_thread(self.asker.targets_of, id, None)
                asked = self.asker.ask(action, job=str(id), priority=_priority(form.get("priority", "")))
                return await self._told(request, await asked, f"/jobs/{id}")
            ids = await asyncio.to_thread(self.asker.targets_of, id, request.query_params.getlist("target") or None)
        except QconvdError as error:
            return await self._told(request, error, f"/jobs/{id}")
        return await self._told(request, await self.asker.ask(action, ids=ids), f"/jobs/{id}")

    async def pause(self, request: Request) -> Response:
        self._form(request)
        return await self._told(request, await self.asker.ask("pause", reason=""), "/")

    async def resume(self, request: Request) -> Response:
        self._form(request)
        return await self._told(request, await self.asker.ask("resume"), "/")

    async def add(self, request: Request) -> Response:
        """The button under a plan: the model is queued, and its job shown."""
        form = self._form(request)
        try:
            locator, recipe = locator_of(_text(form.get("model", ""))), self.asker.recipe(form.get("recipe") or None)
            said: answers.Said | QconvdError = await self.asker.ask("add", path=locator, recipe=recipe)
        except QconvdError as error:
            said = error
        if isinstance(said, answers.Said) and said.state == "done" and said.answer.startswith("job "):
            return RedirectResponse(f"/jobs/{said.answer[4:].partition(':')[0]}", 303)
        return await self._told(request, said, "/")

    async def sign_in(self, request: Request) -> Response:
        token = self.site.token()
        if token is None:
            return RedirectResponse("/", 303)
        if request.method != "POST":
            return HTMLResponse(self.pages.sign_in())
        if not is_token(token, self._form(request).get("token", "").strip()):
            await asyncio.sleep(WRONG_TOKEN_SECONDS)
            return HTMLResponse(self.pages.sign_in(wrong=True), 403)
        answer = RedirectResponse("/", 303)
        # The proxy before us may lie about this; then the browser keeps the cookie for itself, and nobody is let in by it.
        secure = request.headers.get("x-forwarded-proto") == "https"
        answer.set_cookie(
            COOKIE, cookie_for(token), max_age=COOKIE_SECONDS, path="/", secure=secure, httponly=True, samesite="strict"
        )
        return answer

    def _form(self, request: Request) -> dict[str, str]:
        """The fields of a form of ours. Raises `Turned` for anything else."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/x-www-form-urlencoded":
            raise Turned(415, "this is no form")
        try:
            fields = parse_qs(request.scope["qconvd.body"].decode(), keep_blank_values=True, max_num_fields=20)
        except ValueError:
            raise Turned(400, "this is no form") from None
        form = {name: values[-1] for name, values in fields.items()}
        if not hmac.compare_digest(form.get("form", "").encode(), self.site.form_secret.encode()):
            raise Turned(403, "this form is not from a page of this daemon, or it was started again", "load the page again")
        return form

    async def _told(self, request: Request, said: answers.Said | QconvdError, back: str) -> Response:
        """An answer: data for a script, a page for a person."""
        status = STATUSES[said.state] if isinstance(said, answers.Said) else 400
        if "application/json" in request.headers.get("accept", ""):
            if isinstance(said, QconvdError):
                return refused(said, status)
            return _Json(said.model_dump(mode="json"), status)
        if isinstance(said, answers.Said):
            text = said.answer or "It is written down; the daemon has not answered yet."
            title = {"done": "Done", "refused": "Refused", "open": "Not yet"}[said.state]
        else:
            title, text = "Refused", str(said)
        page = await asyncio.to_thread(self.pages.said, title, text, back, ok=status < 400)
        return HTMLResponse(page, status)


class Stream:
    """A stream of one page or of the API, as an ASGI application."""

    def __init__(self, streams: Streams, chosen: Callable[[Request], tuple[str, Callable[[], list[Frame]]]]) -> None:
        self._streams = streams
        self._chosen = chosen

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        channel, greeting = self._chosen(Request(scope))
        if self._streams.readers >= READERS:
            raise Turned(503, f"{READERS} readers are served already")
        await self._streams.serve(channel, greeting, scope, receive, send)


def html_routes(site: Site, pages: Pages, asker: Asker, streams: Streams, watcher: Watcher) -> Iterator[Route]:
    """Every route that is no part of the API, and the API's own stream."""
    html = Html(site, pages, asker, streams, watcher)
    yield Route("/", html.overview)
    yield Route("/jobs/{job}", html.job)
    yield Route("/plan", html.plan)
    yield Route("/pause", html.pause, methods=["POST"])
    yield Route("/resume", html.resume, methods=["POST"])
    yield Route("/models", html.add, methods=["POST"])
    yield Route("/jobs/{job}/{action}", html.act, methods=["POST"])
    yield Route("/sign-in", html.sign_in, methods=["GET", "POST"])
    yield Route("/static/{name}", _Files())
    yield Route("/events", Stream(streams, lambda request: _of_page(request, watcher)))
    yield Route(f"{PREFIX}/events", Stream(streams, lambda request: _of_api(request, watcher)), name="events")


def _of_page(request: Request, watcher: Watcher) -> tuple[str, Callable[[], list[Frame]]]:
    job = request.query_params.get("job")
    channel = OVERVIEW if job is None else f"{JOB}{_number(job)}"
    return channel, lambda: watcher.greeting(channel)


def _of_api(request: Request, watcher: Watcher) -> tuple[str, Callable[[], list[Frame]]]:
    last = request.headers.get("last-event-id", "")
    since = int(last) if last.isdecimal() and len(last) < 16 else None
    return API, lambda: watcher.missed(since)


class _Files:
    """Our own files, read once: a name that is none of theirs leads nowhere."""

    def __init__(self) -> None:
        folder = resources.files("qconvd.web") / "static"
        self._files = {name: (folder / name).read_bytes() for name in STATIC}
        self._tags = {name: f'"{hashlib.sha256(data).hexdigest()[:16]}"' for name, data in self._files.items()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope)
        name = request.path_params["name"]
        if name not in self._files:
            raise Turned(404, NOTHING)
        headers = {"cache-control": "no-cache", "etag": self._tags[name]}
        if request.headers.get("if-none-match") == self._tags[name]:
            await Response(status_code=304, headers=headers)(scope, receive, send)
            return
        await Response(self._files[name], media_type=STATIC[name], headers=headers)(scope, receive, send)


def _number(text: str) -> int:
    if not text.isdecimal() or not text.isascii() or len(text) > 15 or int(text) > LARGEST:
        raise Turned(404, NOTHING)
    return int(text)


def _priority(text: str) -> int:
    try:
        return int(text[:12])
    except ValueError:
        raise QconvdError("a priority is a whole number", fix="0 is that of all jobs") from None


def _text(text: str) -> str:
    """What somebody typed. Raises `Turned` for what cannot be meant."""
    if len(text) > LONGEST_TEXT or not text.isprintable():
        raise Turned(422, "that is no name of a model")
    return text.strip()
