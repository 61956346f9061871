"""The real huggingface_hub client against a real server: what it is asked, and what every failure means."""

from __future__ import annotations

from pathlib import Path

import pytest

from hub_server import HubServer
from qconvd.errors import HubBusy, HubRefused, OutOfSpace, QconvdError, from_dict
from qconvd.hub.client import Hub, seconds_of, told
from qconvd.hub.tokens import Token

ALICE, BOB = Token("hf_alice", "$HF_TOKEN"), Token("hf_bob", "$HF_TOKEN")


def hub(server: HubServer, token: Token | None = None, timeout: float = 5.0) -> Hub:
    return Hub(server.url, token, timeout)


def test_a_repository_with_its_files(hub_server: HubServer, glass: Path) -> None:
    commit = hub_server.push("alice/glass", glass, texts={"README.md": "# Glass\n"})
    hub_server.settings("alice/glass", license="mit", pipeline_tag="text-generation", parameters=850_000)
    asked = hub(hub_server)
    assert asked.commit_of("alice/glass") == commit
    found = asked.listed("alice/glass", commit)
    weights = next(f for f in found.files if f.path == "model.safetensors")
    readme = next(f for f in found.files if f.path == "README.md")
    assert weights.sha256 == hub_server.files("alice/glass")["model.safetensors"]
    assert weights.size == (glass / "model.safetensors").stat().st_size
    assert readme.sha256 == "" and len(readme.oid) == 40
    about = asked.model("alice/glass")
    assert (about.license, about.pipeline, about.parameters, about.gated) == ("mit", "text-generation", 850_000, False)
    assert asked.read("alice/glass", commit, "model.safetensors", 0, 8) == (glass / "model.safetensors").read_bytes()[:8]
    assert asked.read("alice/glass", commit, "README.md", 2, 100) == b"Glass\n"
    assert {entry["range"] for entry in hub_server.log("resolve")} == {"bytes=0-7", "bytes=2-101"}


def test_a_server_without_ranges_is_not_heard_to_the_end(hub_server: HubServer, tmp_path: Path) -> None:
    size = 64 << 20
    (tmp_path / "m").mkdir()
    with (tmp_path / "m" / "model.safetensors").open("wb") as file:
        file.write(b"01234567")
        file.truncate(size)
    commit = hub_server.push("alice/m", tmp_path / "m")
    hub_server.fault("resolve", kind="whole", times=3)
    assert hub(hub_server).read("alice/m", commit, "model.safetensors", 2, 4) == b"2345"
    assert hub(hub_server).read("alice/m", commit, "model.safetensors", 100_000, 3) == b"\0\0\0"
    assert hub(hub_server).read("alice/m", commit, "model.safetensors", 0, 0) == b""
    assert len(hub_server.log("resolve")) == 2
    assert all(entry["sent"] < size / 2 for entry in hub_server.log("resolve"))


def test_signed_addresses_are_not_logged(hub_server: HubServer, caplog: pytest.LogCaptureFixture) -> None:
    commit = hub_server.push("alice/m", texts={"config.json": "{}"})
    signed = f"{hub_server.url}/alice/m/resolve/{commit}/config.json?Signature=s3cret"
    hub_server.fault("resolve", status=302, headers={"Location": signed})
    caplog.set_level("DEBUG", "qconvd")
    caplog.set_level("INFO")
    assert hub(hub_server).read("alice/m", commit, "config.json", 0, 2) == b"{}"
    assert hub_server.log("Signature=s3cret") and "s3cret" not in caplog.text


def test_a_page_that_is_no_hubs(hub_server: HubServer) -> None:
    hub_server.push("alice/a", texts={"config.json": "{}"})
    for asked in (hub(hub_server).commit_of, hub(hub_server).models_of):
        hub_server.fault("GET /api/models", status=200, body="<html>Welcome to the hotel</html>")
        with pytest.raises(HubBusy, match="with something that no Hub says\n  look whether a proxy or a login page"):
            asked("alice/a")


@pytest.mark.parametrize("link", ["{url}/api/models?author=alice&cursor=0", "http://mirrored.invalid/api/models?author=alice"])
def test_the_next_page_is_asked_of_the_same_hub_and_once(hub_server: HubServer, link: str) -> None:
    hub_server.push("alice/a", texts={"config.json": "{}"})
    link = f'<{link.format(url=hub_server.url)}>; rel="next"'
    hub_server.forget()
    hub_server.fault("GET /api/models", status=200, body="[]", headers={"Link": link}, times=2)
    assert hub(hub_server, ALICE).models_of("alice") == []
    assert len(hub_server.log("^GET /api/models[?]author=alice")) == 2


def test_an_author_is_one_request(hub_server: HubServer) -> None:
    for name in ("a", "b", "c"):
        hub_server.push(f"alice/{name}", texts={"config.json": "{}"})
    hub_server.push("bob/d", texts={"config.json": "{}"})
    hub_server.settings("alice/c", private=True)
    hub_server.forget()
    assert [m.repo for m in hub(hub_server).models_of("alice")] == ["alice/a", "alice/b"]
    assert len(hub_server.log()) == 1
    assert [m.repo for m in hub(hub_server, ALICE).models_of("alice")] == ["alice/a", "alice/b", "alice/c"]


