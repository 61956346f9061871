"""A running daemon, over its HTTP API: at an address, or a socket with a path."""

from __future__ import annotations

import http.client
import json
import re
import socket
import ssl
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from urllib.parse import urlencode, urlsplit

from qconvd.client.base import NOT_YET, Answer, Document
from qconvd.errors import QconvdError
from qconvd.wire import NOTHING, PREFIX, UNIX, WAIT

PATIENCE = WAIT + 20
"""Seconds to wait for an answer: the daemon waits for itself first."""
SHORT = 3.0
"""Seconds to wait for a daemon that could also be asked without HTTP."""
PAGE = 500
"""Jobs that are asked for at a time."""
TOKEN_VARIABLE = "QCONVD_WEB_TOKEN"
ABSENT = "is a daemon running there, with its HTTP port on?"
PORT = "Without a port, 80 is asked, and 443 with https; a daemon's own is 8484"
PLAIN = "a daemon itself speaks http://; https:// is for a proxy before it, with a certificate that this machine knows"
OTHER = "look at the address and the port, and at the version that runs there"
LARGEST = 1 << 28
"""Bytes of an answer; whoever sends more is no daemon of ours."""
LONGEST = 300.0
"""Seconds that an answer may take in all, from whoever sends a little now and then."""
_STATUS = ("version", "pid", "trouble", "pauses", "jobs", "running", "notifications", "refused", "seen")
_HOST = r"[0-9A-Za-z._-]+|[0-9A-Fa-f:.]+(%[0-9A-Za-z._-]+)?"
_LOG = ("lines", "next", "more", "over", "tasks", "targets")


class NotReached(QconvdError):
    """Nobody answers there."""


class NotServed(QconvdError):
    """It is not us whom the daemon serves: the token is missing or wrong, or its name is another."""


class NotFitting(QconvdError):
    """The API does not take it: an id or a text has not the shape that it has there."""


class Unanswered(QconvdError):
    """The connection broke after the request was sent: what became of it is not known."""


