"""The Hub's webhooks: `POST /webhooks/hub` with `X-Webhook-Secret` (https://huggingface.co/docs/hub/webhooks).

What a webhook says is a hint and no more: it brings the next question to the Hub forward. So who replays an old one, or sends
one a hundred times, causes a question that would have come anyway, and its content decides nothing.
"""

from __future__ import annotations

import hmac
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path

from qconvd.errors import QconvdError
from qconvd.hub.tokens import webhook_secret
from qconvd.web.server import Answer

log = logging.getLogger(__name__)
PATH = "/webhooks/hub"
HEADER = "x-webhook-secret"


class Webhook:
    """Hears what the Hub sends. `hint` takes a repository's name and says whether it is watched; other threads call it."""

    def __init__(self, hint: Callable[[str], bool], secret_file: Callable[[], Path | None]) -> None:
        self._hint = hint
        self._secret_file = secret_file

    def __call__(self, body: bytes, headers: Mapping[str, str]) -> Answer:
        try:
            secret = webhook_secret(self._secret_file())
        except QconvdError as error:
            log.error("webhooks are refused: %s", error, extra={"action": "webhook.no_secret"})
            return 503, "the secret cannot be read"
        if secret is None:
            return 503, "no secret is set for webhooks: hub.webhook_secret_file or $QCONVD_WEBHOOK_SECRET"
        # Headers come as Latin-1 (RFC 9110, 5.5): these are the bytes that were sent, in whatever encoding.
        if not hmac.compare_digest(headers.get(HEADER, "").encode("latin-1", "replace"), secret.value.encode()):
            log.warning("a webhook without the secret was refused", extra={"action": "webhook.refused"})
            return 401, "the secret is wrong"
        repo = repository(body)
        if repo is None:
            return 400, "this is no webhook of the Hub"
        watched = self._hint(repo)
        log.info("a webhook names %s%s", repo, "" if watched else ", which is not watched",
                 extra={"action": "webhook.heard", "source": f"hub:{repo}"})  # fmt: skip
        return 202, "the Hub is asked about it now" if watched else "nobody watches it"


def repository(body: bytes) -> str | None:
    """The model repository that a payload speaks of; None if it is no payload, or about something else."""
    try:
        said = json.loads(body)
        repo = said["repo"]
        name = repo["name"] if repo["type"] == "model" else None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return name if isinstance(name, str) and 0 < len(name) < 200 and name.isprintable() else None
