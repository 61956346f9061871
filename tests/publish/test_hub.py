"""Publishing to the Hub: the real client against a real server, what the server then holds, and every fault on the way."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from converted import converted
from gguf_readers import Llama, generated
from hub_server import HubServer
from qconvd.engine.manifest import Manifest, read_manifest, write_manifest
from qconvd.engine.run import Cancelled
from qconvd.errors import HubBusy, HubRefused, QconvdError
from qconvd.hub.client import Hub
from qconvd.hub.tokens import Token
from qconvd.publish import hub as publishing
from qconvd.publish.artifact import Artifact, held
from qconvd.publish.modelcard import card, compose, render
from qconvd.publish.upstream import Upstream
from qconvd.quality.verify import verify_path
from qconvd.tasks import PublishSpec

# Of huggingface_hub's own way to call httpx.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
REPO = "alice/glass-fp16"
ALICE = Token("hf_alice", "$HF_TOKEN")
COMMIT = "POST .*/commit/"


def never() -> bool:
    return False


def verified(source: Path, out: Path, form: str, **options: Any) -> Path:
    """An artifact as it lies in the output folder."""
    made = converted(source, out, form, **options)
    manifest = replace(made.manifest, verification=made.verify().as_dict(), extra={"variant": form}, source={"name": "glass"})
    write_manifest(made.folder / "qconvd.json", manifest)
    return made.folder


@pytest.fixture(scope="module")
def fp16(glass: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return verified(glass, tmp_path_factory.mktemp("fp16"), "fp16")


@pytest.fixture(scope="module")
def ggufs(glass: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two types in one folder."""
    folder = tmp_path_factory.mktemp("both")
    for name in ("Q8_0", "Q4_0"):
        made = verified(glass, tmp_path_factory.mktemp(name), "gguf", types=[name])
        manifest = read_manifest(made / "qconvd.json")
        (made / manifest.files[0].path).rename(folder / f"glass-{name}.gguf")
        files = (replace(manifest.files[0], path=f"glass-{name}.gguf"),)
        named = replace(manifest, artifact=f"glass-{name}", files=files, extra={"variant": name})
        write_manifest(folder / f".qconvd/glass-{name}.json", named)
    return folder


@dataclass
class Publisher:
    """Publishes as alice, and knows what the server holds."""

    server: HubServer
    hub: Hub
    asked: list[str] = field(default_factory=list)

    def __call__(self, *artifacts: Artifact, repo: str = REPO, revision: str = "main", **options: Any) -> dict[str, Any]:
        place = PublishSpec(destination=f"hub:{repo}", revision=revision, options=options)

        def described(there: list[Manifest], existing: str, where: str) -> str:
            found = card(Upstream("glass"), there, title=repo, repo=repo, revision=revision, by="alice")
            return compose(*render(found), existing, where)

        return publishing.publish(self.hub, place, artifacts, described, lambda: self.asked.append("fence"), never)

    def holds(self, *artifacts: Artifact, repo: str = REPO, revision: str = "main") -> None:
        """Every file is there, by the bytes on the server's disk."""
        there = self.server.files(repo, revision)
        for artifact in artifacts:
            assert {f.path: there.get(f.path) for f in artifact.files} == {f.path: f.sha256 for f in artifact.files}
            assert self.server.read(repo, artifact.place, revision) == artifact.manifest.to_json()
        assert "README.md" in there


@pytest.fixture
def publish(hub_server: HubServer) -> Publisher:
    return Publisher(hub_server, Hub(hub_server.url, ALICE, timeout=5.0))


@pytest.fixture
def artifact(fp16: Path) -> Artifact:
    return held("t1", fp16, "qconvd.json", never)


@pytest.fixture
def both(ggufs: Path) -> list[Artifact]:
    return [held(name, ggufs, f".qconvd/glass-{name}.json", never) for name in ("Q8_0", "Q4_0")]


def made_by(server: HubServer, repo: str = REPO, branch: str = "main") -> list[str]:
    """Titles of the commits of a branch, without the one that a repository begins with."""
    return [c["title"] for c in server.commits(repo, branch)][:-1]


def test_a_repository_is_made_and_filled_by_one_commit(publish: Publisher, artifact: Artifact) -> None:
    said = publish(artifact, private=True)
    publish.holds(artifact)
    (commit, _) = publish.server.commits(REPO)
    assert said == {"commit": commit["id"], "told": f"published to {REPO} (commit {commit['id'][:8]})", "dry_run": False}
    assert set(commit["paths"]) == {"README.md", "qconvd.json", *(f.path for f in artifact.files)}
    assert publish.server.about(REPO)["private"] is True
    assert publish.asked == ["fence"] * 2, "asked before the repository is made and before the commit"


