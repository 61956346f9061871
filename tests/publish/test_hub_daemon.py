"""The daemon publishes to the Hub: names, states, waiting, and not a trace of the token anywhere."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from daemon_kit import Home, tiny_model
from hub_server import HubServer

TO_HUB = "publish: [{hub: {owner: alice}}]"


@pytest.fixture
def home(tmp_path: Path, hub_server: HubServer, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.setenv("HF_TOKEN", "hf_alice")
    home = Home(tmp_path)
    configure(home, hub_server)
    return home


def configure(home: Home, server: HubServer, targets: str = "[fp16]", publish: str = TO_HUB, **more: str) -> None:
    home.configure(targets, publish=publish, settle="0s", more=f"hub: {{endpoint: '{server.url}', timeout: 60s}}\n", **more)


def titles(server: HubServer, repo: str, branch: str = "main") -> list[str]:
    return [c["title"] for c in server.commits(repo, branch)][:-1]


def test_artifacts_go_to_repositories_called_as_the_community_calls_them(
    home: Home, hub_server: HubServer, glass: Path
) -> None:
    configure(home, hub_server, "[fp16, gguf: [q8_0, q4_0]]")
    shutil.copytree(glass, home.inbox / "glass")
    assert home.once() == 0, home.log()
    assert hub_server.repos() == ["alice/glass-GGUF", "alice/glass-fp16"]
    assert titles(hub_server, "alice/glass-GGUF") == ["Add glass-Q8_0, glass-Q4_0"], "together, when the last is made"
    for folder in ("glass-GGUF", "glass-fp16"):
        here = {k.split("/", 1)[1]: v for k, v in home.files().items() if k.startswith(f"{folder}/")}
        there = hub_server.files(f"alice/{folder}")
        assert {k: v for k, v in there.items() if k not in ("README.md", ".gitattributes")} == here
    (first, *_) = [t for t in home.targets("done") if t.label == "fp16"]
    commit = hub_server.commits("alice/glass-fp16")[0]["id"]
    assert first.reason == f"published to alice/glass-fp16 (commit {commit[:8]})"
    with home.ledger() as ledger:
        assert {p.commit_id for p in ledger.publications(target=first.id)} == {commit}
    home.says("glass", f"published to alice/glass-fp16 (commit {commit[:8]})")


def test_a_server_that_asks_for_patience_is_waited_for(home: Home, hub_server: HubServer) -> None:
    tiny_model(home.inbox / "m")
    hub_server.fault("POST .*/commit/", status=429, headers={"Retry-After": "4000"}, times=1)
    home.start()
    home.says("m", "attempt 1 failed: ")
    (target,) = home.targets("ready")
    with home.ledger() as ledger:
        (queued,) = home.wait(lambda: ledger.tasks("queued"), "the next attempt")
    assert queued.not_before - queued.created_at > 3990, "no sooner than it asks for"
    assert "the Hub" in target.reason
    assert home.ask("retry", ids=["1"]).answer == "1 artifact will be tried again"
    home.done(1)
    home.stop()
    assert titles(hub_server, "alice/m-fp16") == ["Add m-fp16"]


def test_a_missing_permission_stops_and_is_told(home: Home, hub_server: HubServer) -> None:
    configure(home, hub_server, publish="publish: [{hub: {owner: bob}}]", watch="after: delete")
    tiny_model(home.inbox / "m")
    assert home.once() == 1
    (target,) = home.targets("failed")
    assert (
        target.reason == "the token from $HF_TOKEN may not make the repository bob/m-fp16: it has no permission to write there"
    )
    assert "give it write permission for repositories of bob" in home.status("m")
    assert (home.inbox / "m").exists(), "what is not published keeps its source"
    with home.ledger() as ledger:
        assert len([t for t in ledger.tasks() if t.kind == "publish"]) == 1, "no retry mends it"


def test_another_token_publishes_what_was_refused(home: Home, hub_server: HubServer) -> None:
    token = home.root / "token"
    token.write_text("hf_bob\n")
    more = f"hub: {{endpoint: '{hub_server.url}', token_file: ./token}}\n"
    home.configure("[fp16]", publish=TO_HUB, settle="0s", more=more)
    tiny_model(home.inbox / "m")
    home.start()
    home.says("m", "may not make the repository alice/m-fp16")
    assert home.ask("reload").answer == "the configuration was read again"
    assert home.targets("failed"), "the same token would be refused again"
    token.write_text("hf_alice\n")
    home.ask("reload")
    home.done(1)
    home.stop()
    assert titles(hub_server, "alice/m-fp16") == ["Add m-fp16"]


def test_publishing_goes_on_beside_converting(home: Home, hub_server: HubServer) -> None:
    """One worker converts at most; the upload that hangs takes nothing from it."""
    tiny_model(home.inbox / "a")
    hub_server.fault("POST .*a-fp16/commit/", kind="hold")
    home.start()
    home.wait(lambda: hub_server.held() == 1, "the upload to hang")
    tiny_model(home.inbox / "b", seed=2)
    (made,) = home.done(1)
    assert made.folder == "b-fp16", "converted and published meanwhile"
    hub_server.calm()
    home.done(2)
    home.stop()


def test_nothing_that_is_written_holds_the_token(home: Home, hub_server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where things go wrong, and the client's own messages quote requests."""
    secret = "hf_alice"
    configure(home, hub_server, "[fp16]", publish="publish: [{hub: {owner: alice}}, {hub: {owner: bob}}, {folder: ./out}]")
    tiny_model(home.inbox / "m")
    hub_server.fault("POST .*/commit/", status=500, times=-1)
    home.start()
    home.says("m", "attempt 1 failed: ")
    assert (home.root / "out/m-fp16/README.md").exists(), "a server that is away holds up no other place"
    hub_server.calm()
    home.ask("retry", ids=["1"])
    home.says("m", "may not make the repository bob/m-fp16")
    home.stop()
    assert titles(hub_server, "alice/m-fp16") == ["Add m-fp16"]
    looked = 0
    for path in sorted(p for place in (home.root, hub_server.folder) for p in place.rglob("*") if p.is_file()):
        assert secret.encode() not in path.read_bytes(), path
        looked += 1
    assert (home.state / "ledger.sqlite").exists() and list((home.state / "logs").glob("*.log")) and looked > 15
