"""News by HTTP: one POST, without redirects, within a time that no server can lengthen."""

from __future__ import annotations

import http.client
import os
import re
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from email.utils import parsedate_to_datetime
from html import unescape
from pathlib import Path
from urllib.parse import unquote, unquote_plus, urlsplit

from qconvd import __version__
from qconvd.config.notify import WebhookNotifier, check_url
from qconvd.notifications.attempt import BreakOff, NotSent
from qconvd.notifications.bodies import body
from qconvd.notifications.deadline import Connections, Deadline
from qconvd.notifications.news import News, cut, one_line

TRIED_AGAIN = {408, 425, 429}
"""Answers of the 4xx that may be others later (RFC 9110, RFC 8470, RFC 6585)."""
LONGEST_WAIT = 86400.0
"""Seconds that a server's Retry-After may ask for."""
SHORTEST_SECRET = 5
"""Characters; a shorter piece of an address may be a word like any other."""
SHORTEST_BEGINNING = 8
"""Characters of a secret that an answer may end with by chance, less one."""
LIMIT = 4096
"""Bytes of a file with an address or a token, and of an answer that are read."""
KEEP = "put the whole address into it, in one line and nothing else, readable for the user that runs qconvd (chmod 600)"


def send(notifier: WebhookNotifier, news: News, stop: BreakOff) -> str:
    """POST it; returns what the server answered. Raises `NotSent`, whose words hold neither the address nor a token."""
    request, secrets = prepared(notifier, news)
    try:
        return _post(request, notifier.timeout, stop, secrets)
    except NotSent as error:
        raise NotSent(cut(_without(error.what, secrets)), fix=_without(error.fix, secrets), again=error.again,
                      after=error.after) from None  # fmt: skip


def prepared(notifier: WebhookNotifier, news: News) -> tuple[urllib.request.Request, Sequence[str]]:
    """What is to be sent, and what of it nobody is to see. Raises `NotSent` for a file or a template that cannot be used."""
    url = address(notifier)
    token = "" if notifier.token_file is None else _read(notifier.token_file, "a token", "put the token into it, in one line")
    secrets = _secrets(url, token)
    made = body(notifier, news)
    headers = {"User-Agent": f"qconvd/{__version__}", "Accept": "*/*", **made.headers}
    if token:
        headers["Authorization"] = f"Bearer {token}"
    return urllib.request.Request(url, made.data, headers, method="POST"), secrets


def address(notifier: WebhookNotifier) -> str:
    """The address, from where it is kept. Raises `NotSent`."""
    if notifier.url is not None:
        return notifier.url.get_secret_value()
    if notifier.url_file is not None:
        place, fix = notifier.url_file, KEEP
    else:
        folder = os.environ.get("CREDENTIALS_DIRECTORY")
        if not folder:
            raise NotSent(
                f"there is no credential {notifier.credential}: systemd gives them to the service only",
                fix=f"`LoadCredential={notifier.credential}:/etc/qconvd/…` in a drop-in; from a terminal it cannot be read",
            )
        place, fix = Path(folder, str(notifier.credential)), KEEP
    text = _read(place, "an address", fix)
    try:
        return check_url(text)
    except ValueError as error:
        raise NotSent(f"does not hold an address: {error}", where=str(place), fix=fix) from None


def _post(request: urllib.request.Request, timeout: float, stop: BreakOff, secrets: Sequence[str]) -> str:
    deadline = Deadline(timeout, stop)
    opener = urllib.request.OpenerDirector()
    for handler in (urllib.request.ProxyHandler(), Connections(deadline)):
        opener.add_handler(handler)
    host = urlsplit(request.full_url).hostname
    try:
        with opener.open(request, timeout=timeout) as answer:
            status, headers = answer.status, answer.headers
            said = b"" if 200 <= status < 300 else answer.read1(LIMIT)
    except (OSError, http.client.HTTPException, ValueError) as error:
        if deadline.over or isinstance(error, TimeoutError) or isinstance(getattr(error, "reason", None), TimeoutError):
            what = f"{host} did not answer within {timeout:g} s"
        else:
            what = f"{host} cannot be reached: {_reason(error)}"
        raise NotSent(what, again=True, fix="look whether the address is right and the server runs") from None
    finally:
        deadline.close()
    if 200 <= status < 300:
        return f"answered {status}"
    words = one_line(said.decode("utf-8", "replace"))
    # What a server answers may hold what it was asked: then nothing of it is shown, also if the end of it was cut off.
    words = "" if _holds(words, secrets) else words[:200]
    what = f"{host} answers {status} {http.client.responses.get(status, '')}".rstrip() + (f": {words}" if words else "")
    if status < 200:
        raise NotSent(what, again=True, fix="its server breaks off its answers; look at its log")
    if status < 400:
        raise NotSent(f"{host} sends to another address ({status})", fix="write the address that it is at now")
    again = status >= 500 or status in TRIED_AGAIN
    fix = "it is tried again" if again else "look whether the address and `as:` are right, and whether it still exists"
    raise NotSent(what, fix=fix, again=again, after=retry_after(headers.get("Retry-After")) if again else None)


def retry_after(value: str | None, now: Callable[[], float] = time.time) -> float | None:
    """Seconds of a Retry-After header, a number or a date (RFC 9110, 10.2.3); None if there is none that can be read."""
    try:
        seconds = float(value or "")  # Discord's has decimals
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value or "").timestamp() - now()
        except (ValueError, TypeError, OverflowError):
            return None
    return min(max(seconds, 0.0), LONGEST_WAIT) if seconds == seconds else None


def _reason(error: Exception) -> str:
    reason = getattr(error, "reason", error)
    if isinstance(reason, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {one_line(reason.verify_message)}"
    words = getattr(reason, "strerror", None) or str(reason) or type(reason).__name__
    return one_line(str(words))


def _read(place: Path, what: str, fix: str) -> str:
    try:
        with place.open("rb") as file:
            text = file.read(LIMIT + 1).decode("ascii").strip()
    except OSError as error:
        raise NotSent(f"cannot be read: {os.strerror(error.errno or 0)}", where=str(place), fix=fix) from error
    except UnicodeDecodeError:
        text = ""
    if not text or len(text) > LIMIT or not text.isprintable():
        raise NotSent(f"does not hold {what}", where=str(place), fix=fix)
    return text


def _secrets(url: str, token: str) -> list[str]:
    """What of an address nobody is to see, the longest first, as it is written and as servers decode it."""
    parts = urlsplit(url)
    pieces = {url, parts.path, parts.query, token, *re.split(r"[/?&=]", f"{parts.path}?{parts.query}")}
    spelled = pieces | {unquote(piece) for piece in pieces} | {unquote_plus(piece) for piece in pieces}
    return sorted((p for p in spelled if len(p) > SHORTEST_SECRET), key=len, reverse=True)


def _holds(text: str, secrets: Sequence[str]) -> bool:
    """Whether a secret is in a text, or begins at its end."""
    texts = (text, unescape(text), text.replace("\\/", "/"))
    return any(
        secret in told or any(told.endswith(secret[:length]) for length in range(SHORTEST_BEGINNING, len(secret)))
        for told in texts
        for secret in secrets
    )


def _without(text: str, secrets: Sequence[str]) -> str:
    """What an error says of itself may hold what was asked."""
    for secret in secrets:
        text = text.replace(secret, "(secret)")
    return text
