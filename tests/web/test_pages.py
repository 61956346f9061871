"""The pages without a browser: forms without scripts, escaping, signing in, files, health and metrics."""

from __future__ import annotations

import re
from collections.abc import Callable
from html import unescape
from pathlib import Path
from urllib.parse import urlencode

import pytest

from qconvd.errors import QconvdError
from qconvd.web.plot import Point, plot
from web_kit import Port, Reply

TOKEN = "a-long-token-0123456789"
EVIL = '<script>alert("x")</script>'


def send(web: Port, path: str, headers: dict[str, str] | None = None, **fields: str) -> Reply:
    told = {"Content-Type": "application/x-www-form-urlencoded", **(headers or {})}
    return web.ask("POST", path, urlencode(fields).encode(), told)


@pytest.fixture
def job(web: Port) -> int:
    """A job with two targets that wait."""
    source = web.ledger.source_seen("/models/m", "digest", "m", "")
    web.ledger.want(source.id, "r", web.config.recipes["r"].targets)
    return 1


def test_an_empty_page_says_what_to_do(web: Port) -> None:
    text = unescape(web.get("/").text)
    assert "Drop a model into" in text and str(web.config.folders[0].folder) in text


def test_a_page_without_jobs_says_when_it_would_begin(web: Port) -> None:
    assert "Nothing waits. What is handed in begins at once." in web.get("/").text
    web.ledger.pause("by hand", "")
    assert "Nothing waits. What is handed in waits until the pause is over." in web.get("/").text


def test_names_and_reasons_from_models_are_text(web: Port) -> None:
    source = web.ledger.source_seen(f"/models/{EVIL}", "digest", EVIL, "")
    web.ledger.want(source.id, "r", web.config.recipes["r"].targets)
    (target,) = [t for t in web.ledger.targets() if t.format == "fp16"]
    web.ledger.cancel([target.id])
    web.ledger.source_refused(f"/models/2{EVIL}", EVIL, "", QconvdError(EVIL, fix=EVIL))
    for path in ("/", "/jobs/1", "/plan?model=%3Cscript%3E", "/jobs/99"):
        text = web.get(path).text
        assert "<script>alert" not in text and text.count("<script") == 1, path
    assert "&lt;script&gt;" in web.get("/jobs/1").text


def test_what_is_refused_and_who_cannot_be_told_is_shown(web: Port) -> None:
    web.ledger.source_refused("/models/odd", "odd", "", QconvdError("is a web page", fix="download it again"))
    web.ledger.notification_failed(web.ledger.notify(f"hook {EVIL}", {}), "answers 503", None)
    text = web.get("/").text
    seen = re.search(r"<h3>Seen there</h3>(.*?)</ul>", text, re.DOTALL)
    assert seen
    assert " ".join(re.sub(r"<[^>]+>", " ", seen[1]).split()) == "odd not converted is a web page download it again"
    assert "<strong>Cannot be told:</strong> hook &lt;script&gt;alert(&#34;x&#34;)&lt;/script&gt;: answers 503" in text


