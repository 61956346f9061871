"""The API over a real daemon and a real port, and on a ledger of its own: what it answers and what it refuses."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from daemon_kit import Home, end, move_in, tiny_model
from qconvd.ledger import Ledger
from qconvd.web.api import ENDPOINTS
from qconvd.web.asking import locator_of
from qconvd.wire import PREFIX
from web_kit import Client, Port, client_of

API = "/api/v1"


def test_a_model_from_the_plan_to_the_artifact_and_no_secret_on_the_way(home: Home) -> None:
    secrets = {"hub": "hf_verysecrettoken", "web": "web-token-very-secret", "hook": "webhook-very-secret"}
    for name, value in secrets.items():
        (home.root / f"{name}.secret").write_text(value)
    home.web = "{listen: '127.0.0.1:0', token_file: ./web.secret}"
    home.configure("[fp16, bf16]", more="hub: {token_file: ./hub.secret, webhook_secret_file: ./hook.secret}\n")
    (home.inbox / "half").mkdir()
    (home.inbox / "half" / "config.json").write_text('{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}')
    home.start()
    web = client_of(home)
    assert web.get(f"{API}/status").status == 401
    web.headers["Authorization"] = f"Bearer {secrets['web']}"

    away = tiny_model(home.root / "away" / "m")
    plan = web.get(f"{API}/plan?model={away}").json
    assert [(a["target"], a["bytes"] > 0) for a in plan["artifacts"]] == [("fp16", True), ("bf16", True)]
    assert home.targets() == [], "a plan queues nothing"
    said = web.post(f"{API}/models", {"model": str(away)})
    assert (said.status, said.json["answer"]) == (200, "job 1: 2 artifacts will be made")
    assert web.get(f"{API}/requests/{said.json['request']}").json == said.json
    home.done(2)

    job = web.get(f"{API}/jobs/1").json
    assert [t["state"] for t in job["targets"]] == ["done", "done"]
    assert job["history"][-1]["to"] == "done" and job["history"][0]["from"] == ""
    made = web.get(f"{API}/jobs/1/artifacts").json["artifacts"]
    assert [a["label"] for a in made] == ["fp16", "bf16"]
    assert made[0]["errors"]["max_error"] == 0 and made[0]["bytes"] == plan["artifacts"][0]["bytes"]
    models = web.get(f"{API}/models").json
    assert [(m["name"], m["state"], m["jobs"]) for m in models["models"]] == [("m", "present", [1])]
    assert (models["watched"][0]["place"], models["seen"][0]["name"]) == (str(home.inbox), "half")

    again = web.post(f"{API}/jobs/1/retry")
    assert (again.status, again.json["answer"]) == (200, "nothing to try again")
    other = web.post(f"{API}/jobs/1/retry", {"targets": ["0123456789"]})
    assert (other.status, other.json["message"]) == (404, "job 1 has no target 0123456789")
    refused = web.post(f"{API}/jobs/1/publish")
    assert (refused.status, refused.json["state"]) == (409, "refused") and "does not publish" in refused.json["answer"]
    one = job["targets"][1]["id"]
    assert web.post(f"{API}/jobs/1/reconvert", {"targets": [one]}).json["answer"] == "1 artifact will be made again"
    assert web.post(f"{API}/jobs/1/cancel", {"targets": [one]}).json["answer"] == "1 artifact cancelled"
    assert [t["state"] for t in web.get(f"{API}/jobs/1").json["targets"]] == ["done", "cancelled"]

    assert web.post(f"{API}/jobs/1/priority", {"priority": 5}).json["answer"] == "job 1 has priority 5"
    assert web.post(f"{API}/pause", {"reason": "lunch"}).json["answer"].startswith("paused: no task is started")
    assert web.get(f"{API}/status").json["pauses"][0]["reason"] == "lunch"
    assert web.post(f"{API}/resume").json["answer"] == "goes on" and web.post(f"{API}/resume").status == 409

    text = home.config.read_text()
    home.config.write_text(text.replace("everyday", "nightly"))
    assert web.post(f"{API}/reload").json["answer"] == "the configuration was read again"
    assert list(web.get(f"{API}/config").json["recipes"]) == ["nightly"]
    home.config.write_text(text + "frob: 1\n")
    bad = web.post(f"{API}/reload")
    assert bad.status == 409 and "there is no key 'frob' here" in bad.json["answer"]
    home.config.write_text(text)

    with (home.state / "logs" / "1.log").open("a") as file:
        file.write("asked with hf_verysecrettoken\n")
    assert "asked with hf_(token)" in web.get(f"{API}/jobs/1/log").json["lines"]
    paths = [f"{PREFIX}{e.path}".replace("{job}", "1").replace("{request}", "1") for e in ENDPOINTS if e.method == "GET"]
    for path in [*paths, f"{API}/plan?model={away}", f"{API}/openapi.json"]:
        reply = web.get(path)
        assert not any(value in reply.text for value in secrets.values()), path
        assert ".secret" not in reply.text, path
    web.headers["Authorization"] = "Bearer wrong-but-close-web-token"
    assert web.get(f"{API}/status").status == 401
    end(home)
    assert not any(value in home.log() for value in [*secrets.values(), "wrong-but-close"])


def test_a_job_that_runs_is_cancelled(home: Home) -> None:
    home.web = "{listen: '127.0.0.1:0'}"
    home.configure()
    home.start()
    web = client_of(home)
    frozen = home.freeze("convert") if move_in(home, tiny_model(home.root / "away" / "m")) else []
    assert frozen
    running = web.get(f"{API}/status").json["running"]
    assert [(r["kind"], r["model"], [t["label"] for t in r["targets"]]) for r in running] == [("convert", "m", ["fp16"])]
    assert web.post(f"{API}/jobs/1/cancel", {}).json["answer"] == "1 artifact cancelled"
    assert web.get(f"{API}/jobs?state=cancelled").json["jobs"][0]["state"] == "cancelled"
    assert web.get(f"{API}/jobs?state=done").json == {"jobs": [], "next": None}
    home.kill()


@pytest.mark.parametrize(
    ("path", "status", "told"),
    [
        ("/jobs/99", 404, "there is no job 99"), ("/jobs/99/log", 404, "there is no job 99"),
        ("/jobs/99/artifacts", 404, "there is no job 99"), ("/requests/7", 404, "the ledger knows no request 7"),
        (f"/log?of={'9' * 64}", 404, "there is no job 9999"), ("/log?of=1&after=x", 422, "query.after: "),
        ("/jobs/x", 422, "path.job: 'x' is not a whole number"), ("/jobs/0", 422, "path.job: '0' is too little"),
        (f"/jobs/{1 << 70}", 422, "path.job:"), ("/jobs?limit=0", 422, "query.limit: '0' is too little"),
        ("/jobs?limit=1&limit=2", 422, "query: limit is given twice"), ("/jobs?state=x", 422, "query.state: 'x' is none of"),
        ("/jobs?limt=1", 422, "query.limt: there is no key 'limt' here (did you mean limit?)"), ("/nothing", 404, "there is"),
        ("/plan", 422, "query.model: this key is missing"), ("/plan?model=/nowhere", 400, "there is nothing at this path"),
        ("/plan?model=./m", 400, "is no absolute path"), ("/plan?model=a/b/c", 400, "'a/b/c' is no repository of the Hub"),
        ("/plan?model=https://evil.example/a/b", 400, "is no page of a model on the Hub"),
        ("/plan?model=/x&recipe=q", 400, "there is no recipe 'q'"), ("/plan?model=%00", 422, "query.model"),
    ],
)  # fmt: skip
def test_what_cannot_be_answered(web: Port, path: str, status: int, told: str) -> None:
    reply = web.get(f"{API}{path}")
    assert (reply.status, reply.json["status"]) == (status, status), reply.json
    assert reply.json["message"].startswith(told), reply.json


@pytest.mark.parametrize(
    ("path", "body", "status", "told"),
    [
        ("/jobs/1/retry", {}, 404, "there is no job 1"),
        ("/requests", {"kind": "retry", "of": ["9" * 64]}, 404, "there is no job 9999"),
        ("/requests", {"kind": "retry", "of": ["1"] * 1001}, 422, "body.of: "),
        ("/models", {}, 422, "body.model: this key is missing"),
        ("/models", {"model": "/m", "recipe": "s"}, 400, "there is no recipe 's'"),
        ("/models", [], 422, "body: this must be a mapping of keys"), ("/models", b"{", 400, "the body is not valid JSON"),
        ("/models", b"[" * 100_000, 400, "the body is not valid JSON"), ("/models", b'{"model": NaN}', 400, "the body is not"),
        ("/models", {"model": "a/b", "more": 1}, 422, "body.more: there is no key 'more' here"),
        ("/reload", {"x": 1}, 422, "body.x: there is no key 'x' here"), ("/status", {}, 405, "this path does not take that"),
    ],
)  # fmt: skip
def test_what_is_not_done(web: Port, path: str, body: object, status: int, told: str) -> None:
    reply = web.ask("POST", f"{API}{path}", body, {"Content-Type": "application/json"})
    assert (reply.status, reply.json["message"].startswith(told)) == (status, True), reply.json
    assert web.ledger.requests() == []


def test_a_request_that_nobody_answers_stays(web: Port, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qconvd.web.asking.WAIT", 0.1)
    reply = web.post(f"{API}/models", {"model": "alice/m"})
    assert (reply.status, reply.json["state"]) == (202, "open")
    assert [(r.kind, dict(r.arguments)) for r in web.ledger.requests()] == [("add", {"path": "hub:alice/m", "recipe": "r"})]
    assert (web.config.state / "wake").exists()


def test_nobody_waits_while_many_jobs_are_looked_up(web: Port, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[str] = []
    answered = threading.Event()
    monkeypatch.setattr("qconvd.web.asking.WAIT", 0.1)
    monkeypatch.setattr(Ledger, "find", lambda _, id: looked.append(id) or answered.wait(20))
    with ThreadPoolExecutor() as pool:
        asked = pool.submit(web.post, f"{API}/requests", {"kind": "retry", "of": ["2", "1", "2"] * 300})
        assert web.get("/healthz").status == 200
        answered.set()
        assert asked.result().status == 202
    assert looked == ["2", "1"]
    assert [r.arguments for r in web.ledger.requests()] == [{"ids": ["2", "1"]}]


def test_jobs_come_in_pages(web: Port) -> None:
    recipe = web.config.recipes["r"]
    for number in range(5):
        source = web.ledger.source_seen(f"/models/{number}", f"digest {number}", f"m{number}", "")
        web.ledger.want(source.id, "r", recipe.targets)
    first = web.get(f"{API}/jobs?limit=2").json
    assert ([j["job"] for j in first["jobs"]], first["next"]) == ([5, 4], 4)
    last = web.get(f"{API}/jobs?limit=4&before=4").json
    assert ([j["job"] for j in last["jobs"]], last["next"]) == ([3, 2, 1], None)
    models = web.get(f"{API}/models?limit=3&before=5").json
    assert ([m["name"] for m in models["models"]], models["next"]) == (["m3", "m2", "m1"], 2)
    events = web.get(f"{API}/history?since=0&limit=3").json
    assert [e["id"] for e in events["events"]] == [1, 2, 3] and events["next"] == 3
    assert web.get(f"{API}/history?limit=1").json["events"][0]["id"] == len(web.ledger.history())


def test_the_web_s_ledger_cannot_be_changed_by_reading(web: Port, tmp_path: Path) -> None:
    import sqlite3

    reading = Ledger(web.config.state / "ledger.sqlite", only_read=True)
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        reading.request("reload")
    reading.close()


@pytest.mark.parametrize(
    ("text", "locator"),
    [("alice/m", "hub:alice/m"), (" hub:alice/m@dev ", "hub:alice/m@dev"), ("/models/m", "/models/m"),
     ("/models/m ", "/models/m "), (" /m", "/m"),
     ("https://huggingface.co/alice/m", "hub:alice/m"), ("https://huggingface.co/alice/m/tree/dev", "hub:alice/m@dev")],
)  # fmt: skip
def test_how_a_model_is_named(text: str, locator: str) -> None:
    assert locator_of(text) == locator


def test_a_busy_port_is_told_and_all_else_goes_on(home: Home, web: Port) -> None:
    home.web = f"{{listen: '{web.address}'}}"
    home.configure()
    home.start()
    home.wait(lambda: f"{web.address}: cannot listen: Address already in use" in home.log(), "the error")
    home.wait(lambda: "is watched by events" in home.log(), "the watch")
    end(home)


def test_a_port_is_closed_before_it_served(opened: Callable[..., Port]) -> None:
    web = opened("{listen: off}")
    for _ in range(3):
        web.server.listen("127.0.0.1:0")
        address = web.server.address
        web.server.listen(None)
        with pytest.raises(ConnectionRefusedError):
            Client(address).get("/healthz")
    assert web.server.address == ""


def test_who_waits_for_the_daemon_is_told_when_the_port_closes(web: Port, caplog: pytest.LogCaptureFixture) -> None:
    with ThreadPoolExecutor() as others:
        waiting = others.submit(web.post, f"{API}/resume")
        deadline = time.monotonic() + 20
        while not web.ledger.requests() and time.monotonic() < deadline:
            time.sleep(0.01)
        web.server.close()
        reply = waiting.result(20)
    assert (reply.status, reply.json["state"]) == (202, "open")
    assert caplog.records == []


def test_once_opens_no_port(home: Home) -> None:
    home.web = "{listen: '127.0.0.1:0'}"
    home.configure()
    assert home.once() == 0
    assert "qconvd runs" in home.log() and "listens on" not in home.log()
