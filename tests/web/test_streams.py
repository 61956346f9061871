"""Streams of events: hundreds of readers while a job runs, readers that do not read, and readers that come again."""

from __future__ import annotations

import json
import re
import selectors
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from itertools import pairwise

import pytest

from daemon_kit import Home, end, move_in, tiny_model
from qconvd.web import streams, watcher
from web_kit import Client, Port, client_of

READERS = 200


class Readers:
    """Many clients of one stream. What they get is kept as it comes."""

    def __init__(self, web: Client, path: str, count: int, header: str = "") -> None:
        self.selector = selectors.DefaultSelector()
        self.got: dict[socket.socket, bytearray] = {}
        self.gone: set[socket.socket] = set()
        for _ in range(count):
            one = socket.create_connection((web.host, web.port), timeout=20)
            one.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n{header}\r\n".encode())
            one.setblocking(False)
            self.got[one] = bytearray()
            self.selector.register(one, selectors.EVENT_READ)

    def read_until(self, word: bytes, patience: float = 60, among: Iterable[socket.socket] | None = None) -> None:
        """Read until every one of them has got this."""
        waiting, by = set(self.got if among is None else among), time.monotonic() + patience
        while waiting := {one for one in waiting if word not in self.got[one]}:
            assert time.monotonic() < by, f"{len(waiting)} readers wait for {word!r}"
            for key, _ in self.selector.select(1):
                self._read(key.fileobj)  # type: ignore[arg-type]

    def _read(self, one: socket.socket) -> None:
        try:
            piece = one.recv(1 << 16)
        except OSError:
            piece = b""
        self.got[one] += piece
        if not piece:
            self.gone.add(one)
            self.selector.unregister(one)

    def close(self) -> None:
        for one in self.got:
            one.close()
        self.selector.close()


@pytest.fixture
def reading() -> Iterator[list[Readers]]:
    found: list[Readers] = []
    yield found
    for readers in found:
        readers.close()


def events(raw: bytes) -> list[dict[str, object]]:
    return [json.loads(data) for data in re.findall(rb"event: history\ndata: (.*)\n", raw)]


def test_hundreds_of_readers_follow_a_job(home: Home, reading: list[Readers]) -> None:
    home.web = "{listen: '127.0.0.1:0'}"
    home.configure()
    home.start()
    web = client_of(home)
    api, page = Readers(web, "/api/v1/events", READERS // 2), Readers(web, "/events", READERS // 2)
    reading += [api, page]
    api.read_until(b"retry: 1000")
    page.read_until(b'"id": "machine"')
    assert f"qconvd_event_readers {READERS}" in web.get("/metrics").text
    move_in(home, tiny_model(home.root / "away" / "m"))
    home.done(1)
    api.read_until(b'"from": "ready", "to": "done"')
    page.read_until(b"badge done")
    told = {json.dumps([(e["from"], e["to"]) for e in events(got) if e["target"]]) for got in api.got.values()}
    assert len(told) == 1, "all are told the same"
    states = ["", "waiting", "planned", "converting", "verifying", "ready", "done"]
    assert json.loads(told.pop()) == [list(pair) for pair in pairwise(states)]
    assert api.gone == page.gone == set()
    api.close()
    page.close()
    home.wait(lambda: "qconvd_event_readers 0\n" in web.get("/metrics").text, "the readers to be gone")
    end(home)


def test_who_does_not_read_is_cut_off_and_nobody_waits(
    web: Port, reading: list[Readers], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "QUEUE", 2)
    monkeypatch.setattr(watcher, "PERIOD", 0.02)
    source = web.ledger.source_seen("/models/m", "digest", "m" * 100_000, "")
    good, deaf = Readers(web, "/api/v1/events", 1), Readers(web, "/api/v1/events", 1)
    reading += [good, deaf]
    for readers in (good, deaf):
        readers.read_until(b"retry: 1000")
    made = 0
    while "qconvd_event_readers_dropped_total 1" not in web.get("/metrics").text:
        made += 1
        assert made < 3000
        web.ledger.source_gone(source.locator, f"{made} " + "x" * 60_000)
        web.ledger.source_seen(source.locator, "digest", "m", "")
        good.read_until(f'"reason": "{made} x'.encode())
    assert good.gone == set()


def test_who_comes_again_is_told_what_was_missed(web: Port, reading: list[Readers]) -> None:
    for number in range(3):
        web.ledger.source_seen(f"/models/{number}", f"digest {number}", f"m{number}", "")
    again = Readers(web, "/api/v1/events", 1, "Last-Event-ID: 1\r\n")
    reading.append(again)
    again.read_until(b"id: 3\n")
    (got,) = again.got.values()
    assert [e["id"] for e in events(got)] == [2, 3]
    web.ledger.source_seen("/models/4", "digest 4", "m4", "")
    again.read_until(b"id: 4\n")


def test_more_readers_than_are_served_are_refused(web: Port, reading: list[Readers], monkeypatch: pytest.MonkeyPatch) -> None:
    from qconvd.web import html

    monkeypatch.setattr(html, "READERS", 2)
    reading.append(Readers(web, "/events", 2))
    reading[0].read_until(b"retry")
    reply = web.get("/events")
    assert (reply.status, reply.json["message"]) == (503, "2 readers are served already")


def test_a_stream_of_a_job_that_is_not_there_is_empty(web: Port, reading: list[Readers]) -> None:
    reading.append(Readers(web, "/events?job=7", 1))
    reading[0].read_until(b"event: progress")
    assert b"section" not in bytes(*reading[0].got.values())
    assert web.get("/events?job=x").status == 404


def web_with_many_models(web: Port) -> bytes:
    """A list of models that no socket's buffer holds."""
    with web.ledger.transaction():
        for number in range(300):
            web.ledger.source_seen(f"/models/{number}", f"digest {number}", "m" * 40_000, "")
    return web.get("/api/v1/models?limit=500").body


def test_who_sends_slowly_or_takes_no_answer_is_cut_off(web: Port, monkeypatch: pytest.MonkeyPatch) -> None:
    from qconvd.web import connection

    cut, late = threading.Event(), connection.Connection._late

    def heard(self: connection.Connection) -> None:
        late(self)
        cut.set()

    whole = web_with_many_models(web)
    monkeypatch.setattr(connection.Connection, "_late", heard)
    monkeypatch.setattr(connection, "SECONDS", 0.5)
    monkeypatch.setattr(connection, "ANSWER_SECONDS", 0.5)
    body = b"POST /api/v1/reload HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
    assert web.raw(body) == b"" and web.raw(b"GET / HT") == b"" and web.raw(b"") == b""
    cut.clear()
    with socket.socket() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.connect((web.host, web.port))
        deaf.sendall(b"GET /api/v1/models?limit=500 HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert cut.wait(60)
        got = b""
        try:
            while piece := deaf.recv(1 << 16):
                got += piece
        except ConnectionError:
            pass
    assert len(got) < len(whole)


def test_more_connections_than_are_served_are_not_even_read(web: Port, monkeypatch: pytest.MonkeyPatch) -> None:
    from qconvd.web import connection

    monkeypatch.setattr(connection, "CONNECTIONS", 3)
    held = [socket.create_connection((web.host, web.port)) for _ in range(3)]
    for one in held:
        one.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert one.recv(15) == b"HTTP/1.1 200 OK"
    assert web.raw(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n") == b""
    for one in held:
        one.close()
