"""What supervisors ask: is it alive, does it take work, and how is it doing."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from qconvd.web.metrics import CONTENT_TYPE, Metrics
from qconvd.web.site import Site


def health_routes(site: Site, metrics: Metrics) -> Iterator[Route]:
    """`/healthz`, `/readyz` and `/metrics`."""

    async def healthz(_: Request) -> Response:
        return _verdict(site.unwell())

    async def readyz(_: Request) -> Response:
        return _verdict(site.unready())

    async def scraped(_: Request) -> Response:
        text = await asyncio.to_thread(metrics.text)
        return Response(text, media_type=CONTENT_TYPE)

    yield Route("/healthz", healthz)
    yield Route("/readyz", readyz)
    yield Route("/metrics", scraped)


def _verdict(trouble: str) -> Response:
    # Anybody may ask, so the words are ours: no path and no name is among them.
    said = "ok" if not trouble else trouble.partition(": ")[0]
    return PlainTextResponse(f"{said}\n", 503 if trouble else 200)
