"""The API's table as routes: requests held against their models, handlers called, answers written."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from qconvd.errors import QconvdError
from qconvd.explain import explain
from qconvd.located_yaml import dotted
from qconvd.web import openapi
from qconvd.web.answers import Said
from qconvd.web.api import ENDPOINTS, Call, Endpoint, Missing
from qconvd.web.app import _Json, refused
from qconvd.web.asking import Asker
from qconvd.web.guard import Turned
from qconvd.web.questions import Nothing
from qconvd.web.reading import Reader
from qconvd.wire import PREFIX

STATUSES = {"open": 202, "done": 200, "refused": 409}


def api_routes(reader: Reader, asker: Asker) -> Iterator[Route]:
    """A route for every endpoint, and for the document that describes them."""
    for endpoint in ENDPOINTS:
        yield Route(f"{PREFIX}{endpoint.path}", _serves(endpoint, reader, asker), methods=[endpoint.method], name=endpoint.name)
    described = json.dumps(openapi.document(), ensure_ascii=False, indent=1).encode()

    async def document(_: Request) -> Response:
        return Response(described, media_type="application/json")

    yield Route(f"{PREFIX}/openapi.json", document, name="openapi")


def _serves(endpoint: Endpoint, reader: Reader, asker: Asker) -> Any:
    async def serve(request: Request) -> Response:
        call = Call(
            reader, asker,
            path=_fitting(endpoint.params, "path", request.path_params),
            query=_fitting(endpoint.query or Nothing, "query", _query(request)),
            body=_fitting(endpoint.body, "body", _body(request)) if endpoint.body else None,
        )  # fmt: skip
        try:
            if inspect.iscoroutinefunction(endpoint.handle):
                answer = await endpoint.handle(call)
            else:
                answer = await run_in_threadpool(endpoint.handle, call)
        except Missing as error:
            return refused(error, 404)
        except QconvdError as error:
            return refused(error, 400)
        assert isinstance(answer, BaseModel)
        status = STATUSES[answer.state] if isinstance(answer, Said) and endpoint.method == "POST" else 200
        return _Json(answer.model_dump(mode="json", by_alias=True), status)

    return serve


def _query(request: Request) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        if name in found:
            raise Turned(422, f"query: {name} is given twice")
        found[name] = value
    return found


def _body(request: Request) -> Any:
    """The JSON of a body. That it has to be called JSON keeps other sites' forms out, whatever a browser sends with them."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise Turned(415, "the body has to be JSON", "send `Content-Type: application/json`")
    try:
        return json.loads(request.scope["qconvd.body"], parse_constant=_no_number)
    except (ValueError, RecursionError):
        raise Turned(400, "the body is not valid JSON") from None


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _fitting(model: type[BaseModel] | None, part: str, said: Any) -> BaseModel | None:
    """What was said, as its model. Raises `Turned` with every mistake."""
    if model is None:
        return None
    try:
        return model.model_validate(said)
    except ValidationError as error:
        told = [f"{dotted((part, *loc))}: {sentence}" for loc, sentence, _ in explain(error, model)]
        raise Turned(422, "; ".join(told)) from None
