"""Webhooks, mail and commands, each with the real other side: a server, a mail program, a shell script."""

from __future__ import annotations

import email
import json
import os
import shutil
import ssl
import stat
import subprocess
import threading
import time
from email.policy import default
from pathlib import Path
from typing import Any

import pytest

from qconvd.config import Notify
from qconvd.notifications.attempt import BreakOff, NotSent
from qconvd.notifications.sender import send
from qconvd.notifications.webhook import retry_after
from receiver import nobody, receiver

NEWS: dict[str, Any] = {
    "event": "failed", "title": "my_Модель: 1 of 2 artifacts failed", "at": 1.5e9, "host": "box", "job": 12,
    "model": "my_Модель", "text": "q8_0 failed: <&> is *odd*\nfp16, 2.0 KiB\n`qconvd job 12` shows it all.",
    "recipe": "everyday", "seconds": 42.0,
    "artifacts": [{"label": "fp16", "bytes": 2048, "place": "/out/m-fp16", "state": "done"}], "reason": "odd", "fix": "",
}  # fmt: skip


def entry(folder: Path, **data: Any) -> Notify:
    return Notify.model_validate(data, context={"folder": folder})


def script(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def refused(notifier: Notify, news: dict[str, Any] = NEWS) -> NotSent:
    with pytest.raises(NotSent) as caught:
        send(notifier, news, BreakOff())
    for secret in ("secret-hook", "secret-key", "very-secret-token"):
        assert secret not in f"{caught.value!r} {caught.value} {caught.value.as_dict()}"
    return caught.value


# Webhooks


@pytest.mark.parametrize(
    "answer",
    [
        b"x" * 165 + b" /services/T0/secret-hook-xyz", b"no such: secret-hook xyz", b"no such: secret-hook&#x2d;xyz",
        b"no secret-ho",
    ],
)  # fmt: skip
def test_no_part_of_an_address_comes_back_from_a_server(tmp_path: Path, answer: bytes) -> None:
    with receiver() as here:
        here.answers.append((404, {}, answer))
        url = here.url.partition("/services")[0] + "/services/T0/secret-hook%20xyz?secret-hook-xyz"
        error = refused(entry(tmp_path, webhook=url))
    assert error.what == "127.0.0.1 answers 404 Not Found"


def test_an_answer_that_breaks_off_is_none(tmp_path: Path) -> None:
    with receiver() as here:
        here.answers.append((103, {}, b""))
        error = refused(entry(tmp_path, webhook={"url": here.url, "timeout": "1s"}))
    assert error.again


def test_what_each_service_is_sent(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("very-secret-token\n")
    with receiver() as here:
        for kind in ("json", "ntfy", "slack", "discord"):
            said = send(entry(tmp_path, webhook={"url": here.url, "as": kind, "token_file": "token"}), NEWS, BreakOff())
            assert said == "answered 200"
        plain, ntfy, slack, discord = here.got
        assert {path for path, _, _ in here.got} == {"/services/T0/secret-hook-xyz?key=secret-key-abc"}
        assert json.loads(plain[2]) == NEWS and plain[1]["content-type"] == "application/json"
        assert plain[1]["authorization"] == "Bearer very-secret-token"
        title = str(email.header.make_header(email.header.decode_header(ntfy[1]["title"])))
        assert (title, ntfy[1]["priority"], ntfy[1]["tags"]) == (NEWS["title"], "4", "x")
        assert ntfy[2].decode() == NEWS["text"]
        assert json.loads(slack[2]) == {
            "text": "*my_Модель: 1 of 2 artifacts failed*\nq8_0 failed: &lt;&amp;&gt; is *odd*\nfp16, 2.0 KiB\n"
            "`qconvd job 12` shows it all."
        }
        assert json.loads(discord[2]) == {
            "content": "**my\\_Модель: 1 of 2 artifacts failed**\nq8\\_0 failed: \\<&\\> is \\*odd\\*\nfp16, 2.0 KiB\n"
            "`qconvd job 12` shows it all.",
            "allowed_mentions": {"parse": []},
        }


def test_nothing_is_longer_than_the_services_take(tmp_path: Path) -> None:
    news = NEWS | {"text": "_я" * 9000}
    with receiver() as here:
        for kind in ("ntfy", "slack", "discord"):
            send(entry(tmp_path, webhook={"url": here.url, "as": kind}), news, BreakOff())
        assert len(here.got[0][2]) <= 4096 and here.got[0][2].decode().endswith("…")
        assert len(here.json(1)["text"]) < 4000
        assert len(here.json(2)["content"]) == 2000


def test_a_template_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "body.j2").write_text(
        '{"msg": {{ title | tojson }}, "sizes": [{{ artifacts | map(attribute="bytes") | join(",") }}]}'
    )
    (tmp_path / "text.j2").write_text("{{ model }}!")
    with receiver() as here:
        send(entry(tmp_path, webhook={"url": here.url, "template": "body.j2"}), NEWS, BreakOff())
        send(entry(tmp_path, webhook={"url": here.url, "as": "ntfy", "template": "text.j2"}), NEWS, BreakOff())
        assert here.json(0) == {"msg": NEWS["title"], "sizes": [2048]}
        assert here.got[1][2].decode() == "my_Модель!"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{{ title ", "body.j2:1: the template cannot be used: unexpected end of template"),
        ("{{ nothing.at.all }}", "the template cannot be used: 'nothing' is undefined"),
        ("{{ ''.__class__.__mro__ }}", "the template cannot be used: access to attribute '__class__'"),
        ("title", "the template makes no JSON: Expecting value"),
    ],
)
def test_a_template_that_cannot_be_used(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "body.j2").write_text(text)
    error = refused(entry(tmp_path, webhook={"url": nobody(), "template": "body.j2"}))
    assert words in str(error) and not error.again
    assert "event, title, text" in error.fix or "tojson" in error.fix


@pytest.mark.parametrize(
    ("status", "headers", "again", "after"),
    [
        (500, {}, True, None), (503, {"Retry-After": "7"}, True, 7.0), (429, {"Retry-After": "0.5"}, True, 0.5),
        (408, {}, True, None), (425, {}, True, None), (400, {"Retry-After": "7"}, False, None), (404, {}, False, None),
        (302, {"Location": "http://127.0.0.1:1/secret-hook-xyz"}, False, None),
    ],
)  # fmt: skip
def test_what_an_answer_means(tmp_path: Path, status: int, headers: dict[str, str], again: bool, after: float | None) -> None:
    with receiver() as here:
        here.answers.append((status, headers, b"no /services/T0/secret-hook-xyz\n\x1b[2J for secret-key-abc"))
        error = refused(entry(tmp_path, webhook=here.url))
        assert (error.again, error.after) == (again, after)
        assert str(status) in error.what and "\x1b" not in error.what
        assert len(here.got) == 1


def test_the_words_of_a_refusal(tmp_path: Path) -> None:
    with receiver() as here:
        here.answers.append((404, {}, b"no_service"))
        assert str(refused(entry(tmp_path, webhook=here.url))) == (
            "127.0.0.1 answers 404 Not Found: no_service\n"
            "  look whether the address and `as:` are right, and whether it still exists"
        )
    error = refused(entry(tmp_path, webhook=nobody()))
    assert error.what == "127.0.0.1 cannot be reached: Connection refused" and error.again


@pytest.mark.parametrize("how", ["hangs", "trickles"])
def test_a_server_that_does_not_come_to_an_end_is_left(tmp_path: Path, how: str) -> None:
    with receiver() as here:
        setattr(here, how, True)
        error = refused(entry(tmp_path, webhook={"url": here.url, "timeout": "0.4s"}))
        assert error.what == "127.0.0.1 did not answer within 0.4 s" and error.again
        here.wait(lambda: bool(here.got))  # a busy machine hears of it when it is left already
        assert len(here.got) == 1


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes the certificate")
def test_https_is_checked_and_spoken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = [tmp_path / "key.pem", tmp_path / "cert.pem"]
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost", "-days", "2"]
    made += ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(own[0]), "-out", str(own[1])]
    subprocess.run(made, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(own[1], own[0])
    with receiver(context=context) as here:
        url = here.url.replace("http://127.0.0.1", "https://localhost")
        error = refused(entry(tmp_path, webhook=url))
        assert error.what == "localhost cannot be reached: its certificate is not trusted: self-signed certificate"
        assert here.got == []
        monkeypatch.setenv("SSL_CERT_FILE", str(own[1]))
        assert send(entry(tmp_path, webhook=url), NEWS, BreakOff()) == "answered 200"
        assert here.json() == NEWS


def test_a_proxy_is_used_where_the_environment_names_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with receiver() as here:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{here.port}")
        send(entry(tmp_path, webhook="http://chat.invalid/secret-hook"), NEWS, BreakOff())
        assert [path for path, _, _ in here.got] == ["http://chat.invalid/secret-hook"]


def test_retry_after_is_seconds_or_a_date() -> None:
    assert retry_after("120") == 120 and retry_after("-3") == 0 and retry_after("1e9") == 86400
    assert retry_after("Wed, 21 Oct 2015 07:28:00 GMT", lambda: 1445412480 - 60) == 60
    assert retry_after(None) is retry_after("soon") is retry_after("nan") is None


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot be read: No such file or directory"),
        (b"", "does not hold an address"),
        (b"https://hooks.example/secret-hook\nand more", "does not hold an address"),
        ("https://пример/secret-hook".encode(), "does not hold an address"),
        (b"secret-hook", "does not hold an address: this is no address of a webhook; it begins with https:// and has no "
                         "spaces (it is not shown here)"),
    ],
)  # fmt: skip
def test_a_file_that_holds_no_address(tmp_path: Path, content: bytes | None, words: str) -> None:
    if content is not None:
        (tmp_path / "url").write_bytes(content)
    error = refused(entry(tmp_path, webhook={"url_file": "url"}))
    assert (error.what, error.where, error.again) == (words, str(tmp_path / "url"), False)
    assert error.fix.startswith("put the whole address into it")


