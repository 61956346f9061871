"""The daemon publishes to folders: what is done is published, and what is not published is not done."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from daemon_kit import Home, tiny_model
from qconvd.quality.verify import verify_path

TO_OUT = "publish: [{folder: ./out}]"


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path)
    home.configure("[fp16]", publish=TO_OUT, settle="0s")
    tiny_model(home.inbox / "m")
    return home


def published(home: Home) -> dict[str, list[str]]:
    """Artifacts below ./out that are whole, with the files that are there."""
    found = {}
    for folder in sorted((home.root / "out").glob("*")):
        assert all(hasattr(r, "sha256") and r.sha256 for r in verify_path(folder)), verify_path(folder)
        found[folder.name] = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
    return found


def states(home: Home) -> dict[str, str]:
    return {t.label: t.state for t in home.targets()}


def command(home: Home, *words: str) -> str:
    """What the command line prints."""
    done = subprocess.run(
        [sys.executable, "-m", "qconvd", *words, "--config", str(home.config)], capture_output=True, text=True, check=True
    )
    return done.stdout


def test_what_is_verified_is_published_with_a_card(home: Home, glass: Path) -> None:
    shutil.rmtree(home.inbox / "m")
    shutil.copytree(glass, home.inbox / "m")
    home.configure("[fp16, gguf: [q8_0, q4_0]]", publish=TO_OUT, settle="0s")
    assert home.once() == 0, home.log()
    beside = ["tokenizer.json", "tokenizer_config.json"]
    assert published(home) == {
        "m-GGUF": [".qconvd/m-Q4_0.json", ".qconvd/m-Q8_0.json", "README.md", "m-Q4_0.gguf", "m-Q8_0.gguf"],
        "m-fp16": ["README.md", "config.json", "model.safetensors", "qconvd.json", *beside],
    }
    assert states(home) == {"fp16": "done", "gguf Q8_0": "done", "gguf Q4_0": "done"}
    assert home.targets()[0].reason == f"published to {home.root}/out/m-fp16"
    card = (home.root / "out/m-GGUF/README.md").read_text()
    assert "| m-Q8_0.gguf | Q8_0 | 10.30 |" in card and "| m-Q4_0.gguf | Q4_0 |" in card
    assert f"m gguf Q8_0 is being published to {home.root}/out/m-GGUF" in home.log()
    assert f"m gguf Q8_0 is done: published to {home.root}/out/m-GGUF" in home.log()
    assert home.once() == 0
    with home.ledger() as ledger:
        assert len([t for t in ledger.tasks() if t.kind == "publish"]) == 3, "once is enough"


def test_with_confirm_nothing_is_published_before_somebody_says_so(home: Home) -> None:
    home.configure("[fp16]", publish="publish: [{folder: ./out}, {folder: ./also}]\nconfirm: true", watch="after: move")
    home.start()
    home.wait(lambda: states(home) == {"fp16": "ready"} if home.state.joinpath("ledger.sqlite").exists() else False, "ready")
    home.says("m", "verified; waits for `qconvd publish JOB`")
    assert "Artifacts made: 1 of 1." in home.status("m") and "m-fp16/" in home.status("m")
    assert not (home.root / "out").exists()
    assert (home.inbox / "m").exists(), "the source stays until all is published"
    assert "waits for `qconvd publish JOB`" in command(home, "job", "1")
    assert command(home, "publish", "1") == f"1 artifact will be published: {home.root}/out/m-fp16, {home.root}/also/m-fp16\n"
    home.done(1)
    shown = json.loads(command(home, "job", "1", "--json"))["publications"]
    places = [f"{home.root}/out/m-fp16", f"{home.root}/also/m-fp16"]
    assert [(p["destination"], p["state"]) for p in shown] == [(f"folder:{place}", "done") for place in places]
    assert "PUBLISHED TO" in command(home, "job", "1") and f"{home.root}/out/m-fp16" in command(home, "job", "1")
    assert published(home) == {"m-fp16": ["README.md", "config.json", "model.safetensors", "qconvd.json"]}
    home.wait(lambda: not (home.inbox / "m").exists(), "the source to leave")
    again = home.ask("publish", ids=["1"])
    said = "; ".join(f"{place}: is published" for place in places)
    assert (again.state, again.answer) == ("refused", f"nothing waits for a word: {said}")
    home.stop()


def test_a_dry_run_says_what_would_be_and_is_not_done(home: Home) -> None:
    home.configure("[fp16]", publish=f"{TO_OUT}\ndry_run: true", watch="after: delete")
    assert home.once() == 0, home.log()
    size = sum(f.stat().st_size for f in (home.output / "m-fp16").iterdir() if f.name != "qconvd.json")
    (target,) = home.targets()
    assert target.state == "ready"
    assert target.reason == f"dry run: would copy 2 files, {size / 1024:.1f} KiB, to {home.root}/out/m-fp16"
    assert not (home.root / "out").exists() and (home.inbox / "m").exists()
    home.configure("[fp16]", publish=TO_OUT)
    assert home.once() == 0
    assert states(home) == {"fp16": "done"} and list(published(home)) == ["m-fp16"]


def test_a_done_target_goes_on_to_places_that_its_recipe_gets_later(home: Home) -> None:
    home.configure("[fp16]")
    assert home.once() == 0
    home.configure("[fp16]", publish=TO_OUT)
    assert home.once() == 0
    assert states(home) == {"fp16": "done"} and list(published(home)) == ["m-fp16"]
    with home.ledger() as ledger:
        kinds = [t.kind for t in ledger.tasks()]
    assert kinds == ["plan", "convert", "verify", "publish"], "nothing is converted again"


def test_a_failure_is_told_and_retry_publishes_without_converting_again(home: Home) -> None:
    home.configure("[fp16]", publish=TO_OUT)
    foreign = home.root / "out/m-fp16/config.json"
    foreign.parent.mkdir(parents=True)
    foreign.write_text("mine")
    assert home.once() == 1
    (target,) = home.targets("failed")
    assert target.reason == f"{foreign}: is there already and belongs to something else; it is left as it is"
    assert "move it away, or publish to another folder" in home.status("m")
    assert f"{foreign}: is there already" in home.status("m"), "it is not below the output"
    assert foreign.read_text() == "mine"
    foreign.unlink()
    with home.ledger() as ledger:
        ledger.request("retry", ids=["1"])
    assert home.once() == 0, home.log()
    assert states(home) == {"fp16": "done"} and list(published(home)) == ["m-fp16"]
    with home.ledger() as ledger:
        assert [t.kind for t in ledger.tasks()] == ["plan", "convert", "verify", "publish", "publish"]


def test_one_place_that_refuses_does_not_hold_up_another(home: Home) -> None:
    (home.root / "blocked").write_text("a file, no folder")
    home.configure("[fp16]", publish="publish: [{folder: ./blocked/x}, {folder: ./out}]")
    assert home.once() == 1
    assert list(published(home)) == ["m-fp16"]
    (target,) = home.targets("failed")
    assert target.error["where"] == f"{home.root}/blocked/x/m-fp16/README.md"
    assert target.reason == f"{target.error['where']}: cannot be read or written: Not a directory"


def test_an_artifact_that_was_changed_by_hand_is_not_published(home: Home) -> None:
    home.configure("[fp16]", publish=f"{TO_OUT}\nconfirm: true")
    assert home.once() == 0
    (home.output / "m-fp16/config.json").write_text("{}")
    with home.ledger() as ledger:
        ledger.request("publish", ids=["1"])
    assert home.once() == 1
    assert not (home.root / "out").exists()
    (target,) = home.targets("failed")
    assert target.reason.startswith("has 2 bytes, its manifest says ")


def test_a_recipes_template_makes_the_card(home: Home) -> None:
    (home.root / "mine.j2").write_text("# {{ card.title }}: {{ card.rows[0].type }}\n")
    home.configure("[fp16]", publish=f"{TO_OUT}\ncard: ./mine.j2")
    assert home.once() == 0
    assert "# m-fp16: fp16\n" in (home.root / "out/m-fp16/README.md").read_text()


def test_a_new_version_of_the_model_is_published_in_place_of_the_old(home: Home) -> None:
    home.configure("[fp16]", publish=TO_OUT)
    assert home.once() == 0
    before = json.loads((home.root / "out/m-fp16/qconvd.json").read_text())["source"]["identity"]
    tiny_model(home.root / "new", seed=2).joinpath("model.safetensors").replace(home.inbox / "m/model.safetensors")
    assert home.once() == 0, home.log()
    after = json.loads((home.root / "out/m-fp16/qconvd.json").read_text())["source"]["identity"]
    assert before != after and list(published(home)) == ["m-fp16"]


def test_a_model_that_is_gone_is_described_by_its_artifacts(home: Home, glass: Path) -> None:
    shutil.rmtree(home.inbox / "m")
    shutil.copytree(glass, home.inbox / "m")
    (home.inbox / "m/README.md").write_text("---\nlicense: mit\nlanguage: en\n---\n")
    home.configure("[fp16, q8_0]", publish=f"{TO_OUT}\nconfirm: true", settle="0s")
    assert home.once() == 0, home.log()
    shutil.rmtree(home.inbox / "m")
    with home.ledger() as ledger:
        ledger.request("publish", ids=["1"])
    assert home.once() == 0, home.log()
    for name in ("m-fp16", "m-GGUF"):
        assert "\nlicense: mit\n" in (home.root / f"out/{name}/README.md").read_text()


def test_the_model_on_the_hub_is_named_where_the_recipe_knows_it(home: Home) -> None:
    """Not of a folder's publishing, whose recipe says nothing of it."""
    folder = home.inbox / "models--carroll--m/snapshots" / ("0" * 40)
    folder.parent.mkdir(parents=True)
    (home.inbox / "m").rename(folder)
    home.configure("[fp16]", publish=TO_OUT, settle="0s")
    assert home.once() == 0, home.log()
    (card,) = (home.root / "out").glob("*/README.md")
    assert "\nbase_model: carroll/m\n" in card.read_text() and "/tree/" + "0" * 40 in card.read_text()
