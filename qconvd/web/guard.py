"""Who is served: what every request has to pass before anything of it is looked at.

- `Host` names this daemon, or is a bare address: no other site's name can be pointed here (DNS rebinding).
- `Origin` and `Sec-Fetch-Site`, which browsers send and scripts in them cannot change, say that no other site is behind it.
- The token, as `Authorization: Bearer` or as the cookie that signing in sets; where no token is set, only this machine.
- A body has an end.

There is no CORS: no other site may read an answer, whatever it sends.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import time
from http.cookies import CookieError, SimpleCookie
from urllib.parse import urlsplit

from starlette.requests import Request

from qconvd.errors import QconvdError
from qconvd.hub.tokens import Token
from qconvd.web.site import Site

OPEN = ("/healthz", "/readyz", "/sign-in")
"""Served without a token: what a supervisor asks, and where one signs in."""
STATIC = "/static/"
API = "/api/"
COOKIE = "qconvd"
COOKIE_SECONDS = 30 * 86400
HEADERS = (
    (b"content-security-policy",
     b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; form-action 'self';"
     b" base-uri 'none'; frame-ancestors 'none'"),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), geolocation=(), microphone=()"),
)  # fmt: skip
"""On every answer."""


class Turned(Exception):
    """A request that is not served, and why. `page`: where a person goes from here."""

    def __init__(self, status: int, message: str, fix: str = "", page: str = "") -> None:
        super().__init__(message)
        self.status, self.message, self.fix, self.page = status, message, fix, page


def admit(site: Site, request: Request) -> None:
    """Let a request pass. Raises `Turned` for one that is not served."""
    host = request.headers.get("host", "").lower()
    if len(request.headers.getlist("host")) != 1 or not _ours(site, host):
        raise Turned(421, "this daemon has another name", "add the name to `web.hosts` if it is one of its own")
    _same_site(request, host)
    path = request.url.path
    if path not in OPEN and not path.startswith(STATIC):
        _known(site, request)


def cookie_for(token: Token, now: float | None = None) -> str:
    """What a browser shows instead of the token: when it ends, signed. Another token makes it worthless."""
    end = str(int((time.time() if now is None else now) + COOKIE_SECONDS))
    return f"{end}.{_signed(token, end)}"


def is_token(token: Token, said: str) -> bool:
    """Whether somebody said the token. Takes equally long whatever was said."""
    return hmac.compare_digest(_digest(said), _digest(token.value))


def _ours(site: Site, host: str) -> bool:
    try:
        name = urlsplit(f"//{host}")
        hostname = name.hostname or ""
        _ = name.port
    except ValueError:
        return False
    if name.username is not None or name.path or not hostname:
        return False
    if hostname in site.hosts():
        return True
    try:
        # A bare address needs no look-up, so nobody can have answered one wrongly.
        ipaddress.ip_address(hostname)
    except ValueError:
        return False
    return True


def _same_site(request: Request, host: str) -> None:
    origin = request.headers.get("origin")
    if origin is not None:
        try:
            said = urlsplit(origin)
            ours = said.scheme in ("http", "https") and said.netloc.lower() == host
        except ValueError:
            ours = False
        if not ours:
            raise Turned(403, "another site may not ask this daemon", "")
    site = request.headers.get("sec-fetch-site", "none")
    # A link from elsewhere to a page of ours is followed; nothing else of another site's is.
    followed = (
        request.method in ("GET", "HEAD")
        and request.headers.get("sec-fetch-mode") == "navigate"
        and request.headers.get("sec-fetch-dest", "document") == "document"
        and not request.url.path.startswith(API)
    )
    if site not in ("none", "same-origin") and not followed:
        raise Turned(403, "another site may not ask this daemon", "")


def _known(site: Site, request: Request) -> None:
    """Whether a client may ask: it brings the token, or there is none and it is on this machine."""
    try:
        token = site.token()
    except QconvdError as error:
        # Why is told in the log and by `qconvd check`; where the file lies is nobody's business here.
        raise Turned(503, "the token of this daemon cannot be read", "its log says more") from error
    if token is None:
        if site.only_here:
            return
        raise Turned(403, "other machines are served only with a token", "name a file with one in `web.token_file`")
    scheme, _, said = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and is_token(token, said.strip()):
        return
    if _cookie_holds(token, request.headers.get("cookie", "")):
        return
    reading = request.method in ("GET", "HEAD") and "text/html" in request.headers.get("accept", "")
    raise Turned(401, "the token is missing or wrong", "send it as `Authorization: Bearer …`", "/sign-in" if reading else "")


def _cookie_holds(token: Token, header: str) -> bool:
    try:
        morsel = SimpleCookie(header).get(COOKIE)
    except CookieError:
        return False
    end, _, signature = (morsel.value if morsel else "").partition(".")
    if not hmac.compare_digest(signature.encode(), _signed(token, end).encode()):
        return False
    return end.isdecimal() and int(end) > time.time()


def _signed(token: Token, text: str) -> str:
    return hmac.new(_digest(token.value), f"qconvd page {text}".encode(), hashlib.sha256).hexdigest()


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()