def test_buttons_work_without_scripts(web: Port, job: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qconvd.web.asking.WAIT", 0.1)
    form = re.search(r'name="form" value="(\w+)"', web.get("/jobs/1").text)
    assert form
    reply = send(web, "/jobs/1/cancel", form=form[1])
    assert reply.status == 202 and "the daemon has not answered yet" in reply.text and 'href="/jobs/1"' in reply.text
    one, other = (t.id for t in web.ledger.targets())
    send(web, f"/jobs/1/retry?target={one}&target={other}", form=form[1])
    send(web, "/models", form=form[1], model="alice/m", recipe="r")
    send(web, "/jobs/1/priority", form=form[1], priority="7")
    assert send(web, "/jobs/1/priority", form=form[1], priority="x").status == 400
    send(web, "/pause", form=form[1])
    send(web, "/resume", form=form[1])
    asked = [(r.kind, dict(r.arguments)) for r in web.ledger.requests()]
    assert asked == [
        ("cancel", {"ids": ["1"]}), ("retry", {"ids": [one, other]}), ("add", {"path": "hub:alice/m", "recipe": "r"}),
        ("priority", {"job": "1", "priority": 7}), ("pause", {"reason": ""}), ("resume", {}),
    ]  # fmt: skip


def test_a_form_of_somebody_else_does_nothing(web: Port, job: int) -> None:
    good = re.search(r'name="form" value="(\w+)"', web.get("/jobs/1").text)
    assert good
    for fields, headers, status in (
        ({}, {}, 403), ({"form": "guess"}, {}, 403), ({"form": good[1][:-1]}, {}, 403),
        ({"form": good[1]}, {"Origin": "http://evil.example"}, 403), ({"form": good[1]}, {"Sec-Fetch-Site": "cross-site"}, 403),
        ({"form": good[1]}, {"Content-Type": "text/plain"}, 415),
    ):  # fmt: skip
        for path in ("/jobs/1/cancel", "/models"):
            assert send(web, path, headers, **fields).status == status, (fields, headers)
    assert send(web, "/jobs/1/explode", form=good[1]).status == 404
    assert send(web, "/jobs/2/cancel", form=good[1]).status == 400
    assert send(web, "/models", form=good[1], model="a/b/c").status == 400
    assert web.get("/jobs/1/cancel").status == 405
    assert web.ledger.requests() == []


def test_a_pause_is_told_with_a_button_that_ends_it(web: Port, job: int) -> None:
    assert 'action="/pause"' in web.get("/").text
    web.ledger.pause("by hand", "for the night")
    text = web.get("/").text
    assert "Nothing new is started: paused (by hand): for the night" in text and 'action="/resume"' in text
    assert web.get("/api/v1/status").json["pauses"][0]["reason"] == "for the night"
    assert 'qconvd_paused{cause="by hand"} 1' in web.get("/metrics").text


def test_signing_in(opened: Callable[..., Port], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qconvd.web.html.WRONG_TOKEN_SECONDS", 0)
    (tmp_path / "token").write_text(TOKEN)
    web = opened(f"{{listen: '127.0.0.1:0', token_file: {tmp_path}/token}}")
    away = web.get("/", Accept="text/html")
    assert (away.status, away.headers["location"]) == (303, "/sign-in")
    form = re.search(r'name="form" value="(\w+)"', web.get("/sign-in").text)
    assert form
    wrong = send(web, "/sign-in", form=form[1], token="guess")
    assert wrong.status == 403 and "That is not the token" in wrong.text and "set-cookie" not in wrong.headers
    assert send(web, "/sign-in", token=TOKEN).status == 403, "a form of somebody else"
    right = send(web, "/sign-in", {"X-Forwarded-Proto": "https"}, form=form[1], token=TOKEN)
    cookie = right.headers["set-cookie"]
    assert right.status == 303 and TOKEN not in cookie
    assert all(word in cookie for word in ("HttpOnly", "SameSite=strict", "Path=/", "Secure"))
    assert web.get("/", Cookie=cookie.partition(";")[0]).status == 200


def test_without_a_token_there_is_nothing_to_sign_in_to(web: Port) -> None:
    assert web.get("/sign-in").headers["location"] == "/"


def test_files_of_the_page_are_asked_for_again_only_if_they_changed(web: Port) -> None:
    first = web.get("/static/qconvd.css")
    assert first.status == 200 and first.headers["content-type"].startswith("text/css")
    assert web.get("/static/qconvd.css", If_None_Match=first.headers["etag"]).status == 304
    assert web.get("/static/pages.py").status == 404


def test_nothing_of_the_page_comes_from_elsewhere_or_stands_in_it(web: Port, job: int) -> None:
    for path in ("/", "/jobs/1"):
        text = web.get(path).text
        assert not re.search(r'(src|href|action)="(https?:)?//', text) and not re.search(r"\son\w+=|style=|<script>", text)


def test_health(web: Port) -> None:
    assert [web.get(path).status for path in ("/healthz", "/readyz")] == [200, 200]
    web.server.turned("disk I/O error: /secret/path")
    reply = web.get("/readyz")
    assert (web.get("/healthz").status, reply.status, reply.text) == (200, 503, "it cannot go on\n")
    web.server.turned(stopping=True)
    assert web.get("/readyz").text == "it is stopping\n"
    web.server.turned()
    web.server._site._clock = lambda: 1e9
    assert web.get("/healthz").status == 503 and "its loop has not gone round for" in web.get("/healthz").text


def test_metrics_are_well_formed_and_name_nobody(web: Port, job: int) -> None:
    text = web.get("/metrics").text
    known: dict[str, str] = {}
    for line in text.splitlines():
        if line.startswith("# "):
            _, what, name, rest = line.split(" ", 3)
            known[name] = rest if what == "TYPE" else known.get(name, "")
            continue
        found = re.fullmatch(r'([a-z_]+)(?:\{((?:[a-z]+="[^"\\\n]*",?)*)\})? (\d[\d.e+-]*)', line)
        assert found and known[found[1]] in ("counter", "gauge"), line
        assert found[1].endswith("_total") == (known[found[1]] == "counter")
    assert 'qconvd_jobs{state="waiting"} 1' in text and 'qconvd_targets{format="gguf",state="waiting"} 1' in text
    assert "/models" not in text and str(web.root) not in text
    age = re.search(r"^qconvd_queue_age_seconds (\S+)", text, re.MULTILINE)
    assert age and float(age[1]) >= 0


def test_each_event_is_counted_once(web: Port, job: int) -> None:
    ids = [t.id for t in web.ledger.targets()]
    web.ledger.cancel(ids[:1])
    for _ in range(2):
        assert 'qconvd_targets_ended_total{format="fp16",state="cancelled"} 1\n' in web.get("/metrics").text
    web.ledger.retry(ids[:1])
    web.ledger.cancel(ids[:1])
    assert 'qconvd_targets_ended_total{format="fp16",state="cancelled"} 2\n' in web.get("/metrics").text


def test_the_plot() -> None:
    assert plot([Point("fp16", 100, 0.0)]) is None
    drawn = plot(
        [Point("fp16", 1 << 20, 0.0), Point("q8", 1 << 19, 0.004), Point("q4", 1 << 18, 0.05), Point("q4b", 1 << 18, 0.05)]
    )
    assert drawn and [t.text for t in drawn.ys] == ["exact", "0.1 %", "1 %", "10 %"]
    assert [t.text for t in drawn.xs] == ["0 MiB", "0.2 MiB", "0.4 MiB", "0.6 MiB", "0.8 MiB", "1 MiB"]
    marks = {m.label: m for m in drawn.marks}
    assert marks["q4"].x < marks["q8"].x < marks["fp16"].x and marks["q4"].y < marks["q8"].y < marks["fp16"].y
    assert (marks["q4"].label_x, marks["q4"].label_y) != (marks["q4b"].label_x, marks["q4b"].label_y)
    assert all(drawn.left <= m.x <= drawn.right and drawn.top <= m.y <= drawn.bottom for m in drawn.marks)
    assert plot([Point("a", 0, 0.0), Point("b", 0, 0.0)])
