"""The test server is worth its name: huggingface_hub uploads to it, and its faults do what they say."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError

from hub_server import HubServer


@pytest.fixture
def alice(hub_server: HubServer) -> HfApi:
    return HfApi(endpoint=hub_server.url, token="hf_alice")


def test_uploads_small_large_and_in_parts(hub_server: HubServer, alice: HfApi, tmp_path: Path) -> None:
    contents = {"README.md": b"# Hi\n", "a.safetensors": b"x" * 100, "b.gguf": bytes(33 << 20)}
    for name, data in contents.items():
        (tmp_path / name).write_bytes(data)
    alice.create_repo("alice/up", private=True)
    alice.create_repo("alice/up", exist_ok=True)
    alice.upload_folder(repo_id="alice/up", folder_path=tmp_path, commit_message="all of it")
    there = hub_server.files("alice/up")
    assert {n: there[n] for n in contents} == {n: hashlib.sha256(d).hexdigest() for n, d in contents.items()}
    assert hub_server.log("PUT /_lfs/.*/part/5") and hub_server.about("alice/up")["private"]
    assert hub_server.commits("alice/up")[0]["paths"] == sorted(contents)
    hub_server.forget()
    alice.upload_folder(repo_id="alice/up", folder_path=tmp_path, commit_message="again")
    assert not hub_server.log("PUT") and len(hub_server.commits("alice/up")) == 2


def test_branches_and_parents(hub_server: HubServer, alice: HfApi) -> None:
    first = hub_server.push("alice/a", texts={"x": "1"})
    alice.create_branch("alice/a", branch="other")
    with pytest.raises(HfHubHTTPError, match="already exists"):
        alice.create_branch("alice/a", branch="other")
    alice.create_commit("alice/a", [CommitOperationAdd("y", b"2")], commit_message="y", revision="other")
    assert "y" in hub_server.files("alice/a", "other") and "y" not in hub_server.files("alice/a")
    alice.create_commit("alice/a", [CommitOperationAdd("y", b"2")], commit_message="y")
    with pytest.raises(HfHubHTTPError, match="commit has happened since"):
        alice.create_commit("alice/a", [CommitOperationAdd("z", b"3")], commit_message="z", parent_commit=first)


def test_who_may_write(hub_server: HubServer) -> None:
    hub_server.push("alice/a", texts={"x": "1"})
    for token, words in (("hf_bob", "write token"), ("hf_reader", "write token"), ("hf_none", "Invalid credentials")):
        with pytest.raises(HfHubHTTPError, match=words):
            HfApi(endpoint=hub_server.url, token=token).create_commit(
                "alice/a", [CommitOperationAdd("y", b"2")], commit_message="y"
            )
    with pytest.raises(HfHubHTTPError, match="rights to create"):
        HfApi(endpoint=hub_server.url, token="hf_bob").create_repo("alice/b")


def test_a_lost_reply_to_a_commit_is_a_commit(hub_server: HubServer, alice: HfApi) -> None:
    hub_server.push("alice/a", texts={"x": "1"})
    hub_server.fault("POST .*/commit/", "lost")
    with pytest.raises(Exception, match=r"disconnected|reset"):
        alice.create_commit("alice/a", [CommitOperationAdd("y", b"2")], commit_message="y")
    assert "y" in hub_server.files("alice/a")
    alice.create_commit("alice/a", [CommitOperationAdd("y", b"2")], commit_message="y")
    assert [c["title"] for c in hub_server.commits("alice/a")] == ["y", "pushed", "initial commit"]


def test_stale_and_changed_answers(hub_server: HubServer, alice: HfApi) -> None:
    first = hub_server.push("alice/a", texts={"x": "1"})
    second = hub_server.push("alice/a", texts={"x": "2"})
    hub_server.fault("GET /api/models/alice/a", "stale")
    assert [alice.model_info("alice/a").sha, alice.model_info("alice/a").sha] == [first, second]
    hub_server.fault("GET /alice/a/resolve", "flip")
    assert Path(alice.hf_hub_download("alice/a", "x")).read_bytes() == b"3"


def test_skipped_and_counted(hub_server: HubServer, alice: HfApi) -> None:
    hub_server.push("alice/a", texts={"x": "1"})
    hub_server.fault("GET /api/models/alice/a", skip=1, times=2, status=500)
    codes = []
    for _ in range(4):
        try:
            alice.model_info("alice/a")
            codes.append(200)
        except HfHubHTTPError as error:
            codes.append(error.response.status_code)
    assert codes == [200, 500, 500, 200]
