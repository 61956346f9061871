"""Webhooks over a real port: the secret, hostile requests, and replays that harm nobody."""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from qconvd.errors import QconvdError
from qconvd.web import connection as connections
from qconvd.web.server import BODY_LIMIT, WebServer
from qconvd.web.webhook import PATH, Webhook, repository

BODY = {"event": {"action": "update", "scope": "repo.content"}, "repo": {"type": "model", "name": "alice/m"}}


class Port:
    def __init__(self, tmp_path: Path) -> None:
        self.hints: list[str] = []
        self.secret = tmp_path / "secret"
        self.secret.write_text("s3cret\n")
        self.server = WebServer({PATH: Webhook(self.hint, lambda: self.secret)})
        self.server.listen("127.0.0.1:0")

    def hint(self, repo: str) -> bool:
        self.hints.append(repo)
        return repo == "alice/m"

    def send(
        self, body: object = BODY, secret: str | bytes | None = "s3cret", path: str = PATH, method: str = "POST"
    ) -> tuple[int, str]:
        host, _, port = self.server.address.rpartition(":")
        connection = http.client.HTTPConnection(host, int(port), timeout=10)
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        connection.request(method, path, data, {"X-Webhook-Secret": secret} if secret is not None else {})
        reply = connection.getresponse()
        said = json.loads(reply.read())
        connection.close()
        return reply.status, said["message"]


@pytest.fixture
def port(tmp_path: Path) -> Iterator[Port]:
    port = Port(tmp_path)
    yield port
    port.server.close()


def test_a_webhook_with_the_secret_is_heard_as_often_as_it_comes(port: Port) -> None:
    for _ in range(3):
        assert port.send() == (202, "the Hub is asked about it now")
    assert port.hints == ["alice/m"] * 3
    other = {"repo": {"type": "model", "name": "bob/x"}}
    assert port.send(other) == (202, "nobody watches it")


@pytest.mark.parametrize("secret", [None, "", "wrong", "s3cre", "s3cret2", "S3CRET"])
def test_without_the_secret_nothing_is_heard(port: Port, secret: str | None) -> None:
    assert port.send(secret=secret) == (401, "the secret is wrong")
    assert port.hints == []


def test_a_new_secret_counts_at_once_and_none_means_nobody_may(port: Port, monkeypatch: pytest.MonkeyPatch) -> None:
    port.secret.write_text("another")
    assert port.send()[0] == 401 and port.send(secret="another")[0] == 202
    port.secret.unlink()
    assert port.send() == (503, "the secret cannot be read")
    hook = Webhook(port.hint, lambda: None)
    monkeypatch.delenv("QCONVD_WEBHOOK_SECRET", raising=False)
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    assert hook(b"{}", {"x-webhook-secret": ""})[0] == 503


@pytest.mark.parametrize(
    "body",
    [b"", b"x", b"[]", b"{}", b'{"repo": 1}', b'{"repo": {"type": "dataset", "name": "a/b"}}', b"[" * 100_000,
     json.dumps({"repo": {"type": "model", "name": "a\nb"}}).encode(), b'{"repo": {"type": "model", "name": ["a"]}}'],
)  # fmt: skip
def test_what_is_no_webhook(port: Port, body: bytes) -> None:
    assert port.send(body) == (400, "this is no webhook of the Hub")
    assert port.hints == [] and repository(body) is None


def test_requests_are_bounded(port: Port) -> None:
    assert port.send(path="/x") == (404, "there is nothing here")
    assert port.send(method="GET") == (405, "only POST")
    assert port.send(method="GET", path="/") == (404, "there is nothing here")
    host, _, number = port.server.address.rpartition(":")
    for header, status in ((f"Content-Length: {BODY_LIMIT + 1}", b"413"), ("X: y", b"411"), ("Content-Length: -1", b"400")):
        with socket.create_connection((host, int(number)), timeout=10) as raw:
            raw.sendall(f"POST {PATH} HTTP/1.1\r\nHost: x\r\n{header}\r\n\r\n".encode())
            assert raw.recv(100).split()[1] == status
    assert port.send()[0] == 202


def test_a_secret_of_any_letters(port: Port) -> None:
    port.secret.write_text("żółć-秘密")
    assert port.send(secret="żółć-秘密".encode())[0] == 202
    assert port.send(secret="zolc")[0] == 401 and port.send(secret="żółć".encode())[0] == 401


def test_who_sends_slowly_does_not_keep_the_place(port: Port, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "SECONDS", 1.0)
    host, _, number = port.server.address.rpartition(":")
    slow = [socket.create_connection((host, int(number)), timeout=30) for _ in range(16)]
    left = set(slow)
    for raw in slow:
        raw.sendall(f"POST {PATH} HTTP/1.1\r\nX: ".encode())
    for _ in range(200):
        for raw in list(left):
            try:
                raw.sendall(b"x")
            except OSError:
                left.discard(raw)
        if not left:
            break
        time.sleep(0.1)
    for raw in slow:
        raw.close()
    assert not left
    assert port.send()[0] == 202


def test_where_it_listens(port: Port, tmp_path: Path) -> None:
    taken = port.server.address
    other = WebServer({})
    with pytest.raises(QconvdError, match="cannot listen: Address already in use") as caught:
        other.listen(taken)
    assert caught.value.where == taken and "web.listen" in caught.value.fix
    assert other.address == ""
    port.server.listen(None)
    assert port.server.address == ""
    other.listen(taken)
    other.close()
