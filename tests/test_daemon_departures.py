"""What becomes of a model's folder when all is made of it: `after: move` and `after: delete`."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest

from daemon_kit import Home, copy_in, end, move_in, tiny_model

FP16_AND_GGUF = "[fp16, gguf: q8_0]"


def test_after_move(home: Home) -> None:
    home.configure(watch="after: move")
    place = move_in(home, tiny_model(home.root / "drafts" / "m"))
    home.start()
    home.wait(lambda: not place.exists(), "the source to be moved")
    assert sorted(p.name for p in (home.inbox / ".qconvd-done" / "m").iterdir()) == ["config.json", "model.safetensors"]
    text = home.says("m", f"The source: moved to {home.inbox}/.qconvd-done/m.")
    assert text.startswith("m: done")
    again = copy_in(home, home.inbox / ".qconvd-done" / "m")
    home.wait(lambda: not again.exists(), "the second one to be moved")
    assert sorted(p.name for p in (home.inbox / ".qconvd-done").iterdir()) == ["m", "m.2"]
    with home.ledger() as ledger:
        assert len(ledger.targets()) == 1, "what is made is not made again"
    end(home)


@pytest.mark.parametrize("after", ["move", "delete"])
def test_what_is_made_of_links_leaves_whole(home: Home, after: str) -> None:
    home.configure(watch=f"after: {after}", interval="1s")
    repository = home.inbox / "models--own--cached"
    snapshot = repository / "snapshots" / "0123abc"
    snapshot.mkdir(parents=True)
    for file in tiny_model(home.root / "drafts" / "m").iterdir():
        (repository / "blobs").mkdir(exist_ok=True)
        file.rename(repository / "blobs" / f"blob-{file.name}")
        (snapshot / file.name).symlink_to(f"../../blobs/blob-{file.name}")
    linked = tiny_model(home.root / "store" / "linked", seed=2)
    (home.inbox / "linked").symlink_to("../store/linked")
    assert home.once() == 0
    assert [p.name for p in home.inbox.iterdir() if not p.name.startswith(".")] == []
    assert (linked / "model.safetensors").is_file(), "what a link points to is somebody else's"
    if after == "move":
        gone = home.inbox / ".qconvd-done"
        assert (gone / "models--own--cached" / "snapshots" / "0123abc" / "model.safetensors").is_file()
        assert (gone / "linked").is_symlink()
        assert (gone / "linked").resolve() == linked


@pytest.mark.parametrize("after", ["move", "delete"])
def test_all_parts_of_a_split_model_leave(home: Home, glass: Path, after: str) -> None:
    other = Home(home.root / "other")
    copy_in(other, glass, "m")
    other.configure(targets="[gguf: {types: [f16], split_max_tensors: 20}]")
    assert other.once() == 0
    parts = sorted(p for p in (other.output / "m-GGUF").iterdir() if p.suffix == ".gguf")
    assert len(parts) > 1
    for part in parts:
        shutil.copy(part, home.inbox)
    home.configure(targets="[gguf: q8_0]", watch=f"after: {after}")
    assert home.once() == 0
    assert list(home.inbox.glob("*.gguf")) == []
    gone = home.inbox / ".qconvd-done"
    assert sorted(p.name for p in gone.glob("*")) == ([p.name for p in parts] if after == "move" else [])


def test_a_snapshot_beside_others_stays(home: Home) -> None:
    home.configure(watch="after: delete")
    snapshots = home.inbox / "models--own--cached" / "snapshots"
    tiny_model(snapshots / "older")
    tiny_model(snapshots / "newer", seed=2)
    (snapshots.parent / "refs").mkdir()
    (snapshots.parent / "refs" / "main").write_text("newer")
    home.start()
    home.said("the source is done and stays: its files may be shared with the snapshot older")
    assert (snapshots / "newer" / "model.safetensors").is_file()
    end(home)


def test_after_delete(home: Home) -> None:
    home.configure(watch="after: delete", targets="[fp16, f32]")
    elsewhere = tiny_model(home.root / "elsewhere" / "linked", seed=5)
    (home.inbox / "linked").symlink_to(elsewhere)
    place = move_in(home, tiny_model(home.root / "drafts" / "m"))
    home.start()
    home.done(4)
    home.wait(lambda: not place.exists() and not (home.inbox / "linked").is_symlink(), "the sources to be deleted")
    assert (elsewhere / "model.safetensors").exists(), "only the link was ours to remove"
    home.wait(lambda: not list(home.inbox.iterdir()), "nothing to be left of them")
    assert len([f for f in home.files() if f.endswith("qconvd.json")]) == 4
    end(home)


def test_after_failure(home: Home) -> None:
    home.configure(watch="after: delete", targets=FP16_AND_GGUF)
    place = move_in(home, tiny_model(home.root / "drafts" / "odd", architecture="OddForCausalLM"))
    home.start()
    home.says("odd", "odd: failed")
    home.signal(signal.SIGHUP)
    home.said("the configuration was read again")
    end(home)
    assert (place / "model.safetensors").exists()


def test_a_folder_for_what_is_done_that_leads_elsewhere_gets_nothing(home: Home) -> None:
    home.configure(watch="after: move")
    (elsewhere := home.root / "elsewhere").mkdir()
    (home.inbox / ".qconvd-done").symlink_to(elsewhere)
    place = move_in(home, tiny_model(home.root / "drafts" / "m"))
    home.start()
    home.said("the source is done and stays: .qconvd-done is a link, and leads out of the watched folder")
    assert place.exists() and not list(elsewhere.iterdir())
    end(home)
