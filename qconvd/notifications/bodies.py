"""What a webhook is sent: the body and headers that each service asks for.

- ntfy: the message as text, its title, priority and tags as headers; what is not ASCII in them by RFC 2047; 4,096 bytes
  (https://docs.ntfy.sh/publish/).
- Slack: `{"text": …}`, with `&`, `<` and `>` escaped (https://docs.slack.dev/messaging/sending-messages-using-incoming-webhooks,
  https://docs.slack.dev/messaging/formatting-message-text).
- Discord: `{"content": …}` of at most 2,000 characters, and whom it may call: nobody
  (https://docs.discord.com/developers/resources/webhook, "Execute Webhook").
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from email.header import Header
from pathlib import Path
from typing import Any

from qconvd.config.notify import WebhookNotifier
from qconvd.notifications.attempt import NotSent
from qconvd.notifications.news import News, cut, one_line

NTFY_BYTES, SLACK_CHARACTERS, DISCORD_CHARACTERS = 4096, 3000, 2000
JSON, TEXT = "application/json", "text/plain; charset=utf-8"
PRIORITIES = {"failed": "4", "paused": "4", "refused": "4"}
TAGS = {"done": "white_check_mark", "failed": "x", "cancelled": "no_entry_sign", "confirm": "question", "refused": "warning",
        "paused": "warning", "resumed": "arrow_forward"}  # fmt: skip
"""ntfy's names of emojis."""
_MARKDOWN = re.compile(r"([\\*_~|<>\[\]])")


@dataclass(frozen=True)
class Body:
    """What is POSTed."""

    data: bytes
    headers: dict[str, str]


def body(notifier: WebhookNotifier, news: News) -> Body:
    """The body for one webhook. Raises `NotSent` if its template cannot be used."""
    own = None if notifier.template is None else _rendered(notifier.template, news)
    match notifier.as_:
        case "ntfy":
            return Body(_bytes(news["text"] if own is None else own, NTFY_BYTES), _ntfy(news))
        case _ if own is not None:
            return Body(_checked(own, notifier.template), {"Content-Type": JSON})
        case "slack":
            return _json({"text": f"*{_slack(news['title'])}*\n{_slack(cut(news['text'], SLACK_CHARACTERS))}"})
        case "discord":
            text = f"**{_discord(news['title'])}**\n{_discord(news['text'])}"
            return _json({"content": cut(text, DISCORD_CHARACTERS), "allowed_mentions": {"parse": []}})
        case _:
            return _json(dict(news))


def _ntfy(news: News) -> dict[str, str]:
    title = one_line(news["title"])
    shown = title if title.isascii() else Header(title, "utf-8", maxlinelen=10**6).encode()
    tags = {"Tags": TAGS[news["event"]]} if news["event"] in TAGS else {}
    return {"Content-Type": TEXT, "Title": shown, "Priority": PRIORITIES.get(news["event"], "3"), **tags}


def _slack(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _discord(text: str) -> str:
    """Names with underscores stay as they are, and commands between backticks are commands."""
    return "`".join(part if odd % 2 else _MARKDOWN.sub(r"\\\1", part) for odd, part in enumerate(text.split("`")))


def _rendered(template: Path, news: News) -> str:
    from jinja2 import TemplateError
    from jinja2.sandbox import SandboxedEnvironment

    try:
        return SandboxedEnvironment().from_string(template.read_text(encoding="utf-8")).render(**news)
    except (TemplateError, OSError, ValueError, TypeError, ArithmeticError, LookupError, RecursionError) as error:
        line = f":{error.lineno}" if hasattr(error, "lineno") and error.lineno else ""
        known = "it sees event, title, text, job, model, recipe, seconds, artifacts, reason, fix, at and host"
        raise NotSent(f"the template cannot be used: {error}", where=f"{template}{line}", fix=known) from error


def _checked(text: str, template: Path | None) -> bytes:
    try:
        json.loads(text)
    except ValueError as error:
        raise NotSent(f"the template makes no JSON: {error}", where=str(template),
                      fix="write values as {{ title | tojson }}, which quotes them") from error  # fmt: skip
    return text.encode()


def _json(data: dict[str, Any]) -> Body:
    return Body(json.dumps(data, ensure_ascii=False).encode("utf-8", "replace"), {"Content-Type": JSON})


def _bytes(text: str, most: int) -> bytes:
    data = text.encode("utf-8", "replace")
    return data if len(data) <= most else data[: most - 3].decode("utf-8", "ignore").encode() + "…".encode()