@pytest.mark.parametrize(
    ("settings", "asked", "private"),
    [
        ({}, None, False),
        ({"private": True}, None, True),
        ({"gated": "manual"}, None, True),
        ({"private": True}, False, False),
        ({}, True, True),
    ],
)
def test_a_repository_is_as_private_as_the_model_that_it_is_made_from(
    publish: Publisher, artifact: Artifact, glass: Path, settings: dict[str, Any], asked: bool | None, private: bool
) -> None:
    publish.server.push("alice/glass", glass)
    publish.server.settings("alice/glass", **settings)
    origin = replace(artifact, manifest=replace(artifact.manifest, source={"name": "glass", "locator": "hub:alice/glass"}))
    publish(origin, **({} if asked is None else {"private": asked}))
    assert publish.server.about(REPO)["private"] is private


def test_what_was_made_of_a_model_that_nobody_can_see_any_more_is_private(publish: Publisher, artifact: Artifact) -> None:
    origin = replace(artifact, manifest=replace(artifact.manifest, source={"name": "glass", "locator": "hub:bob/gone"}))
    assert "make it (private)" in publish(origin, dry_run=True)["told"]
    publish(origin)
    assert publish.server.about(REPO)["private"] is True


def test_publishing_again_sends_nothing(publish: Publisher, artifact: Artifact) -> None:
    first = publish(artifact)
    publish.server.forget()
    assert publish(artifact) == first
    assert [e["request"] for e in publish.server.log() if not e["request"].startswith(("GET", "HEAD"))] == []


def test_what_comes_back_is_verified_and_whole(publish: Publisher, artifact: Artifact, tmp_path: Path) -> None:
    publish(artifact)
    publish.hub.api.snapshot_download(REPO, local_dir=tmp_path)
    (report,) = verify_path(tmp_path)
    assert report.files == len(artifact.files)  # type: ignore[union-attr]


def test_types_of_a_model_meet_in_one_repository(publish: Publisher, both: list[Artifact]) -> None:
    first, second = both
    publish(first, repo="alice/glass-GGUF")
    publish(second, repo="alice/glass-GGUF")
    publish.holds(*both, repo="alice/glass-GGUF")
    text = publish.server.read("alice/glass-GGUF", "README.md").decode()
    assert "glass-Q8_0.gguf" in text and "glass-Q4_0.gguf" in text, "the card tells of what was there before"
    assert made_by(publish.server, "alice/glass-GGUF") == ["Add glass-Q4_0", "Add glass-Q8_0"]
    publish(*both, repo="alice/together")
    assert made_by(publish.server, "alice/together") == ["Add glass-Q8_0, glass-Q4_0"]


def test_a_branch_holds_nothing_of_the_others(publish: Publisher, artifact: Artifact, both: list[Artifact]) -> None:
    publish(artifact)
    publish(both[0], revision="v1")
    publish.holds(both[0], revision="v1")
    assert "model.safetensors" not in publish.server.files(REPO, "v1")
    assert "glass-Q8_0.gguf" not in publish.server.files(REPO)


def test_a_newer_version_takes_the_place_of_the_older(publish: Publisher, artifact: Artifact) -> None:
    publish(artifact)
    fewer = replace(artifact, manifest=replace(artifact.manifest, files=artifact.files[1:]))
    publish(fewer)
    publish.holds(fewer)
    assert artifact.files[0].path not in publish.server.files(REPO)
    assert len(made_by(publish.server)) == 2


def test_what_people_wrote_into_the_card_stays(publish: Publisher, artifact: Artifact, both: list[Artifact]) -> None:
    publish(artifact)
    text = publish.server.read(REPO, "README.md").decode()
    api = publish.hub.api
    api.upload_file(path_or_fileobj=(text + "\nMine.\n").encode(), path_in_repo="README.md", repo_id=REPO)
    publish(*both)
    assert publish.server.read(REPO, "README.md").decode().endswith("\nMine.\n")
    publish.holds(artifact, *both)


@pytest.mark.parametrize("path", ["config.json", "qconvd.json"])
def test_what_belongs_to_somebody_else_stays(publish: Publisher, artifact: Artifact, path: str) -> None:
    publish.server.push(REPO, texts={path: "mine"})
    with pytest.raises(HubRefused) as caught:
        publish(artifact)
    assert str(caught.value) == (
        f"{REPO}/{path}: is there already and belongs to something else; it is left as it is\n"
        "  delete or rename it there, or publish to another repository, then `qconvd retry`"
    )
    assert publish.server.read(REPO, path) == b"mine" and len(made_by(publish.server)) == 1
    publish.server.push(REPO, delete=(path,))
    publish(artifact)
    publish.holds(artifact)


