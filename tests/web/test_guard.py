"""Who is served: hosts, other sites, tokens, bodies, and what stands on every answer."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from qconvd.hub.tokens import Token
from qconvd.web import guard
from web_kit import Port

STATUS = "/api/v1/status"
TOKEN = "a-long-token-0123456789"


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:8484", "localhost", "LOCALHOST:1", "[::1]:8484", "10.0.0.9"])
def test_its_own_names_and_bare_addresses_are_served(web: Port, host: str) -> None:
    assert web.get(STATUS, Host=host).status == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8484",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "",
        "a@127.0.0.1",
        "x y",
        "[",
        "[x]",
    ],
)
def test_a_foreign_name_is_not_served(web: Port, host: str) -> None:
    reply = web.get(STATUS, Host=host)
    assert reply.status in (400, 421) and b"version" not in reply.body
    if reply.status == 421:
        assert reply.json["message"] == "this daemon has another name" and "web.hosts" in reply.json["fix"]


def test_two_hosts_are_not_served(web: Port) -> None:
    said = web.raw(f"GET {STATUS} HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\nConnection: close\r\n\r\n")
    assert said.split()[1] in (b"400", b"421")


def test_further_names_are_served(opened: Callable[..., Port]) -> None:
    web = opened("{listen: '127.0.0.1:0', hosts: [Convert.example.org]}")
    assert web.get(STATUS, Host="convert.example.org").status == 200
    assert web.get(STATUS, Host="convert.example.org:443").status == 200
    assert web.get(STATUS, Host="other.example.org").status == 421


def test_the_machine_s_name_is_served_where_other_machines_come(
    opened: Callable[..., Port], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "Box.example.org")
    (tmp_path / "token").write_text(TOKEN)
    web = opened(f"{{listen: '0.0.0.0:0', token_file: {tmp_path}/token}}")
    for name, status in {"box": 200, "box.example.org:8484": 200, "example.org": 421, "box.evil.example": 421}.items():
        assert web.get(STATUS, Host=name, Authorization=f"Bearer {TOKEN}").status == status, name
    assert web.get(STATUS, Host="box").status == 401


def test_the_machine_s_name_is_not_served_where_only_the_machine_comes(web: Port, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "box")
    assert web.get(STATUS, Host="box").status == 421


@pytest.mark.parametrize(
    "headers",
    [{"Origin": "http://evil.example"}, {"Origin": "null"}, {"Origin": "http://localhost:1"}, {"Origin": "http://["},
     {"Sec_Fetch_Site": "cross-site"},
     {"Sec_Fetch_Site": "same-site"}],
)  # fmt: skip
def test_another_site_changes_nothing(web: Port, headers: dict[str, str]) -> None:
    for path in ("/api/v1/reload", "/api/v1/models", "/api/v1/jobs/1/cancel"):
        reply = web.post(path, {}, **headers)
        assert (reply.status, reply.json["message"]) == (403, "another site may not ask this daemon")
    assert web.ledger.requests() == []
    assert web.get(STATUS, **headers).status == 403


def test_a_form_of_another_site_is_no_json(web: Port) -> None:
    """What a browser sends without asking first, even one that sends neither Origin nor Sec-Fetch-Site."""
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""):
        reply = web.ask("POST", "/api/v1/reload", b"{}", {"Content-Type": kind} if kind else {})
        assert (reply.status, reply.json["message"]) == (415, "the body has to be JSON")
    assert web.ledger.requests() == []


def test_its_own_pages_may_ask(web: Port) -> None:
    assert web.get(STATUS, Origin=f"http://{web.address}", Sec_Fetch_Site="same-origin").status == 200


def test_every_answer_says_what_browsers_may_do_with_it(web: Port) -> None:
    for reply in (web.get(STATUS), web.get("/nothing"), web.get(STATUS, Host="evil.example"), web.post("/api/v1/reload", b"x")):
        assert "default-src 'none'" in reply.headers["content-security-policy"]
        assert "unsafe" not in reply.headers["content-security-policy"]
        assert reply.headers["x-content-type-options"] == "nosniff" and reply.headers["x-frame-options"] == "DENY"
        assert reply.headers["cache-control"] == "no-store"
        assert not any(name.startswith("access-control") for name in reply.headers)
        assert "server" not in reply.headers


def test_with_a_token_only_who_brings_it_is_served(opened: Callable[..., Port], tmp_path: Path) -> None:
    (tmp_path / "token").write_text(TOKEN + "\n")
    web = opened(f"{{listen: '127.0.0.1:0', token_file: {tmp_path}/token}}")
    assert web.get(STATUS, Authorization=f"Bearer {TOKEN}").status == 200
    for said in ("", TOKEN, f"Basic {TOKEN}", f"Bearer {TOKEN[:-1]}", f"Bearer {TOKEN}x", "Bearer", f"Bearer {TOKEN.upper()}"):
        reply = web.get(STATUS, **({"Authorization": said} if said else {}))
        assert (reply.status, reply.json["message"]) == (401, "the token is missing or wrong")
        assert reply.headers["www-authenticate"].startswith("Bearer")
        assert TOKEN not in reply.text
    (tmp_path / "token").write_text("another-token")
    assert web.get(STATUS, Authorization=f"Bearer {TOKEN}").status == 401
    (tmp_path / "token").unlink()
    reply = web.get(STATUS, Authorization="Bearer another-token")
    assert (reply.status, reply.json["message"]) == (503, "the token of this daemon cannot be read")
    assert str(tmp_path) not in reply.text


def test_the_token_comes_as_a_credential_too(
    opened: Callable[..., Port], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "web-token").write_text(TOKEN)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    web = opened()
    assert web.get(STATUS).status == 401
    assert web.get(STATUS, Authorization=f"Bearer {TOKEN}").status == 200


def test_tokens_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Digests of equal length, by the one function that is made for it: never the texts themselves, never `==`."""
    compared: list[tuple[bytes, bytes]] = []

    def compare(a: bytes, b: bytes) -> bool:
        compared.append((a, b))
        return a == b

    monkeypatch.setattr("qconvd.web.guard.hmac.compare_digest", compare)
    token = Token("secret", "here")
    assert not guard.is_token(token, "s") and not guard.is_token(token, "x" * 10_000) and guard.is_token(token, "secret")
    assert {(len(a), len(b)) for a, b in compared} == {(32, 32)} and len(compared) == 3


