"""Commands over HTTP: a daemon elsewhere, and when one here is asked in its ledger instead."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from command_line import Qconvd
from daemon_kit import PATIENCE, Home, copy_in, end, tiny_model
from qconvd.client import http
from qconvd.client.ledger import OverLedger
from qconvd.documents import log as log_module
from qconvd.errors import QconvdError
from web_kit import Port

OTHER = "  look at the address and the port, and at the version that runs there\n"
ABSENT = "  is a daemon running there, with its HTTP port on?\n"


@pytest.fixture
def away(home: Home, monkeypatch: pytest.MonkeyPatch) -> Home:
    """A daemon with a token, on a socket with a path. Nothing here knows its config."""
    (home.root / "token").write_text("very-secret-token\n")
    home.web = f"{{listen: 'unix:{home.root}/s', token_file: ./token}}"
    home.configure()
    home.start()
    home.said("listens on")
    monkeypatch.setenv("QCONVD_WEB_TOKEN", "very-secret-token")
    return home


def test_everything_over_a_socket_with_a_token(qconvd: Qconvd, away: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QCONVD_URL", f"unix:{away.root}/s")
    model = tiny_model(away.root / "away" / "m")
    assert qconvd("add", model).out == "job 1: 1 artifact will be made\n"
    away.done(1)
    assert away.process is not None
    where = f"The daemon at unix:{away.root}/s runs (process {away.process.pid})."
    assert qconvd("status").out.startswith(f"{where}\nJobs: 1 done.")
    assert "  1  m      everyday  done    1/1" in qconvd("jobs").out
    assert f"source  {model}" in qconvd("job", "1").out
    assert "verified and in its place" in qconvd("logs", "1", "--follow").out
    (target,) = qconvd("job", "1", "--json").json["targets"]
    assert qconvd("logs", target["id"]).out == qconvd("logs", "1").out
    assert qconvd("retry", "1", target["id"]).out == "nothing to try again\n"
    assert qconvd("reconvert", target["id"]).out == "1 artifact will be made again\n"
    assert qconvd("cancel", "1").code == 0
    said = qconvd("publish", "1")
    assert said.code == 3 and "does not publish" in said.err
    assert qconvd("priority", "1", "-7").out == "job 1 has priority -7\n"
    with away.ledger() as ledger:
        away.wait(lambda: not ledger.tasks("running"), "what was begun before the cancel to be stopped")
    assert qconvd("pause", "lunch").out == "paused: no task is started until `qconvd resume`\n"
    assert "Paused (by hand): lunch." in qconvd("status").out
    assert qconvd("resume").out == "goes on\n"
    assert qconvd("resume").code == 3
    assert qconvd("reload").out == "the configuration was read again\n"
    away.config.write_text(away.config.read_text() + "frob: 1\n")
    bad = qconvd("reload")
    assert bad.code == 3 and "frob: there is no key 'frob' here" in bad.err


def test_a_reload_that_moves_the_port_is_answered_there(qconvd: Qconvd, away: Home) -> None:
    away.config.write_text(away.config.read_text().replace(f"unix:{away.root}/s", f"unix:{away.root}/t"))
    assert qconvd("reload", "--url", f"unix:{away.root}/s").out == "the configuration was read again\n"
    away.said(f"listens on unix:{away.root}/t")
    assert qconvd("status", "--url", f"unix:{away.root}/t").code == 0
    assert "cannot be reached" in qconvd("status", "--url", f"unix:{away.root}/s").err
    end(away)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["job", "99"], "there is no job 99\n  `qconvd jobs` lists them"),
        (["job", "../x"], "there is no job ../x\n  `qconvd jobs` lists them"),
        (["job", "9" * 5000], f"there is no job {'9' * 5000}\n  `qconvd jobs` lists them"),
        (["logs", "9" * 20], f"there is no job {'9' * 20}\n  `qconvd jobs` lists them"),
        (["logs", "nothing"], "there is no target nothing\n"),
        (["logs", "no thing"], "there is no target no thing\n"),
        (["retry", "../x"], "there is no target ../x\n"),
        (["retry", "99"], "there is no job 99\n  `qconvd jobs` lists them"),
        (["priority", "99", "1"], "there is no job 99\n  `qconvd jobs` lists them"),
        (["add", "/nowhere/at/all"], "/nowhere/at/all: "),
        (
            ["add", "/nowhere", "-r", "evryday"],
            "there is no recipe 'evryday' (did you mean everyday?)\n  known are everyday",
        ),
    ],
)
def test_what_is_not_there(qconvd: Qconvd, away: Home, arguments: list[str], message: str) -> None:
    said = qconvd(*arguments, "--url", f"unix:{away.root}/s")
    assert (said.code, said.out) == (3, "")
    assert said.err.startswith(f"qconvd: {message}"), said.err


def test_a_model_is_called_as_it_is_over_there(
    qconvd: Qconvd, away: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QCONVD_URL", f"unix:{away.root}/s")
    monkeypatch.chdir(tmp_path)
    whole = "  write the whole path that it has over there, from / on"
    nothing = f"qconvd: {tmp_path}/alice/m: there is nothing at this path\n{whole}"
    assert qconvd("add", "alice/m").err == f"{nothing}; or, if it is meant to be on the Hub, hub:alice/m\n"
    assert qconvd("add", "a/b/m").err == f"qconvd: {tmp_path}/a/b/m: there is nothing at this path\n{whole}\n"
    for name in ("hub:alice/m", "https://huggingface.co/alice/m"):
        assert qconvd("add", name).err.startswith("qconvd: hub:alice/m: "), name
    tiny_model(tmp_path / "alice" / "m")
    assert qconvd("add", "alice/m").out == "job 1: 1 artifact will be made\n"
    away.said(f"asked to add {tmp_path}/alice/m everyday: job 1: ")
    assert qconvd("cancel", "1").code == 0
    away.said("asked to cancel 1: ")


def test_a_wrong_token(qconvd: Qconvd, away: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"unix:{away.root}/s"
    fixes = {"wrong": "what was sent is another: look at $QCONVD_WEB_TOKEN", "": "put it into $QCONVD_WEB_TOKEN"}
    for token, fix in fixes.items():
        monkeypatch.setenv("QCONVD_WEB_TOKEN", token)
        said = qconvd("status", "--url", url)
        assert (said.code, said.err) == (3, f"qconvd: {url}: the token is missing or wrong\n  {fix}\n")
    monkeypatch.setenv("QCONVD_WEB_TOKEN", "tökén")
    fix = "a token is one word of plain letters and digits: copy it again"
    assert qconvd("status", "--url", url).err == f"qconvd: {url}: the token is none\n  {fix}\n"
    # The config says where the token is.
    copy_in(away, tiny_model(away.root / "away" / "m"))
    away.done(1)
    monkeypatch.delenv("QCONVD_WEB_TOKEN")
    assert qconvd("jobs", "--json", "--config", away.config).json[0]["model"] == "m"


@pytest.mark.parametrize(
    "url",
    ["", " ", "ftp://host", "http://", "http://host/path", "http://a b", "a..b:1", "http://host:x", "http://h?q", "unix:x"],
)
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(QconvdError) as refused:
        http.checked(url)
    assert str(refused.value) == (
        f"{url!r} is no address of a daemon\n  write http://host:8484, https://host, or unix:/path/of/the.sock"
    )


def test_an_address_with_a_password(qconvd: Qconvd) -> None:
    said = qconvd("status", "--json", "--url", "http://me:very-secret@host")
    assert said.json["what"] == "an address of a daemon holds no name and no password"
    assert "$QCONVD_WEB_TOKEN" in said.err and "very-secret" not in said.err + said.out


def test_an_address_that_is_empty_means_no_other_daemon(qconvd: Qconvd, home: Home) -> None:
    said = qconvd("cancel", "1", "--url", "")
    assert (said.code, said.err.splitlines()[0]) == (3, "qconvd: '' is no address of a daemon")


def test_one_daemon_at_a_time(qconvd: Qconvd, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    said = qconvd("status", "--url", "h:1", "--config", home.config)
    assert said.code == 2 and "--config and --url name two daemons; leave out one of them" in said.err
    # What a variable says is not meant by who names a config.
    monkeypatch.setenv("QCONVD_URL", "127.0.0.1:1")
    assert home.once() == 0
    assert qconvd("status", "--config", home.config).out.startswith("No daemon runs")
    assert "http://127.0.0.1:1: cannot be reached" in qconvd("status").err


def test_addresses() -> None:
    for url, meant in {
        "host:8484": "http://host:8484", "http://host:8484/": "http://host:8484", "https://h": "https://h", "[::1]:1":
        "http://[::1]:1", "Bücher.example:1": "http://xn--bcher-kva.example:1", "unix:/a/b": "unix:/a/b",
    }.items():  # fmt: skip
        assert http.checked(url) == meant


@contextmanager
def listener(answer: Callable[[socket.socket], None]) -> Iterator[str]:
    """An address at which every connection is answered by a function."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    answer(connection)

        threading.Thread(target=serve, daemon=True).start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)