def test_a_dry_run_changes_nothing(publish: Publisher, artifact: Artifact) -> None:
    said = publish(artifact, dry_run=True)
    assert said["told"] == f"dry run: {REPO}: would make it (public) and send 6 files, 1.7 MiB"
    assert publish.server.repos() == []
    publish(artifact)
    assert publish(artifact, dry_run=True)["told"] == f"dry run: {REPO}: would send 0 files, 0 B"


# What goes wrong and goes away


@pytest.mark.parametrize(
    ("match", "how"),
    [
        ("POST .*/preupload/", {"status": 503}),
        ("POST .*/objects/batch", {"status": 503}),
        ("PUT /_?lfs", {"status": 503}),
        ("PUT /_?lfs", {"status": 429, "headers": {"Retry-After": "1"}}),
        ("PUT /_?lfs", {"kind": "drop", "bytes": 100_000}),
    ],
)
def test_what_the_client_retries_itself(publish: Publisher, artifact: Artifact, match: str, how: dict[str, Any]) -> None:
    publish.server.fault(match, **how)
    publish(artifact)
    publish.holds(artifact)
    assert len(made_by(publish.server)) == 1
    assert [e for e in publish.server.log() if e.get("fault")], "the fault was met"


@pytest.mark.parametrize(
    ("match", "how", "seconds"),
    [
        ("GET .*/revision/main", {"status": 503}, 0),
        ("GET .*/revision/main", {"status": 429, "headers": {"Retry-After": "77"}}, 77),
        ("GET .*/revision/main", {"kind": "drop"}, 0),
        ("POST .*/repos/create", {"status": 502}, 0),
        (COMMIT, {"status": 503}, 0),
        (COMMIT, {"status": 429, "headers": {"Retry-After": "120"}}, 120),
        (COMMIT, {"kind": "drop"}, 0),
        (COMMIT, {"kind": "lost"}, 0),
        (COMMIT, {"kind": "hang", "seconds": 60}, 0),
        ("GET .*/revision/[0-9a-f]{40}", {"status": 500}, 0),
        ("PUT /_?lfs", {"kind": "drop", "bytes": 100_000, "times": -1}, 0),
    ],
)
def test_a_passing_trouble_is_told_with_its_wait_and_the_next_attempt_publishes_once(
    publish: Publisher, artifact: Artifact, match: str, how: dict[str, Any], seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    if how.get("times") == -1:
        # The client's own five attempts, without the half minute between them.
        monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
    publish = replace(publish, hub=Hub(publish.server.url, ALICE, timeout=2.0))
    publish.server.fault(match, **how)
    with pytest.raises(HubBusy) as caught:
        publish(artifact)
    assert caught.value.seconds == seconds
    assert caught.value.where.endswith(REPO)
    publish.server.calm()
    publish(artifact)
    publish.holds(artifact)
    assert len(made_by(publish.server)) == 1, "once, whatever was lost"


def test_objects_that_arrived_are_not_sent_again(publish: Publisher, artifact: Artifact) -> None:
    publish.server.fault(COMMIT, status=503)
    with pytest.raises(HubBusy):
        publish(artifact)
    publish.server.forget()
    publish(artifact)
    publish.holds(artifact)
    assert publish.server.log("PUT ") == [], "the object is there already"


def test_somebody_else_may_commit_in_between(publish: Publisher, artifact: Artifact) -> None:
    publish(artifact)
    fewer = replace(artifact, manifest=replace(artifact.manifest, files=artifact.files[1:]))
    api, create = publish.hub.api, publish.hub.api.create_commit

    def later(*arguments: Any, **options: Any) -> Any:
        publish.server.push(REPO, texts={"notes.txt": "theirs"})
        api.create_commit = create  # type: ignore[method-assign]
        return create(*arguments, **options)

    api.create_commit = later  # type: ignore[assignment, method-assign]
    publish(fewer)
    publish.holds(fewer)
    assert "notes.txt" in publish.server.files(REPO)


def test_a_stale_answer_is_not_believed(publish: Publisher, artifact: Artifact) -> None:
    """The branch seems not to hold what is there already: the commit that would repeat it is refused by its parent."""
    publish(artifact)
    publish.server.fault("GET .*/revision/main", kind="stale")
    publish(artifact)
    publish.holds(artifact)
    assert len(made_by(publish.server)) == 1


def test_what_the_server_holds_is_checked_and_not_what_it_promised(publish: Publisher, artifact: Artifact) -> None:
    publish(artifact)
    publish.server.push(REPO, texts={"config.json": "{}"})
    publish(artifact)
    publish.holds(artifact)


# What does not go away


@pytest.mark.parametrize(
    ("repo", "token", "said"),
    [
        (
            "bob/x", ALICE,
            "the token from $HF_TOKEN may not make the repository bob/x: it has no permission to write there\n"
            "  give it write permission for repositories of bob at {url}/settings/tokens, then `qconvd retry JOB`",
        ),
        (
            "alice/x", None,
            "to make the repository alice/x the Hub wants a token, and there is none\n"
            "  give qconvd a token (HF_TOKEN, or a file: docs/how-to/publish.md), then `qconvd retry JOB`",
        ),
    ],
)  # fmt: skip
def test_a_missing_permission_is_named(
    publish: Publisher, artifact: Artifact, repo: str, token: Token | None, said: str
) -> None:
    other = replace(publish, hub=Hub(publish.server.url, token))
    with pytest.raises(HubRefused) as caught:
        other(artifact, repo=repo)
    assert str(caught.value) == said.format(url=publish.server.url)


def test_a_repository_that_may_be_read_only_is_named(publish: Publisher, artifact: Artifact) -> None:
    publish(artifact)
    bob = replace(publish, hub=Hub(publish.server.url, Token("hf_bob", "/etc/token")))
    fewer = replace(artifact, manifest=replace(artifact.manifest, files=artifact.files[1:]))
    with pytest.raises(HubRefused) as caught:
        bob(fewer)
    assert str(caught.value) == (
        f"the token from /etc/token may not write to {REPO}: it has no permission to write there\n"
        f"  give it write permission for the repository {REPO} at {publish.server.url}/settings/tokens, then `qconvd retry JOB`"
    )


def test_a_file_that_changes_while_it_is_sent_is_refused(publish: Publisher, artifact: Artifact, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(artifact.folder, tmp_path / "copy"))
    path = folder / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(QconvdError):
        publish(replace(artifact, folder=folder))
    assert made_by(publish.server) == [], "nothing was committed"


def test_a_stop_is_heard_before_anything_is_sent(publish: Publisher, artifact: Artifact) -> None:
    place = PublishSpec(destination=f"hub:{REPO}", revision="main")
    with pytest.raises(Cancelled):
        publishing.publish(publish.hub, place, [artifact], lambda *_: "# card\n", lambda: None, lambda: True)
    assert publish.server.repos() == []


def test_a_broken_card_is_told_and_left(publish: Publisher, artifact: Artifact) -> None:
    publish.server.push(REPO, texts={"README.md": "---\nlicense: [\n---\n# Mine\n"})
    with pytest.raises(QconvdError, match=r"README\.md:\d+:\d+: the card's metadata is not YAML"):
        publish(artifact)
    assert "model.safetensors" not in publish.server.files(REPO)


def test_a_card_in_another_encoding_is_told_and_left(publish: Publisher, artifact: Artifact, tmp_path: Path) -> None:
    publish(artifact)
    (tmp_path / "card").mkdir()
    (tmp_path / "card" / "README.md").write_bytes("# Größe".encode("latin-1"))
    publish.server.push(REPO, tmp_path / "card")
    with pytest.raises(QconvdError, match=f"{REPO}/README.md: the card is not UTF-8"):
        publish(artifact)
    assert publish.server.read(REPO, "README.md") == "# Größe".encode("latin-1")


def test_metadata_that_the_hub_does_not_take_is_told(publish: Publisher, artifact: Artifact) -> None:
    said = '{"errors": [{"message": "\\"license\\" must be one of [apache-2.0, mit]"}], "warnings": []}'
    publish.server.fault("POST .*/validate-yaml", status=400, body=said)
    with pytest.raises(HubRefused) as caught:
        publish(artifact)
    assert caught.value.where == f"{REPO}/README.md"
    assert "the Hub does not take the card's metadata: " in caught.value.what
    assert '"license" must be one of [apache-2.0, mit]' in caught.value.what
    assert made_by(publish.server) == []


@pytest.mark.readers
def test_a_real_model_goes_in_parts_and_comes_back(publish: Publisher, smollm2: Path, tmp_path: Path) -> None:
    """SmolLM2-135M in Q8_0: above the size from which the Hub takes a file in parts."""
    folder = verified(smollm2, tmp_path / "work", "gguf", types=["Q8_0"])
    artifact = held("t1", folder, "qconvd.json", never)
    publish.server.fault("PUT .*/part/3", kind="drop", bytes=1_000_000)
    publish(artifact, repo="alice/SmolLM2-GGUF")
    publish.holds(artifact, repo="alice/SmolLM2-GGUF")
    assert len(publish.server.log("PUT .*/part/")) > 5
    (file,) = artifact.files
    got = Path(publish.hub.api.hf_hub_download("alice/SmolLM2-GGUF", file.path, local_dir=tmp_path / "got"))
    llama = Llama(got)
    assert llama.tokens("Hello world") and generated(got, "The capital of France is", 4)