def test_a_cookie_stands_for_the_token_that_it_was_made_with(opened: Callable[..., Port], tmp_path: Path) -> None:
    (tmp_path / "token").write_text(TOKEN)
    web = opened(f"{{listen: '127.0.0.1:0', token_file: {tmp_path}/token}}")
    good = guard.cookie_for(Token(TOKEN, ""))
    assert TOKEN not in good
    assert web.get(STATUS, Cookie=f"qconvd={good}").status == 200
    end, _, signature = good.partition(".")
    old, longer = guard.cookie_for(Token(TOKEN, ""), now=0), f"{int(end) + 1}.{signature}"
    for bad in (old, longer, end, f"{end}.", "", ".", guard.cookie_for(Token("other", "")), "é"):
        assert web.ask("GET", STATUS, headers={"Cookie": f"qconvd={bad}".encode().decode("latin-1")}).status == 401


def test_other_machines_are_served_with_a_token_or_not_at_all(
    opened: Callable[..., Port], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "qconvd.web.server"):
        web = opened("{listen: '0.0.0.0:0'}")
    assert "no token is set: only webhooks are heard there; name a file with one in `web.token_file`" in caplog.text
    reply = web.get(STATUS)
    assert (reply.status, reply.json["message"]) == (403, "other machines are served only with a token")
    (tmp_path / "token").write_text(TOKEN)
    other = opened(f"{{listen: '0.0.0.0:0', token_file: {tmp_path}/token}}")
    assert other.get(STATUS).status == 401
    assert other.get(STATUS, Authorization=f"Bearer {TOKEN}").status == 200


@pytest.mark.parametrize(
    "path",
    ["/../etc/passwd", "/..%2f..%2fetc/passwd", "/static/../../etc/passwd", "/static/..%2f..%2fpyproject.toml", "//etc/passwd",
     "/static/%2e%2e/%2e%2e/config.yaml", "/static//etc/passwd", "/static/%00", "/api/v1/jobs/..%2f..%2fstatus",
     "/api/v1/jobs/1/../../status", "/jobs/..%2f1"],
)  # fmt: skip
def test_no_path_leads_out(web: Port, path: str) -> None:
    reply = web.get(path)
    assert reply.status in (400, 404, 405, 422) and b"root:" not in reply.body and b"watch" not in reply.body


def test_bodies_have_an_end(web: Port) -> None:
    for path in ("/api/v1/models", "/api/v1/reload", "/nothing"):
        said = web.raw(f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                       "Content-Length: 1048577\r\n\r\n{}")  # fmt: skip
        assert said.split()[1] == b"413", said
    said = web.raw("POST /api/v1/reload HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
    assert said.split()[1] == b"411"
    assert b" 200 " not in web.raw(f"GET {STATUS} HTTP/1.1\r\nHost: localhost\r\nX: {'x' * 1_000_000}\r\n\r\n")
    assert web.get(STATUS).status == 200


def test_a_socket_with_a_path(opened: Callable[..., Port], tmp_path: Path) -> None:
    import http.client
    import socket as sockets
    import stat

    from qconvd.web.server import WebServer

    path = tmp_path / "http.sock"
    server = WebServer({})
    web = opened()
    server.configure(web.config)
    server.listen(f"unix:{path}")
    assert server.address == f"unix:{path}"
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    connection = http.client.HTTPConnection("localhost", timeout=10)
    connection.sock = sockets.socket(sockets.AF_UNIX)
    connection.sock.connect(str(path))
    connection.request("GET", STATUS)
    assert connection.getresponse().status == 200
    connection.close()
    server.close()
    assert not path.exists()
    # One that a killed daemon has left is in nobody's way; anything else is.
    left = sockets.socket(sockets.AF_UNIX)
    left.bind(str(path))
    left.close()
    server.listen(f"unix:{path}")
    server.close()
    path.write_text("mine")
    with pytest.raises(Exception, match="cannot listen"):
        server.listen(f"unix:{path}")
    assert path.read_text() == "mine"