def test_a_moved_branch_and_a_commit_by_its_id(hub_server: HubServer) -> None:
    first = hub_server.push("alice/a", texts={"config.json": "1"})
    second = hub_server.push("alice/a", texts={"config.json": "2"})
    asked = hub(hub_server)
    assert asked.commit_of("alice/a") == second and asked.commit_of("alice/a", first) == first
    hub_server.move("alice/a", "main", first)
    assert asked.commit_of("alice/a") == first


def refused(server: HubServer, repo: str, token: Token | None = None, revision: str = "main") -> HubRefused:
    with pytest.raises(HubRefused) as caught:
        asked = hub(server, token)
        asked.listed(repo, revision)
        asked.may_read(repo)
    assert caught.value.where == f"hub:{repo}" and caught.value.fix
    return caught.value


def test_what_is_final(hub_server: HubServer) -> None:
    hub_server.push("alice/private", texts={"config.json": "{}"})
    hub_server.settings("alice/private", private=True)
    hub_server.push("alice/gated", texts={"config.json": "{}"})
    hub_server.settings("alice/gated", gated="manual")
    hub_server.push("alice/off", texts={"config.json": "{}"})
    hub_server.settings("alice/off", disabled=True)
    for token in (None, BOB):
        assert refused(hub_server, "alice/private", token).what == "is not there, or is private"
        assert refused(hub_server, "alice/none", token).what == "is not there, or is private"
        gated = refused(hub_server, "alice/gated", token)
        assert gated.what == "is gated: its conditions were not accepted"
        assert f"{hub_server.url}/alice/gated" in gated.fix
        assert ("the token from $HF_TOKEN" if token else "give qconvd a token") in gated.fix
    assert "no such revision" in refused(hub_server, "alice/gated", ALICE, "none").what
    unknown = refused(hub_server, "alice/gated", Token("hf_nobody", "/etc/token"))
    assert unknown.what == "the Hub does not know the token from /etc/token" and "settings/tokens" in unknown.fix
    assert "Access to this resource is disabled" in refused(hub_server, "alice/off").what
    hub_server.settings("alice/gated", granted=["bob"])
    hub(hub_server, BOB).may_read("alice/gated")


def test_a_server_without_xet_is_told_by_the_switch(hub_server: HubServer) -> None:
    error = ConnectionError(f"HTTP status client error (404 Not Found): {hub_server.url}/api/models/a/a/xet-write-token/main")
    found = told(error, "publishing", "a/a", hub(hub_server))
    assert isinstance(found, HubBusy) and "HF_HUB_DISABLE_XET=1" in found.fix


def busy(server: HubServer, **fault: object) -> HubBusy:
    server.fault("GET /api/models/alice/a", **fault)  # type: ignore[arg-type]
    with pytest.raises(HubBusy) as caught:
        hub(server, timeout=0.5).commit_of("alice/a")
    server.calm()
    assert caught.value.where == "hub:alice/a" and "qconvd re" not in caught.value.fix
    return caught.value


def test_what_passes(hub_server: HubServer) -> None:
    hub_server.push("alice/a", texts={"config.json": "{}"})
    assert busy(hub_server, status=503).what == "the Hub is busy (HTTP 503) while asking for it"
    limited = busy(hub_server, status=429, headers={"Retry-After": "7"})
    assert limited.what == "the Hub asks for fewer requests while asking for it; it asks to wait 7 s" and limited.seconds == 7
    assert "cannot be reached while asking for it" in busy(hub_server, kind="drop").what
    assert "cannot be reached" in busy(hub_server, kind="hang", seconds=30).what
    assert "cannot be reached" in busy(hub_server, kind="cut", bytes=10).what
    hub_server.stop()
    with pytest.raises(HubBusy, match="cannot be reached while listing the models"):
        hub(hub_server).models_of("alice")


def test_errors_come_back_from_data_as_they_were() -> None:
    for error in (HubBusy("waits", where="hub:a/b", fix="f", seconds=2.5), HubRefused("no", where="hub:a/b", fix="f")):
        again = from_dict(error.as_dict())
        assert type(again) is type(error) and again.as_dict() == error.as_dict()
    assert isinstance(from_dict({**HubBusy("w").as_dict(), "seconds": ""}), HubBusy)


def test_a_full_disk_is_no_busy_hub(hub_server: HubServer) -> None:
    with pytest.raises(OutOfSpace, match="the disk is full while fetching it"), hub(hub_server).asking("fetching it", "a/b"):
        raise OSError(28, "No space left on device")


def test_a_defect_keeps_its_traceback(hub_server: HubServer) -> None:
    with pytest.raises(ZeroDivisionError), hub(hub_server).asking("dividing", "a/b"):
        _ = 1 / 0


def test_offline_is_said(hub_server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(QconvdError, match="HF_HUB_OFFLINE is set"):
        hub(hub_server).commit_of("a/b")


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "12"}, 12),
        ({"retry-after": "Thu, 01 Jan 1970 00:01:40 GMT"}, 40),
        ({"retry-after": "soon"}, 0),
        ({"retry-after": "9" * 400}, 86_400),
        ({"retry-after": "Thu, 01 Jan 9970 00:01:40 GMT"}, 86_400),
        ({"ratelimit": f'"api";r=0;t={"9" * 400}'}, 86_400),
        ({"ratelimit": '"api";r=0;t=55'}, 55),
        ({"ratelimit": '"api";r=3;t=55'}, 0),
        ({}, 0),
    ],
)
def test_the_servers_own_hint(headers: dict[str, str], seconds: float) -> None:
    assert seconds_of(headers, now=60.0) == seconds
