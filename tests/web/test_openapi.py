"""The API held against its own OpenAPI document by schemathesis, and the document against what serves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from qconvd.web import asking
from qconvd.web.api import ENDPOINTS
from qconvd.web.openapi import document
from qconvd.wire import PREFIX
from web_kit import Port

CHECKS = [
    not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance, unsupported_method,
]  # fmt: skip
LONGEST = 100
"""Characters that hypothesis draws for a text with a pattern. With the 4096 that may be said, collecting this takes 25 s."""


def shortened(schema: Any) -> Any:
    """The document with shorter texts, all of which it allows."""
    if isinstance(schema, dict):
        longest = {"maxLength": min(schema["maxLength"], LONGEST)} if isinstance(schema.get("maxLength"), int) else {}
        return {key: shortened(value) for key, value in schema.items()} | longest
    return [shortened(item) for item in schema] if isinstance(schema, list) else schema


schema = schemathesis.openapi.from_dict(shortened(document())).exclude(path=f"{PREFIX}/events")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Port]:
    """A port on a ledger with two jobs, whose daemon never answers."""
    port = Port(tmp_path_factory.mktemp("port"))
    for number in (1, 2):
        source = port.ledger.source_seen(f"/models/{number}", f"digest {number}", f"m{number}", "")
        port.ledger.want(source.id, "r", port.config.recipes["r"].targets)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(asking, "WAIT", 0.0)
        yield port
    port.close()


@schema.parametrize()
@settings(
    max_examples=12, deadline=None, derandomize=True, database=None, phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
def test_the_api_does_what_its_document_says(case: Any, served: Port) -> None:
    case.call_and_validate(base_url=f"http://{served.address}", checks=CHECKS)


def test_texts_may_be_as_long_as_the_document_says(served: Port) -> None:
    for length, refused in ((4096, False), (4097, True)):
        answer = served.get(f"{PREFIX}/plan?model={'a' * length}")
        assert ("4096" in answer.text) is refused, answer.text


def test_every_route_is_described_and_nothing_else(served: Port) -> None:
    told = {(method.upper(), path) for path, methods in served.get(f"{PREFIX}/openapi.json").json["paths"].items()
            for method in methods}  # fmt: skip
    assert told == {(e.method, f"{PREFIX}{e.path}") for e in ENDPOINTS} | {("GET", f"{PREFIX}/events")}
    assert len({e.name for e in ENDPOINTS}) == len(ENDPOINTS)


def test_the_reference_page_names_every_path_and_metric(served: Port) -> None:
    page = (Path(__file__).parents[2] / "docs" / "reference" / "http.md").read_text()
    for endpoint in ENDPOINTS:
        assert f"| `{endpoint.method}` | `{PREFIX}{endpoint.path}` |" in page
    named = {line.split()[2] for line in served.get("/metrics").text.splitlines() if line.startswith("# HELP")}
    assert named and all(f"`{name}`" in page for name in named)
