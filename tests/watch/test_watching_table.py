"""The rows of docs/reference/watching.md, each shown on a running daemon. One daemon serves most of them."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from daemon_kit import Home, copy_in, move_in, tiny_model, write_safetensors

TABLE = Path(__file__).parents[2] / "docs" / "reference" / "watching.md"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize 269060552\n"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    home = Home(tmp_path_factory.mktemp("watching"))
    # `settle` is long enough that a wait can be seen, and the scan is far away: what is seen quickly was seen by an event.
    home.configure(match="match: {names: ['*'], max_parameters: 1M}", settle="0.5s", interval="600s")
    home.start()
    home.said("qconvd runs")
    yield home
    assert home.stop() == 0, home.log()
    assert "Traceback" not in home.log(), home.log()


@pytest.fixture
def draft(home: Home, request: pytest.FixtureRequest) -> Path:
    """A model outside of the watched folder, on its filesystem, with a name that no other test uses."""
    name = request.node.name.removeprefix("test_").replace("_", "-")
    return tiny_model(home.root / "drafts" / name, seed=sum(map(ord, name)))


def taken(home: Home, path: Path) -> None:
    home.said(f"{path} is taken")


def made(home: Home, name: str) -> None:
    home.says(name, f"{name}: done")
    assert (home.output / f"{name}-fp16" / "model.safetensors").is_file()


def test_every_row_of_the_table_has_a_test() -> None:
    rows = re.findall(r"^\| `([a-z-]+)` \|", TABLE.read_text(), re.MULTILINE)
    assert len(rows) > 25
    assert len(set(rows)) == len(rows)
    tests = set()
    for file in [*Path(__file__).parent.glob("test_*.py"), *Path(__file__).parents[1].glob("test_daemon*.py")]:
        tests |= set(re.findall(r"^def test_(\w+)\(", file.read_text(), re.MULTILINE))
    assert [row for row in rows if row.replace("-", "_") not in tests] == []


def test_moved_in(home: Home, draft: Path) -> None:
    place = move_in(home, draft)
    home.says(place.name, "it is still changing")
    taken(home, place)
    made(home, place.name)


def test_slow_copy(home: Home, draft: Path) -> None:
    tiny = draft
    big = tiny_model(home.root / "drafts" / "slow", layers=2, width=48)
    place = home.inbox / tiny.name
    place.mkdir()
    data = (big / "model.safetensors").read_bytes()
    shutil.copy(big / "config.json", place)
    with (place / "model.safetensors").open("wb", buffering=0) as out:
        out.write(data[: len(data) // 2])
        home.says(place.name, f"model.safetensors: {len(data) // 2} of {len(data)} bytes are there")
        for at in range(len(data) // 2, len(data), len(data) // 8):
            assert f"{place} is taken" not in home.log()
            out.write(data[at : at + len(data) // 8])
            time.sleep(0.02)
    taken(home, place)


def test_shard_missing(home: Home, draft: Path) -> None:
    place = home.inbox / draft.name
    place.mkdir()
    shutil.copy(draft / "config.json", place)
    names = [f"model-{i:05}-of-00003.safetensors" for i in (1, 2, 3)]
    for number, name in enumerate(names):
        write_safetensors(draft / name, {f"t{number}": (4, 4)})
    index = {"metadata": {"total_size": 96}, "weight_map": {f"t{i}": name for i, name in enumerate(names)}}
    (place / "model.safetensors.index.json").write_text(json.dumps(index))
    shutil.copy(draft / names[0], place)
    shutil.copy(draft / names[2], place)
    text = home.says(place.name, "1 of 3 shards are missing: model-00002-of-00003.safetensors")
    assert "What to do:" in text
    shutil.copy(draft / names[1], place)
    taken(home, place)


def test_git_clone(home: Home, draft: Path) -> None:
    place = home.inbox / draft.name
    (place / ".git" / "objects" / "pack").mkdir(parents=True)
    (place / ".git" / "HEAD").write_text("ref: refs/heads/main\n")
    shutil.copy(draft / "config.json", place)
    (place / "model.safetensors").write_text(POINTER.format("0" * 64))
    home.says(place.name, "model.safetensors: is a Git LFS pointer, not the file itself")
    (place / ".git" / "index.lock").touch()
    (place / "model.safetensors").write_bytes((draft / "model.safetensors").read_bytes())
    home.says(place.name, ".git/index.lock: is a file that is still being written")
    (place / ".git" / "index.lock").unlink()
    (place / "README.md").touch()
    taken(home, place)


def test_hf_download(home: Home, draft: Path) -> None:
    place = home.inbox / draft.name
    cache = place / ".cache" / "huggingface" / "download"
    cache.mkdir(parents=True)
    partial = cache / "model.safetensors.abc123.incomplete"
    partial.write_bytes((draft / "model.safetensors").read_bytes()[:100])
    shutil.copy(draft / "config.json", place)
    home.says(place.name, "model.safetensors.abc123.incomplete: is a file that is still being written")
    partial.write_bytes((draft / "model.safetensors").read_bytes())
    partial.rename(place / "model.safetensors")
    taken(home, place)


def test_preallocated(home: Home, draft: Path) -> None:
    model = tiny_model(home.root / "drafts" / "holes", width=64, layers=4)
    data = (model / "model.safetensors").read_bytes()
    place = home.inbox / draft.name
    place.mkdir()
    shutil.copy(model / "config.json", place)
    with (place / "model.safetensors").open("wb", buffering=0) as out:
        out.write(data[: 64 << 10])
        out.truncate(len(data))
        home.says(place.name, "nothing was written yet from byte")
        out.write(data[64 << 10 :])
    taken(home, place)


def test_symlinked_folder(home: Home, draft: Path) -> None:
    place = home.inbox / draft.name
    place.symlink_to(draft)
    taken(home, place)
    made(home, place.name)
    assert draft.exists()


def test_hidden_or_temporary_name(home: Home, draft: Path) -> None:
    for name in (".hidden", "model.part", "model.incomplete", "model.tmp", ".git"):
        copy_in(home, draft, name)
    place = copy_in(home, draft)
    taken(home, place)
    assert not [s.name for s in home.sources() if s.name in (".hidden", "model.part", "model.incomplete", "model.tmp", ".git")]
    (home.inbox / "model.part").rename(home.inbox / "unhidden")
    taken(home, home.inbox / "unhidden")


def test_lone_file(home: Home, draft: Path) -> None:
    place = home.inbox / f"{draft.name}.safetensors"
    (draft / "model.safetensors").rename(place)
    assert f"{draft.name}: " in home.wait(lambda: home.status(draft.name), "a status of the lone file")
    home.wait(lambda: [s for s in home.sources() if s.locator == str(place)], "the lone file to be known")


def test_owner_and_name(home: Home, draft: Path) -> None:
    (home.inbox / "owner").mkdir()
    place = home.inbox / "owner" / draft.name
    time.sleep(0.6)
    draft.rename(place)
    taken(home, place)
    second = place.with_name("owners-second")
    second.mkdir()
    time.sleep(0.6)  # scanned while it is empty, and so no candidate yet
    shutil.copytree(place, second, dirs_exist_ok=True)
    taken(home, second)


def test_removed_while_waiting(home: Home, draft: Path) -> None:
    (draft / "model.safetensors").rename(draft / "kept")
    place = move_in(home, draft)
    home.says(place.name, "waiting")
    shutil.rmtree(place)
    home.said(f"{place} was removed before it was taken")
    home.wait(lambda: not home.status(place.name), "the status to go with the model")


def test_touched(home: Home, draft: Path) -> None:
    place = move_in(home, draft)
    made(home, place.name)
    before = home.files()
    assert f"{place.name}-fp16/model.safetensors" in before
    os.utime(place / "model.safetensors")
    (place / ".DS_Store").touch()
    (home.inbox / "poke").mkdir()
    home.said(f"{place} is taken; artifacts to make: 0")
    assert home.files() == before


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("hqq", "already quantized"),
        ("adapter", "adapter"),
        ("diffusion", "diffusion"),
    ],
)
def test_refused(home: Home, change: str, reason: str) -> None:
    place = tiny_model(home.root / "drafts" / f"refused-{change}")
    if change == "hqq":
        config = json.loads((place / "config.json").read_text())
        (place / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "hqq", "bits": 4}}))
    elif change == "adapter":
        (place / "config.json").unlink()
        (place / "model.safetensors").rename(place / "adapter_model.safetensors")
        (place / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "x"}')
    else:
        (place / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    place = move_in(home, place)
    text = home.says(place.name, f"{place.name}: refused")
    assert reason in text.lower()
    assert home.log().count(f"{place} is refused") == 1


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_web_page(home: Home, name: str) -> None:
    place = tiny_model(home.root / "drafts" / f"page-{name.partition('.')[0]}")
    (place / "model.safetensors").unlink()
    (place / name).write_text("<!DOCTYPE html><html>Sign in</html>")
    place = move_in(home, place)
    text = home.says(place.name, f"{place.name}: refused")
    assert f"{name}: is a web page, not a" in text
    assert "download it again, signed in if need be" in text


def test_refused_then_mended(home: Home, draft: Path) -> None:
    good = (draft / "config.json").read_text()
    (draft / "config.json").write_text("{ this is no JSON")
    place = move_in(home, draft)
    home.says(place.name, "refused")
    (place / "config.json").write_text(good)
    (home.inbox / "poke-2").mkdir()
    taken(home, place)


def test_no_recipe(home: Home) -> None:
    place = move_in(home, tiny_model(home.root / "drafts" / "no-recipe", width=256, layers=2))
    text = home.says(place.name, "not converted")
    assert "its 1.3M parameters are more than 1.0M" in text
    assert "add a recipe that takes it to config.yaml" in text


def test_own_artifact(home: Home, draft: Path) -> None:
    place = move_in(home, draft)
    made(home, place.name)
    shutil.copytree(home.output / f"{place.name}-fp16", home.inbox / f"{place.name}-fp16")
    marker = move_in(home, tiny_model(home.root / "drafts" / "after-own"))
    taken(home, marker)
    assert f"{place.name}-fp16" not in {s.name for s in home.sources()}


def test_same_model_elsewhere(home: Home, draft: Path) -> None:
    place = move_in(home, draft)
    made(home, place.name)
    before = home.files()
    (home.inbox / "other-owner").mkdir()
    time.sleep(0.6)
    second = home.inbox / "other-owner" / place.name
    shutil.copytree(place, second, copy_function=shutil.copy2)
    taken(home, second)
    home.wait(
        lambda: [t for s in home.sources() if s.locator == str(second) for t in home.targets("done") if t.source == s.id],
        "done",
    )
    assert home.files() == before


def test_replaced(home: Home, draft: Path) -> None:
    place = move_in(home, draft)
    made(home, place.name)
    artifact = home.output / f"{place.name}-fp16" / "model.safetensors"
    before = artifact.read_bytes()
    new = tiny_model(home.root / "drafts" / "replacement", seed=99)
    place.rename(home.root / "drafts" / "old-version")
    new.rename(place)
    home.said(f"{place} (version 2) is taken")
    home.wait(lambda: artifact.exists() and artifact.read_bytes() != before, "the new version")
    home.wait(lambda: not home.targets("converting", "verifying"), "the queue to be empty")
    assert [t.state for s in home.sources() if s.locator == str(place) for t in home.targets() if t.source == s.id] == ["done"]


def test_unreadable(home: Home, draft: Path) -> None:
    if os.geteuid() == 0:
        # To root nothing is unreadable; a link that leads nowhere is what it meets instead.
        (draft / "model.safetensors").rename(draft.parent / "elsewhere")
        (draft / "model.safetensors").symlink_to(home.root / "away")
        place = move_in(home, draft)
        home.says(place.name, "model.safetensors: is a symlink to a file that is not there")
        (draft.parent / "elsewhere").rename(home.root / "away")
    else:
        (draft / "model.safetensors").chmod(0)
        place = move_in(home, draft)
        home.says(place.name, "model.safetensors: cannot be read: Permission denied")
        (place / "model.safetensors").chmod(0o644)
    (home.inbox / "poke-3").mkdir()
    taken(home, place)


def test_links_that_lead_nowhere_or_in_circles_harm_nobody(home: Home, draft: Path) -> None:
    links = {"circle": "circle", "circle.gguf": "circle.gguf", "nowhere": "not-there", "whole": "..", "out": "/"}
    for name, target in links.items():
        (home.inbox / name).symlink_to(target)
    home.says("circle", "Too many levels of symbolic links")
    place = move_in(home, draft)
    made(home, place.name)
    # All at once: the daemon sees them go in one scan, in which it stops following what they led to (one led back to it).
    with home.asleep():
        for name in links:
            (home.inbox / name).unlink()
    home.said(f"{home.inbox / 'circle.gguf'} was removed before it was taken")
    time.sleep(1.0)
    taken(home, move_in(home, tiny_model(home.root / "drafts" / "after-the-links", seed=78)))


def test_a_name_too_long_for_a_status_keeps_no_other_from_its_own(home: Home, draft: Path) -> None:
    long = copy_in(home, draft, "a" * 250)
    other = tiny_model(home.root / "drafts" / "b-after-the-long-one", seed=77)
    (home.output / "a-folder.status.txt").mkdir()
    clash = copy_in(home, draft, "a-folder")
    place = move_in(home, other)
    made(home, place.name)
    home.said("a-folder.status.txt: Is a directory")
    home.wait(lambda: list(home.output.glob("aaaa*.status.txt")), "the long name's status")
    for folder in (long, clash):
        shutil.rmtree(folder)
    (home.output / "a-folder.status.txt").rmdir()


def test_overflow(home: Home, draft: Path) -> None:
    """The daemon sleeps while the kernel's queue runs over; the model's own event is among those that are lost."""
    with home.asleep():
        limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
        for number in range(limit // 2 + 10):
            path = home.inbox / f".{number}"
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY))
            path.unlink()
        place = move_in(home, draft)
    taken(home, place)


def test_folder_missing_and_back(home: Home, draft: Path) -> None:
    home.inbox.rename(home.root / "away-inbox")
    home.signal(signal.SIGHUP)
    home.said(f"the watched folder {home.inbox} cannot be read: No such file or directory")
    known = {s.locator: s.state for s in home.sources()}
    (home.root / "away-inbox").rename(home.inbox)
    home.signal(signal.SIGHUP)
    home.said(f"{home.inbox} is there again")
    assert {s.locator: s.state for s in home.sources()} == known
    place = move_in(home, draft)
    taken(home, place)


def test_idle_is_cheap_and_light(home: Home) -> None:
    home.wait(lambda: not home.targets("waiting", "planned", "converting", "verifying"), "the queue to be empty")
    assert home.process is not None
    folder = Path("/proc", str(home.process.pid))
    names = {Path(line.split()[-1]).name for line in (folder / "maps").read_text().splitlines() if "/" in line}
    heavy = ("_multiarray_umath", "libtorch", "llvmlite", "tokenizers.", "_safetensors", "_sentencepiece")
    assert not [n for n in names if n.startswith(heavy)]
    status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
    assert int(status["VmRSS"].split()[0]) < 100 * 1024
    wakes = int(status["voluntary_ctxt_switches"])
    time.sleep(2)
    status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
    assert int(status["voluntary_ctxt_switches"]) - wakes < 40, "it sleeps between two looks at its ledger"
