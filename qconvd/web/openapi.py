"""The API's OpenAPI document, made from the table that serves it."""

from __future__ import annotations

import re
from typing import Any

from pydantic.json_schema import models_json_schema

from qconvd import __version__
from qconvd.web.answers import Failure
from qconvd.web.api import ENDPOINTS, Endpoint
from qconvd.wire import PREFIX

_ABOUT = """\
What the status page shows and does, for programs. Times are seconds since 1970 (UTC), sizes are bytes.
A POST needs `Content-Type: application/json`, if only with `{}`. What changes something is a request to the daemon, which
answers within a second; `/api/v1/events` is a stream of server-sent events."""
_COMMON = {
    401: "A token is set and was not brought.", 403: "Another site, or another machine without a token.",
    421: "The `Host` is not this daemon's.", 422: "The request does not fit its description.",
    503: "The daemon cannot answer now.",
}  # fmt: skip
_OF_BODIES = {
    400: "The body is no JSON.", 411: "The body has no length.", 413: "The body is too long.", 415: "The body is no JSON."
}  # fmt: skip


def document() -> dict[str, Any]:
    """The whole document as JSON data (OpenAPI 3.1)."""
    asked = [m for e in ENDPOINTS for m in (e.body,) if m]
    answered = [Failure, *(e.answer for e in ENDPOINTS)]
    models: list[Any] = [(m, "validation") for m in dict.fromkeys(asked)]
    models += [(m, "serialization") for m in dict.fromkeys(answered)]
    refs, schemas = models_json_schema(models, ref_template="#/components/schemas/{model}")
    by_model: dict[Any, Any] = {model: ref for (model, _), ref in refs.items()}
    paths: dict[str, Any] = {}
    for endpoint in ENDPOINTS:
        operation = _operation(endpoint, by_model)
        paths.setdefault(f"{PREFIX}{endpoint.path}", {})[endpoint.method.lower()] = operation
    paths[f"{PREFIX}/events"] = {"get": _events()}
    return {
        "openapi": "3.1.0",
        "info": {"title": "qconvd", "version": __version__, "description": _ABOUT},
        "paths": paths,
        "components": {
            "schemas": schemas["$defs"],
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer", "description": "If `web.token_file` is set."}},
        },
        "security": [{}, {"token": []}],
    }


def _operation(endpoint: Endpoint, refs: dict[Any, Any]) -> dict[str, Any]:
    told = {**_COMMON, **(_OF_BODIES if endpoint.body else {}), **endpoint.refusals}
    responses: dict[str, Any] = {"200": _response("What was asked for.", refs[endpoint.answer])}
    for status, about in sorted(told.items()):
        responses[str(status)] = _response(about, refs[endpoint.answer if status in (202, 409) else Failure])
    operation: dict[str, Any] = {"operationId": endpoint.name, "summary": endpoint.summary, "responses": responses}
    parameters = [p for place in ("path", "query") for p in _parameters(endpoint, place)]
    if parameters:
        operation["parameters"] = parameters
    if endpoint.body:
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": refs[endpoint.body]}}}
    return operation


def _response(about: str, schema: Any) -> dict[str, Any]:
    return {"description": about, "content": {"application/json": {"schema": schema}}}


def _parameters(endpoint: Endpoint, place: str) -> list[dict[str, Any]]:
    model = endpoint.params if place == "path" else endpoint.query
    if model is None:
        return []
    schema = model.model_json_schema()
    found = []
    for name, about in schema["properties"].items():
        described = about.pop("description", "")
        needed = place == "path" or name in schema.get("required", ())
        found.append(
            {"name": name, "in": place, "required": needed, "schema": _without_null(about),
             **({"description": described} if described else {})}
        )  # fmt: skip
    assert place != "path" or {p["name"] for p in found} == set(re.findall(r"{(\w+)}", endpoint.path))
    return found


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """A parameter is left out, it is never null."""
    kinds = [kind for kind in schema.get("anyOf", ()) if kind != {"type": "null"}]
    rest = {k: v for k, v in schema.items() if k not in ("anyOf", "default", "title")}
    default = {"default": schema["default"]} if schema.get("default") is not None else {}
    return {**rest, **(kinds[0] if len(kinds) == 1 else {"anyOf": kinds} if kinds else {}), **default}


def _events() -> dict[str, Any]:
    stream = {"description": "A stream without an end.", "content": {"text/event-stream": {"schema": {"type": "string"}}}}
    return {
        "operationId": "events",
        "summary": "What happens, as it happens",
        "description": "`history`: a row of the ledger's history as in `/history`. `progress`: how far each running target is,"
        " by its id. A reader that does not keep up is cut off; it comes again with `Last-Event-ID`, as browsers do.",
        "responses": {"200": stream, **{str(s): {"description": t} for s, t in sorted(_COMMON.items()) if s != 422}},
    }
