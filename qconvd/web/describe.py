"""docs/reference/http.md, made from the tables that serve."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from qconvd.config import load
from qconvd.ledger import Ledger
from qconvd.web.api import ENDPOINTS
from qconvd.web.metrics import Metrics
from qconvd.web.reading import Reader
from qconvd.web.site import Site
from qconvd.web.streams import Streams
from qconvd.wire import PREFIX

_INTRODUCTION = """\
The daemon listens at `web.listen` ([config.md](config.md)): 127.0.0.1:8484 unless it says otherwise, never with `run --once`.
How to reach it from elsewhere: [the status page](../how-to/status-page.md)."""
_PAGES = (
    ("/", "The status page; `/jobs/N` is a job's, `/plan?model=M&recipe=R` shows a plan with a button that queues it"),
    ("/healthz", "200 while the daemon's loop goes round, 503 if it has not for two minutes; needs no token"),
    ("/readyz", "200 while work is taken, 503 at the start, in trouble (a full disk) and while it stops; needs no token"),
    ("/metrics", "Prometheus' text format; with a token, `authorization: {credentials_file: …}` in the scrape config"),
    ("/webhooks/hub", "The Hub's webhooks; a secret of their own, see [how-to](../how-to/use-models-on-the-hub.md)"),
    (f"{PREFIX}/openapi.json", "The API as an OpenAPI 3.1 document"),
)
_API = """\
Times are seconds since 1970 (UTC), sizes are bytes. A POST needs `Content-Type: application/json`, if only with `{}`:

    curl --json '{"model": "HuggingFaceTB/SmolLM2-135M-Instruct"}' http://127.0.0.1:8484/api/v1/models
    curl --json '{}' http://127.0.0.1:8484/api/v1/jobs/1/cancel

A daemon with a token wants it from everybody, `/healthz` and `/readyz` apart. A socket with a path is served the same:

    curl -H "Authorization: Bearer $QCONVD_WEB_TOKEN" http://the-machine:8484/api/v1/status
    curl --unix-socket /run/qconvd/http.sock http://localhost/api/v1/status

What is asked of the daemon passes through the ledger, as with the command line, and is answered within a second: 200 with the
answer, 409 if it is refused, 202 with the request's number if the daemon has not answered within ten seconds or ends.

Lists come in pages: give `next` as `before`. Logs come in pieces: give `next` as `after`, at once if there is `more`, until it
is `over`. An error is `{"status", "message", "where", "fix"}`. The command line is a client of this API."""
_EVENTS = f"""\
`GET {PREFIX}/events` is a stream of server-sent events:

- `history`: a row of the ledger's history, as `{PREFIX}/history` has it; its `id` is the row's. Who comes again with
  `Last-Event-ID` is first told what was missed, at most 1,000 rows, and some of it perhaps twice.
- `progress`: an object of what runs, by the target's id: `done` and `total` bytes, `seconds`, `resumed`, `unit`, `doing`.

A comment comes every 20 seconds. A reader that does not read is cut off. 500 are served at a time."""
_METRICS = """\
Labels are states, stages, formats, devices (`cpu`, `cuda:0`) and folders (`output`, `state`): no path and no name of a model is
among them. Counters begin with the ledger, not with the daemon."""
_LIMITS = """\
A request has at most 1 MiB of body and has to be there within 10 seconds, headers and all; an answer has to be taken within 90;
600 connections at a time. Who asks for another `Host` than the daemon's own gets 421, another site's page 403, and whoever
lacks the token 401. Answers carry no CORS headers, so no page of another site can read them."""


def http_page() -> str:
    """The page's text."""
    rows = [f"| `{e.method}` | `{PREFIX}{e.path}` | {e.summary} |" for e in ENDPOINTS]
    return "\n".join([
        "# HTTP", "", _INTRODUCTION, "", "| path | |", "|---|---|", *(f"| `{path}` | {about} |" for path, about in _PAGES), "",
        "## API", "", _API, "", "| | path | |", "|---|---|---|", *rows, "", "## Events", "", _EVENTS, "",
        "## Metrics", "", _METRICS, "", "| metric | | |", "|---|---|---|", *_metrics(), "",
        "## Limits", "", _LIMITS, "",
    ])  # fmt: skip


def _metrics() -> Iterator[str]:
    """What a daemon that has done nothing yet tells."""
    with tempfile.TemporaryDirectory() as folder:
        site = Site()
        file = Path(folder) / "config.yaml"
        file.write_text("{output: ./models, state: ./state, recipes: {r: {targets: [fp16]}}, devices: {cuda: none}}")
        site.config = load(file)
        with closing(Ledger(site.state / "ledger.sqlite")) as ledger:
            text = Metrics(site, Reader(site, ledger), Streams()).text()
    about: dict[str, str] = {}
    for line in text.splitlines():
        if line.startswith("# HELP"):
            name, _, about[name] = line.removeprefix("# HELP ").partition(" ")
        elif line.startswith("# TYPE"):
            name, kind = line.split()[2:]
            yield f"| `{name}` | {kind} | {about[name]} |"
