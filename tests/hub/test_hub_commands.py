"""`qconvd plan` and `qconvd convert` of a model on the Hub, with no daemon."""

from __future__ import annotations

from pathlib import Path

import pytest

from command_line import Qconvd, called_in
from hub_server import HubServer


@pytest.fixture
def qconvd(
    tmp_path: Path, hub_server: HubServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Qconvd:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HF_ENDPOINT", hub_server.url)
    return called_in(home, monkeypatch, capsys)


def test_a_plan_reads_headers_only_and_is_that_of_the_local_model(qconvd: Qconvd, hub_server: HubServer, glass: Path) -> None:
    commit = hub_server.push("alice/glass_en", glass, texts={"README.md": "# Glass"})
    hub_server.forget()
    said = qconvd("plan", "hub:alice/glass_en", "--to", "fp16,q8_0", "--json")
    assert said.code == 0, said.err
    local = qconvd("plan", glass, "--to", "q8_0", "--json").json
    plan = said.json
    assert (plan["path"], plan["commit"], plan["model"]) == ("hub:alice/glass_en", commit, "glass_en")
    assert plan["artifacts"][1] == local["artifacts"][0]
    weights = (glass / "model.safetensors").stat().st_size
    assert plan["bytes_to_fetch"] > weights and {"path": "model.safetensors", "bytes": weights} in plan["fetch"]
    assert sum(e["sent"] for e in hub_server.log("model.safetensors")) <= 64 << 10
    told = qconvd("plan", "hub:alice/glass_en", "--to", "q8_0").out
    assert f"hub:alice/glass_en at {commit[:12]}: 1.7 MiB (" in told and "would be fetched" in " ".join(told.split())
    assert all(len(line) <= 80 for line in told.splitlines())


def test_inspect_reads_headers_only(qconvd: Qconvd, hub_server: HubServer, glass: Path) -> None:
    commit = hub_server.push("alice/glass_en", glass)
    hub_server.forget()
    said = qconvd("inspect", "hub:alice/glass_en", "--json").json
    local = qconvd("inspect", glass, "--json").json
    assert said == {**local, "path": "hub:alice/glass_en", "commit": commit}
    assert sum(e["sent"] for e in hub_server.log("model.safetensors")) <= 64 << 10
    assert f"commit             {commit}" in qconvd("inspect", "hub:alice/glass_en").out


def test_a_page_of_the_hub_is_its_repository_and_a_name_alone_is_a_path(
    qconvd: Qconvd, hub_server: HubServer, glass: Path, tmp_path: Path
) -> None:
    commit = hub_server.push("alice/glass_en", glass)
    for page in ("https://huggingface.co/alice/glass_en", f"https://huggingface.co/alice/glass_en/tree/{commit}"):
        assert qconvd("inspect", page, "--json").json["commit"] == commit
    said = qconvd("inspect", "alice/glass_en")
    assert (said.code, said.err) == (
        3,
        f"qconvd: {tmp_path}/home/alice/glass_en: there is nothing at this path\n"
        "  if it is meant to be on the Hub, write hub:alice/glass_en\n",
    )
    (tmp_path / "home" / "alice").mkdir()
    (tmp_path / "home" / "alice" / "glass_en").symlink_to(glass)
    assert qconvd("inspect", "alice/glass_en", "--json").json["path"] != "hub:alice/glass_en"


def test_converted_at_once_and_not_a_second_time(qconvd: Qconvd, hub_server: HubServer, glass: Path, tmp_path: Path) -> None:
    commit = hub_server.push("alice/glass_en", glass)
    said = qconvd("convert", "hub:alice/glass_en", "--to", "q8_0", "--out", "out", "--json")
    assert said.code == 0, said.err
    (made,) = said.json["artifacts"]
    qconvd("convert", glass, "--to", "q8_0", "--out", "local")
    ours, theirs = (tmp_path / "home" / f / "glass_en-GGUF" / "glass_en-Q8_0.gguf" for f in ("out", "local"))
    assert ours.read_bytes() == theirs.read_bytes() and made["new"]
    manifest = (ours.parent / ".qconvd" / "glass_en-Q8_0.json").read_text()
    assert '"locator": "hub:alice/glass_en"' in manifest and commit in manifest
    hub_server.forget()
    again = qconvd("convert", "hub:alice/glass_en", "--to", "q8_0", "--out", "out", "--json")
    assert (
        not again.json["artifacts"][0]["new"]
        and not hub_server.log(
            "GET .*resolve.*safetensors.*",
        )[1:]
    )
    assert not list((tmp_path / "home" / "out").glob(".qconvd/convert/*"))


def test_what_the_hub_refuses_is_said(qconvd: Qconvd, hub_server: HubServer, glass: Path) -> None:
    hub_server.push("alice/gated", glass)
    hub_server.settings("alice/gated", gated="auto")
    for command in (("plan",), ("convert",)):
        said = qconvd(*command, "hub:alice/gated", "--to", "q8_0")
        assert said.code == 3 and "hub:alice/gated: is gated: its conditions were not accepted" in said.err
        assert f"accept its conditions at {hub_server.url}/alice/gated" in said.err
    assert "is no repository of the Hub" in qconvd("plan", "hub:gated", "--to", "q8_0").err
    hub_server.stop()
    assert "cannot be reached while asking for it" in qconvd("plan", "hub:alice/gated", "--to", "q8_0").err


def test_check_says_what_is_watched(qconvd: Qconvd) -> None:
    Path("config.yaml").write_text("""\
watch:
  - {hub: a/b@dev, recipes: r, interval: 1h}
  - hub: {author: org, pipeline: text-generation, licenses: [mit], max_parameters: 15B, name: "*-Instruct"}
    recipes: r
    after: delete
output: ./models
recipes: {r: {targets: [fp16]}}
""")
    said = " ".join(qconvd("check").out.split())
    assert "hub:a/b@dev on the Hub, asked for every 1h 00m, becomes:" in said, said
    told = "for text-generation, under mit, of at most 15.00B parameters, named like *-Instruct"
    assert f"Each model of org on the Hub {told}, asked for every 5m 00s, becomes:" in said, said
    assert "Then what was fetched stays in the Hub cache." in said and "Then what was fetched is deleted." in said


def test_add_tells_at_once_what_the_hub_refuses(qconvd: Qconvd, hub_server: HubServer, glass: Path) -> None:
    Path("config.yaml").write_text("output: ./models\nrecipes: {r: {targets: [fp16]}}\n")
    assert "is not there, or is private" in qconvd("add", "hub:alice/none").err
    hub_server.push("alice/glass", glass)
    said = qconvd("add", "hub:alice/glass")
    assert said.code == 0 and "it will be done when one is started" in said.out


def test_doctor_says_which_token_is_used_and_never_what_it_is(qconvd: Qconvd, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("config.yaml").write_text("watch: [{hub: a/b, recipes: r}]\noutput: ./models\nrecipes: {r: {targets: [fp16]}}\n")
    assert "without a token: public models only" in " ".join(qconvd("doctor").out.split())
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    said = " ".join(qconvd("doctor").out.split())
    assert "with the token from $HF_TOKEN" in said and "hf_secret" not in said
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "HF_HUB_OFFLINE is set" in " ".join(qconvd("doctor").out.split())