def web_page(connection: socket.socket) -> None:
    says(connection, 200, b"<html>")


def says(connection: socket.socket, status: int, body: bytes) -> None:
    connection.recv(4096)
    connection.sendall(b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n%b" % (status, len(body), body))


def greeting(connection: socket.socket) -> None:
    connection.sendall(b"220 mail.example.org ESMTP\r\n")


@pytest.mark.parametrize(
    ("answer", "what"),
    [
        (web_page, f"who answers there is no daemon of this qconvd\n{OTHER}"),
        (lambda c: says(c, 200, b'{"hello": 1}'), f"who answers there is no daemon of this qconvd\n{OTHER}"),
        (lambda c: says(c, 200, b"[]"), f"who answers there is no daemon of this qconvd\n{OTHER}"),
        (
            lambda c: says(c, 404, b'{"message": "there is nothing here"}'),
            f"the daemon there does not know what it is asked\n{OTHER}",
        ),
        (lambda c: says(c, 200, b"[" * 100_000), f"who answers there is no daemon of this qconvd\n{OTHER}"),
        (lambda c: says(c, 200, b'{"seen": []}'), f"who answers there is no daemon of this qconvd\n{OTHER}"),
        (lambda c: says(c, 503, b'{"message": "away", "fix": "come again"}'), "away\n  come again\n"),
        (greeting, f"breaks off, as no daemon of qconvd does\n{ABSENT}"),
        (lambda connection: connection.recv(4096) and None, f"breaks off, as no daemon of qconvd does\n{ABSENT}"),
    ],
)
def test_others_that_answer(qconvd: Qconvd, answer: Callable[[socket.socket], None], what: str) -> None:
    with listener(answer) as address:
        said = qconvd("status", "--url", address)
    assert (said.code, said.err) == (3, f"qconvd: http://{address}: {what}")


def test_nobody_there(qconvd: Qconvd, tmp_path: Path) -> None:
    with listener(web_page) as address:
        pass
    said = qconvd("jobs", "--url", f"http://{address}", "--json")
    assert (said.code, said.err) == (3, f"qconvd: http://{address}: cannot be reached: Connection refused\n{ABSENT}")
    assert said.json["error"] == "NotReached"
    said = qconvd("jobs", "--url", f"unix:{tmp_path}/s")
    assert said.err == f"qconvd: unix:{tmp_path}/s: cannot be reached: No such file or directory\n{ABSENT}"


def test_a_path_that_is_too_long(qconvd: Qconvd) -> None:
    said = qconvd("jobs", "--url", f"unix:/{'x' * 200}")
    assert said.err == f"qconvd: unix:/{'x' * 200}: cannot be reached: AF_UNIX path too long\n{ABSENT}"


@pytest.mark.parametrize(
    ("command", "answer"),
    [
        (["jobs"], b'{"jobs": [], "next": 5}'),
        (["logs", "1"], b'{"lines": [], "next": "", "more": true, "over": false, "tasks": 0, "targets": []}'),
    ],
)
def test_answers_that_lead_nowhere(qconvd: Qconvd, command: list[str], answer: bytes) -> None:
    with listener(lambda connection: says(connection, 200, answer)) as address:
        said = qconvd(*command, "--url", address)
    assert (said.code, said.err) == (3, f"qconvd: http://{address}: who answers there is no daemon of this qconvd\n{OTHER}")


def test_an_answer_that_never_ends(qconvd: Qconvd, monkeypatch: pytest.MonkeyPatch) -> None:
    def drips(connection: socket.socket) -> None:
        connection.recv(4096)
        connection.sendall(b"HTTP/1.1 200 X\r\n")
        with suppress(OSError):
            while True:
                connection.sendall(b"X")
                time.sleep(0.01)

    monkeypatch.setattr(http, "LONGEST", 0.3)
    with listener(drips) as address:
        said = qconvd("status", "--url", address)
    assert (said.code, said.err) == (3, f"qconvd: http://{address}: does not answer\n{ABSENT}")


def test_no_terminal_is_steered_from_elsewhere(qconvd: Qconvd) -> None:
    with listener(lambda c: says(c, 400, b'{"message": "a\\u001b[31mb"}')) as address:
        assert qconvd("status", "--url", address).err == "qconvd: a\N{REPLACEMENT CHARACTER}[31mb\n"
    with listener(lambda c: says(c, 200, b'{"state": "done", "answer": "a\\u001b[31mb"}')) as address:
        assert qconvd("resume", "--url", address).out == "a\N{REPLACEMENT CHARACTER}[31mb\n"


@pytest.mark.parametrize(
    ("model", "there"),
    [("hub:alice/m", "hub:alice/m"), ("/over/there", "/over/there"), ("https://huggingface.co/alice/m", "hub:alice/m")],
)
def test_a_model_elsewhere_is_named_as_it_is_there(qconvd: Qconvd, model: str, there: str) -> None:
    heard = bytearray()

    def hears(connection: socket.socket) -> None:
        while not heard.endswith(b"}"):
            heard.extend(connection.recv(4096))
        body = b'{"state": "done", "answer": "taken"}'
        connection.sendall(b"HTTP/1.1 200 X\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))

    with listener(hears) as address:
        assert qconvd("add", model, "--url", address).out == "taken\n"
    assert json.loads(heard.partition(b"\r\n\r\n")[2]) == {"model": there, "recipe": None}


def test_no_tls(qconvd: Qconvd) -> None:
    with listener(greeting) as address:
        said = qconvd("jobs", "--url", f"https://{address}")
    assert said.code == 3 and said.err.startswith(f"qconvd: https://{address}: does not speak TLS as it should: "), said.err
    fix = "a daemon itself speaks http://; https:// is for a proxy before it, with a certificate that this machine knows"
    assert said.err.endswith(f"\n  {fix}\n")


def test_an_address_without_a_port(qconvd: Qconvd) -> None:
    said = qconvd("jobs", "--url", "no-such-host.invalid")
    fix = f"{ABSENT[:-1]} Without a port, 80 is asked, and 443 with https; a daemon's own is 8484\n"
    assert said.err == f"qconvd: http://no-such-host.invalid: its name is not known\n{fix}"


def test_a_daemon_that_is_not_served_by_http_is_asked_in_its_ledger(
    qconvd: Qconvd, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The token may not be read, the port is somebody else's by now, or the daemon is of another version."""
    home.web = "{listen: '127.0.0.1:0'}"
    home.configure()
    home.start()
    home.said("qconvd runs")
    monkeypatch.setattr(http, "SHORT", PATIENCE)  # a busy machine may take longer than a person should wait
    asked = []
    begin = OverLedger.__init__
    monkeypatch.setattr(OverLedger, "__init__", lambda self, *told: asked.append(1) or begin(self, *told))
    noted = home.state / "listening.json"
    first = json.loads(noted.read_text())

    def status(**changed: Any) -> int:
        noted.write_text(json.dumps({**first, **changed}))
        before = len(asked)
        found = qconvd("status", "--json", "--config", home.config).json
        assert found["pid"] == first["pid"]
        return len(asked) - before

    assert status() == 0
    assert status(pid=1) == 1
    assert status(version="0.0.1") == 1
    with listener(web_page) as address:
        assert status(address=address) == 1
    assert status(address=address) == 1
    assert status(address="a b:x") == 1
    with listener(lambda c: says(c, 400, b'{"message": "no"}')) as address:
        assert status(address=address) == 1
    monkeypatch.setattr(http, "SHORT", 0.2)
    gone = threading.Event()
    with listener(lambda _: gone.wait(20) or None) as address:
        assert status(address=address) == 1
        gone.set()
    (home.root / "token").write_text("t")
    noted.write_text(json.dumps(first))
    text = home.config.read_text()
    home.config.write_text(text.replace("127.0.0.1:0'", "127.0.0.1:0', token_file: ./token"))
    assert qconvd("reload", "--config", home.config).code == 0
    (home.root / "token").unlink()
    assert status() == 1
    home.config.write_text(text.replace("'127.0.0.1:0'", "off"))
    assert qconvd("reload", "--config", home.config).code == 0
    home.wait(lambda: not noted.exists(), "the port to be closed: the answer goes out before it is")
    home.stop()


AS_ANOTHER = """
import os, sys
import qconvd.client.http, qconvd.client.ledger
from qconvd.cli import main

def said(*words):
    sys.argv = ["qconvd", *words, "--config", sys.argv[-1]]
    try:
        main()
    except SystemExit as ended:
        return ended.code

said("pause")  # everything is imported before the rights are given up: Python itself may lie where only root may read
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
sys.exit(said("pause"))
"""


def test_who_may_neither_read_the_token_nor_write_the_ledger_is_told_of_the_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("QCONVD_WEB_TOKEN", raising=False)
    with tempfile.TemporaryDirectory() as folder:  # pytest's own are closed to others
        Path(folder).chmod(0o755)
        home = Home(Path(folder) / "home", configure=False)
        (home.root / "token").write_text("very-secret-token\n")
        home.web = f"{{listen: 'unix:{home.root}/s', token_file: ./token}}"
        home.configure()
        home.start()
        home.said("qconvd runs")
        (home.root / "s").chmod(0o666)
        home.config.write_text(home.config.read_text().replace(", token_file: ./token", ""))

        def told() -> str:
            command = [sys.executable, "-c", AS_ANOTHER, str(home.config)]
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
            assert done.returncode == 3, done.stderr
            return done.stderr

        (home.state / "ledger.sqlite").chmod(0o444)
        assert told() == f"qconvd: unix:{home.root}/s: the token is missing or wrong\n  put it into $QCONVD_WEB_TOKEN\n"
        home.state.chmod(0 if os.geteuid() else 0o700)
        fix = "read it as root or a member of its group, or ask a running daemon: --url http://127.0.0.1:8484"
        assert f"qconvd: {home.state}: cannot be read: Permission denied\n  {fix}\n" in told()
        home.state.chmod(0o755)
        end(home)


def test_both_ways_say_the_same(qconvd: Qconvd, home: Home) -> None:
    home.web = "{listen: '127.0.0.1:0'}"
    home.configure("[fp16, bf16]")
    (home.inbox / "odd").mkdir()
    (home.inbox / "odd" / "pytorch_model.bin").write_text("<!DOCTYPE html><html>not found</html>")
    copy_in(home, tiny_model(home.root / "away" / "m"))
    home.start()
    home.done(2)
    home.wait(lambda: "odd" in home.log(), "the odd one to be seen")

    def everything() -> list[Any]:
        said = [
            qconvd(*words, "--config", home.config)
            for words in (["jobs"], ["job", "1"], ["logs", "1"], ["logs", "1", "--events"])
        ]
        data = [qconvd(*words, "--json", "--config", home.config).json for words in (["jobs"], ["job", "1"], ["status"])]
        return [*((s.code, s.out, s.err) for s in said), *data[:2], {k: v for k, v in data[2].items() if k != "ready"}]

    over_http = everything()
    (home.state / "listening.json").unlink()
    assert everything() == over_http


def test_jobs_come_in_pages_and_logs_in_pieces(qconvd: Qconvd, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(5):
        copy_in(home, tiny_model(home.root / "away" / f"m{number}", seed=number + 1))
    home.web = "{listen: '127.0.0.1:0'}"
    home.configure()
    home.start()
    home.done(5)
    monkeypatch.setattr(http, "PAGE", 2)
    assert [j["job"] for j in qconvd("jobs", "--json", "--config", home.config).json] == [1, 2, 3, 4, 5]
    whole = qconvd("logs", "3", "--config", home.config).out
    (home.state / "listening.json").unlink()
    monkeypatch.setattr(log_module, "PIECE", 1)
    assert qconvd("logs", "3", "--config", home.config).out == whole


def test_a_connection_that_was_closed_meanwhile(tmp_path: Path) -> None:
    web = Port(tmp_path)
    daemon = http.OverHttp(f"http://{web.address}")
    assert daemon.jobs() == []
    assert daemon._connection is not None and daemon._connection.sock is not None
    daemon._connection.sock.shutdown(socket.SHUT_RDWR)
    assert daemon.jobs() == []
    daemon._connection.sock.shutdown(socket.SHUT_RDWR)
    with pytest.raises(http.Unanswered) as broken:  # what changes something is not asked twice
        daemon.pause("")
    assert str(broken.value) == (
        f"http://{web.address}: was asked, but breaks off before it answers\n"
        "  `qconvd status` and `qconvd jobs` tell what became of it"
    )
    daemon.close()
    web.close()