def test_an_address_from_a_file_or_a_credential(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with receiver() as here:
        (tmp_path / "slack").write_text(here.url + "\n")
        send(entry(tmp_path, webhook={"url_file": "slack"}), NEWS, BreakOff())
        monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
        assert refused(entry(tmp_path, webhook={"credential": "slack"})).what == (
            "there is no credential slack: systemd gives them to the service only"
        )
        monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
        send(entry(tmp_path, webhook={"credential": "slack"}), NEWS, BreakOff())
        assert len(here.got) == 2


# Mail


def test_a_mail_as_the_mail_program_gets_it(tmp_path: Path) -> None:
    program = script(tmp_path / "sendmail", 'printf "%s\\n" "$@" > "$0.arguments"; cat > "$0.mail"')
    notifier = entry(
        tmp_path, mail={"to": ["a@example.org", "b@example.org"], "from": "qconvd@box.example", "sendmail": str(program)}
    )
    news = NEWS | {"title": "m\r\nBcc: victim@example.org\r\n\r\nbody: done", "text": "line\nBcc: x\n.\nüñ \x1b[2J"}
    assert send(notifier, news, BreakOff()) == "handed to sendmail"
    assert Path(f"{program}.arguments").read_text().split() == ["-i", "a@example.org", "b@example.org"]
    raw = Path(f"{program}.mail").read_bytes()
    mail = email.message_from_bytes(raw, policy=default)
    assert mail["Subject"] == "m Bcc: victim@example.org body: done"
    assert mail["Bcc"] is None and mail["To"] == "a@example.org, b@example.org" and mail["From"] == "qconvd@box.example"
    assert mail["Date"].datetime.timestamp() == 1.5e9 and mail["Auto-Submitted"] == "auto-generated" and mail["Message-ID"]
    assert b"\r" not in raw and raw.isascii()
    body = mail.get_content()
    assert "line\nBcc: x\n.\nüñ \N{REPLACEMENT CHARACTER}[2J\n" in body and "  fp16: /out/m-fp16\n" in body
    assert body.endswith("-- \nqconvd on box\n")


def test_a_subject_in_any_script_comes_back(tmp_path: Path) -> None:
    program = script(tmp_path / "sendmail", 'cat > "$0.mail"')
    news = NEWS | {"title": "模型" * 40}
    send(entry(tmp_path, mail={"to": "a@example.org", "sendmail": str(program)}), news, BreakOff())
    raw = Path(f"{program}.mail").read_bytes()
    assert email.message_from_bytes(raw, policy=default)["Subject"] == "模型" * 40
    assert max(map(len, raw.splitlines())) < 998


@pytest.mark.parametrize(("code", "again"), [(75, True), (1, True), (67, False), (64, False)])
def test_a_mail_program_that_refuses(tmp_path: Path, code: int, again: bool) -> None:
    program = script(tmp_path / "sendmail", f"echo one >&2; echo 'no such user' >&2; exit {code}")
    error = refused(entry(tmp_path, mail={"to": "a@example.org", "sendmail": str(program)}))
    assert error.what == f"{program} failed (exit code {code}): no such user" and error.again is again


def test_a_mail_program_that_is_not_there(tmp_path: Path) -> None:
    error = refused(entry(tmp_path, mail={"to": "a@example.org", "sendmail": "none"}))
    assert str(error) == (
        f"{tmp_path}/none cannot be run: No such file or directory\n"
        "  install a program that sends mail (msmtp-mta, postfix), or name it in `sendmail:`"
    )
    assert not error.again


# Commands


def test_a_command_gets_the_news_and_no_shell_and_no_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_verysecrettoken")
    program = script(tmp_path / "tell", 'cat > "$0.json"; env > "$0.env"; printf "%s\\n" "$@" > "$0.arguments"')
    assert send(entry(tmp_path, command=[str(program), "$(id)", "a b"]), NEWS, BreakOff()) == "exit code 0"
    assert json.loads(Path(f"{program}.json").read_text()) == NEWS
    assert Path(f"{program}.arguments").read_text().splitlines() == ["$(id)", "a b"]
    told = Path(f"{program}.env").read_text()
    for line in ("QCONVD_EVENT=failed", f"QCONVD_TITLE={NEWS['title']}", "QCONVD_JOB=12", "QCONVD_ARTIFACTS=1", "QCONVD_FIX="):
        assert f"{line}\n" in told
    assert "hf_very" not in told


def test_a_command_that_fails_says_what_it_said_last(tmp_path: Path) -> None:
    program = script(tmp_path / "tell", "yes | head -c 300000 >&2; echo >&2; printf 'no \\033[2J bell\\n' >&2; exit 3")
    error = refused(entry(tmp_path, command=[str(program)]))
    assert error.what == f"{program} failed (exit code 3): no \N{REPLACEMENT CHARACTER}[2J bell" and error.again


@pytest.mark.parametrize("body", ["sleep 300", "exec 2>&-; sleep 300", "while :; do echo x >&2; done"])
def test_a_command_that_takes_too_long_is_killed_with_all_that_it_started(tmp_path: Path, body: str) -> None:
    program = script(tmp_path / "tell", f'sleep 301 & echo $! > "$0.pid"; {body}')
    for seconds in (0.5, 4, 32):
        error = refused(entry(tmp_path, command={"run": [str(program)], "timeout": f"{seconds}s"}))
        assert error.what == f"{program} was killed: it took longer than {seconds} s" and error.again
        if (pid := Path(f"{program}.pid")).exists() and pid.read_text().strip():
            break  # on a busy machine the shell may not have come so far
    child = int(Path(f"{program}.pid").read_text())
    end = time.monotonic() + 20
    while running(child):
        assert time.monotonic() < end, "its child lives on"
        time.sleep(0.02)


def test_what_a_command_leaves_in_the_background_is_not_waited_for(tmp_path: Path) -> None:
    program = script(tmp_path / "tell", 'sleep 302 & echo $! > "$0.pid"')
    assert send(entry(tmp_path, command={"run": [str(program)], "timeout": "200s"}), NEWS, BreakOff()) == "exit code 0"
    os.kill(int(Path(f"{program}.pid").read_text()), 9)


def test_an_attempt_can_be_broken_off(tmp_path: Path) -> None:
    program = script(tmp_path / "tell", "sleep 303")
    with receiver() as here:
        here.hangs = True
        for notifier in (entry(tmp_path, command=[str(program)]), entry(tmp_path, webhook=here.url)):
            stop = BreakOff()
            ended: list[NotSent] = []

            def attempt(notifier: Notify = notifier, stop: BreakOff = stop, ended: list[NotSent] = ended) -> None:
                with pytest.raises(NotSent) as caught:
                    send(notifier, NEWS, stop)
                ended.append(caught.value)

            thread = threading.Thread(target=attempt)
            thread.start()
            if notifier.webhook:
                here.came.wait(20)
            stop.end()
            thread.join(20)
            assert len(ended) == 1


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