class OverHttp:
    """Asks the daemon at `url`: `http://host:port`, `https://…`, or `unix:/path`. `token` is what it wants to see."""

    def __init__(self, url: str, token: str = "") -> None:
        if token and not re.fullmatch(r"[!-~]+", token):
            # Nothing else can stand in a header.
            raise NotServed(
                "the token is none", where=url, fix="a token is one word of plain letters and digits: copy it again"
            )
        self.url = url
        self._token = token
        self._patience, self._longest = PATIENCE, LONGEST
        self._connection: http.client.HTTPConnection | None = None

    def close(self) -> None:
        """Let go of the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def hello(self, pid: int) -> None:
        """Raise `NotReached` or `NotServed` unless the daemon with this process id answers, and soon."""
        self._patience = self._longest = SHORT
        try:
            if self.status()["pid"] != pid:
                # Of a daemon in a container its state folder may be seen here, but at its address another one.
                raise NotReached("who answers there is another daemon", where=self.url, fix=OTHER)
        finally:
            self.close()
            self._patience, self._longest = PATIENCE, LONGEST

    def status(self) -> Document:
        return self._get("/status", _STATUS)

    def jobs(self) -> list[Document]:
        found: list[Document] = []
        before: int | None = None
        while True:
            page = self._get("/jobs", ("jobs", "next"), limit=PAGE, **({} if before is None else {"before": before}))
            found += page["jobs"]
            if page["next"] is None:
                return found[::-1]
            if page["next"] == before:
                raise self._other()
            before = page["next"]

    def job(self, number: str) -> Document:
        return self._get(f"/jobs/{_number(number)}", ("job", "targets", "publications", "history"))

    def log(self, of: str, after: str = "", *, events: bool = False) -> Document:
        piece = self._get("/log", _LOG, of=_id(of), after=after, events=str(events).lower())
        if piece["more"] and piece["next"] == after:
            raise self._other()
        return piece

    def ask(self, kind: str, ids: Sequence[str]) -> Answer:
        return self._post("/requests", kind=kind, of=[_id(id) for id in ids])

    def prioritize(self, job: str, priority: int) -> Answer:
        return self._post(f"/jobs/{_number(job)}/priority", priority=priority)

    def pause(self, reason: str) -> Answer:
        return self._post("/pause", reason=reason)

    def resume(self) -> Answer:
        return self._post("/resume")

    def reload(self) -> Answer:
        return self._post("/reload")

    def add(self, locator: str, recipe: str | None) -> Answer:
        return self._post("/models", model=locator, recipe=recipe)

    def _get(self, path: str, keys: Sequence[str], **query: object) -> Document:
        """A document that has these keys, as all from a daemon like us have."""
        return self._answered("GET", f"{path}?{urlencode(query)}" if query else path, None, keys)[1]

    def _post(self, path: str, **body: object) -> Answer:
        status, found = self._answered("POST", path, json.dumps(body).encode(), ("state", "answer"))
        state, said = str(found["state"]), str(found["answer"])
        if status == 202 or state == "open":
            return Answer("open", NOT_YET)
        return Answer(state, said)

    def _answered(self, method: str, path: str, body: bytes | None, keys: Sequence[str]) -> tuple[int, Document]:
        """What the daemon says to a request. Raises `NotReached`, `NotServed`, or what it says of a failure."""
        headers = {"Accept": "application/json", "Host": self._host}
        if body is not None:
            headers["Content-Type"] = "application/json"
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        status, raw = self._exchanged(method, f"{PREFIX}{path}", body, headers)
        try:
            found = json.loads(raw)
        except (ValueError, RecursionError):
            found = None
        if isinstance(found, dict) and all(key in found for key in keys):
            return status, found
        if not isinstance(found, dict) or "message" not in found:
            raise self._other()
        what, where, fix = (str(found.get(key, "")) for key in ("message", "where", "fix"))
        if status == 401:
            fix = f"what was sent is another: look at ${TOKEN_VARIABLE}" if self._token else f"put it into ${TOKEN_VARIABLE}"
        if (status, what) == (404, NOTHING):
            raise NotReached("the daemon there does not know what it is asked", where=self.url, fix=OTHER)
        if status in (401, 403, 421, 503):
            raise NotServed(what, where=where or self.url, fix=fix)
        if status == 422:
            raise NotFitting(what, where=where, fix=fix)
        raise QconvdError(what or f"answers {status}", where=where, fix=fix)

    def _exchanged(self, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> tuple[int, bytes]:
        # A daemon closes a connection that was silent for a while: what only looks is asked once more.
        for attempt in range(2):
            fresh, sent = self._connection is None, False
            try:
                if self._connection is None:
                    self._connection = self._connected()
                    self._connection.connect()
                sent = True
                self._connection.request(method, path, body, headers)
                with _no_longer_than(self._longest, self._connection.sock):
                    reply = self._connection.getresponse()
                    return reply.status, reply.read(LARGEST)
            except (OSError, UnicodeError, http.client.HTTPException) as error:
                self.close()
                if method == "GET" and not fresh and attempt == 0:
                    continue
                if method == "POST" and sent:
                    why = "does not answer" if isinstance(error, TimeoutError) else "breaks off before it answers"
                    fix = "`qconvd status` and `qconvd jobs` tell what became of it"
                    raise Unanswered(f"was asked, but {why}", where=self.url, fix=fix) from error
                raise NotReached(_why(error), where=self.url, fix=self._what_to_do(error)) from error
        raise AssertionError

    def _what_to_do(self, error: Exception) -> str:
        if isinstance(error, ssl.SSLError):
            return PLAIN
        no_port = not self.url.startswith(UNIX) and urlsplit(self.url).port is None
        return f"{ABSENT} {PORT}" if no_port else ABSENT

    def _other(self) -> NotReached:
        return NotReached("who answers there is no daemon of this qconvd", where=self.url, fix=OTHER)

    def _connected(self) -> http.client.HTTPConnection:
        if self.url.startswith(UNIX):
            return _UnixConnection(self.url.removeprefix(UNIX), self._patience)
        name = urlsplit(self.url)
        kind = http.client.HTTPSConnection if name.scheme == "https" else http.client.HTTPConnection
        return kind(name.hostname or "", name.port, timeout=self._patience)

    @property
    def _host(self) -> str:
        return "localhost" if self.url.startswith(UNIX) else urlsplit(self.url).netloc


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, patience: float) -> None:
        super().__init__("localhost", timeout=patience)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


@contextmanager
def _no_longer_than(seconds: float, connection: socket.socket) -> Iterator[None]:
    """Cut a connection off after a while, however busy it is: a socket's timeout begins anew with each byte.

    Raises `TimeoutError` then.
    """
    late = threading.Event()

    def cut() -> None:
        late.set()
        with suppress(OSError):
            socket.socket.shutdown(connection, socket.SHUT_RDWR)

    timer = threading.Timer(seconds, cut)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        if late.is_set():
            raise TimeoutError


def checked(url: str) -> str:
    """An address as people write it, as `OverHttp` takes it. Raises `QconvdError` for what is none."""
    if url.startswith(f"{UNIX}/"):
        return url
    text = url if "://" in url else f"http://{url}"
    try:
        name = urlsplit(text)
        # As it stands in a request: letters of other alphabets have a spelling of their own.
        host = (name.hostname or "").encode("idna").decode()
        whole = name.scheme in ("http", "https") and re.fullmatch(_HOST, host) is not None and name.port != 0
    except ValueError:
        whole = False
    fix = "write http://host:8484, https://host, or unix:/path/of/the.sock"
    if "@" in text:
        # What stands before it may be a secret.
        raise QconvdError("an address of a daemon holds no name and no password", fix=f"{fix}; a token: ${TOKEN_VARIABLE}")
    if not whole or name.path.strip("/") or name.query or name.fragment:
        raise QconvdError(f"{url!r} is no address of a daemon", fix=fix)
    host = f"[{host}]" if ":" in host else host
    return f"{name.scheme}://{host}{'' if name.port is None else f':{name.port}'}"


def _number(job: str) -> str:
    """A job's number as it stands in a path. Raises `QconvdError` for what is no number, as a ledger does."""
    if not re.fullmatch(r"0*[1-9][0-9]{0,14}", job):
        raise QconvdError(f"there is no job {job}", fix="`qconvd jobs` lists them")
    return job.lstrip("0")


def _id(text: str) -> str:
    """A job's number or a target's id. Raises `QconvdError` for what is neither, as a ledger does."""
    if not re.fullmatch(r"[0-9A-Za-z-]{1,64}", text):
        raise QconvdError(f"there is no target {text}")
    return text


def _why(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not accepted: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return f"does not speak TLS as it should: {error.reason or error}"
    if isinstance(error, TimeoutError):
        return "does not answer"
    if isinstance(error, socket.gaierror):
        return "its name is not known"
    if isinstance(error, OSError) and (reason := error.strerror or ("" if isinstance(error, ConnectionError) else str(error))):
        return f"cannot be reached: {reason}"
    return "breaks off, as no daemon of qconvd does"
