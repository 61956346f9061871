"""Publishing to a folder: whole or not at all, whatever was there before, and taken up after any crash."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import crash
from converted import converted
from qconvd.engine.manifest import manifests_in, read_manifest, write_manifest
from qconvd.engine.run import Cancelled
from qconvd.errors import OutOfSpace, QconvdError
from qconvd.publish import folder as folders
from qconvd.publish.artifact import Artifact, held
from qconvd.quality.verify import verify_path

OWN = "qconvd.json"


def never() -> bool:
    return False


@pytest.fixture(scope="module")
def made(glass: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A verified artifact of several files in a folder of its own, with the model's README among them."""
    source = tmp_path_factory.mktemp("source") / "m"
    shutil.copytree(glass, source)
    (source / "README.md").write_text("# The model's own\n")
    found = converted(source, tmp_path_factory.mktemp("work"), "fp16", max_shard_size=300_000)
    report = found.verify()
    write_manifest(found.folder / OWN, replace(found.manifest, verification=report.as_dict()))
    return found.folder


@pytest.fixture
def artifact(made: Path) -> Artifact:
    return held("t1", made, OWN, never)


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_published_folder_is_whole_and_has_our_card(artifact: Artifact, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    assert folders.publish(out, artifact, "# Ours\n", never)
    (report,) = verify_path(out)
    assert report.files == len(artifact.files) > 3  # type: ignore[union-attr]
    assert (out / "README.md").read_text() == "# Ours\n"
    assert "README.md" not in {f.path for f in read_manifest(out / OWN).files}, "the model's card is linked, not copied"


def test_publishing_again_writes_nothing(artifact: Artifact, tmp_path: Path) -> None:
    folders.publish(tmp_path, artifact, "# Ours\n", never)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    assert not folders.publish(tmp_path, artifact, "# Ours\n", never)
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before


def test_a_newer_version_replaces_the_older_and_leaves_what_is_not_ours(artifact: Artifact, tmp_path: Path) -> None:
    folders.publish(tmp_path, artifact, "# Ours\n", never)
    (tmp_path / "notes.txt").write_text("mine")
    first, *others = artifact.files
    folders.publish(tmp_path, replace(artifact, manifest=replace(artifact.manifest, files=tuple(others))), "# Less\n", never)
    assert not (tmp_path / first.path).exists()
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert [m.files for m in manifests_in(tmp_path)] == [tuple(others)]


def test_a_kill_at_any_point_is_mended_by_the_next_run(artifact: Artifact, tmp_path: Path) -> None:
    """From an older version with other files, so that replacing and removing are killed, too."""
    older = tmp_path / "older"
    few = replace(artifact.manifest, files=artifact.files[:2])
    folders.publish(older, replace(artifact, manifest=few), "# Old\n", never)
    (older / "model-old.safetensors").write_bytes(b"old")
    stale = replace(few, files=(*few.files, replace(few.files[0], path="model-old.safetensors")))
    write_manifest(older / OWN, stale)
    first = artifact.files[0]
    (older / first.path).write_bytes(b"the older version's")
    calm = tmp_path / "calm"
    shutil.copytree(older, calm)
    folders.publish(calm, artifact, "# New\n", never)
    expected = tree(calm)
    assert "model-old.safetensors" not in expected
    scratch = tmp_path / "scratch"
    shutil.copytree(older, scratch)
    total = crash.count(lambda: folders.publish(scratch, artifact, "# New\n", never))
    assert total > 30
    for number in range(total):
        shutil.rmtree(scratch)
        shutil.copytree(older, scratch)
        assert crash.crashed(lambda: folders.publish(scratch, artifact, "# New\n", never), number)
        for manifest in manifests_in(scratch):
            if manifest == artifact.manifest:
                assert {k: v for k, v in tree(scratch).items() if "qconvd-" not in k} == expected, (
                    "a manifest means all is there"
                )
        folders.publish(scratch, artifact, "# New\n", never)
        assert tree(scratch) == expected, f"killed before call {number}"


def test_what_belongs_to_somebody_else_stays(artifact: Artifact, tmp_path: Path) -> None:
    path = tmp_path / artifact.files[1].path
    path.write_text("mine")
    with pytest.raises(QconvdError) as caught:
        folders.publish(tmp_path, artifact, "# Ours\n", never)
    assert str(caught.value) == (
        f"{path}: is there already and belongs to something else; it is left as it is\n"
        "  move it away, or publish to another folder"
    )
    assert tree(tmp_path) == {path.name: b"mine"}


def test_a_folder_that_cannot_be_written_is_told(artifact: Artifact, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(QconvdError) as caught:
        folders.publish(tmp_path / "file" / "out", artifact, "", never)
    assert str(caught.value) == (
        f"{tmp_path}/file/out: cannot be read or written: Not a directory\n"
        "  give the user that runs qconvd write permission there"
    )


@pytest.mark.parametrize("ask", [folders.existing_card, folders.published])
def test_a_share_that_does_not_answer_is_away_whatever_is_asked_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ask: Callable[[Path], object]
) -> None:
    def gone(path: Path, *_: object, **__: object) -> bytes:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path))

    monkeypatch.setattr(Path, "read_bytes", gone)
    monkeypatch.setattr(Path, "stat", gone)
    with pytest.raises(folders.Away, match="does not answer: Stale file handle; it is tried again later"):
        ask(tmp_path)


def test_a_card_in_another_encoding_is_left(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_bytes("# Größe".encode("latin-1"))
    with pytest.raises(QconvdError) as caught:
        folders.existing_card(tmp_path)
    assert str(caught.value) == f"{tmp_path}/README.md: the card is not UTF-8\n  save it as UTF-8, then `qconvd retry`"
    (tmp_path / "README.md").write_bytes("\ufeff---\nlicense: mit\n---\n".encode())
    assert folders.existing_card(tmp_path) == "---\nlicense: mit\n---\n", "a mark of the byte order is no text"


def test_a_stop_is_heard_between_blocks(artifact: Artifact, tmp_path: Path) -> None:
    with pytest.raises(Cancelled):
        folders.publish(tmp_path, artifact, "", lambda: True)
    assert not (tmp_path / OWN).exists()


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "copy"))


def test_what_was_not_verified_is_not_published(copy: Path) -> None:
    write_manifest(copy / OWN, replace(read_manifest(copy / OWN), verification=None))
    with pytest.raises(QconvdError) as caught:
        held("t1", copy, OWN, never)
    assert str(caught.value) == f"{copy / OWN}: was not verified, so it is not published\n  `qconvd reconvert JOB`"


@pytest.mark.parametrize("how", ["other bytes", "shorter", "gone"])
def test_what_changed_since_it_was_verified_is_not_published(copy: Path, how: str) -> None:
    path = copy / "config.json"
    text = path.read_bytes()
    path.unlink()
    if how != "gone":
        path.write_bytes(text[:-1] + b" " * (how == "other bytes"))
    words = {
        "other bytes": "has other bytes than were verified: SHA-256 ",
        "shorter": f"has {len(text) - 1} bytes, its manifest says {len(text)}; nothing is published",
        "gone": "cannot be read: No such file or directory",
    }
    with pytest.raises(QconvdError) as caught:
        held("t1", copy, OWN, never)
    assert str(caught.value).startswith(f"{path}: {words[how]}")
    assert caught.value.fix == "`qconvd reconvert JOB` makes it again"


def test_a_disk_without_room_is_told_before_anything_is_copied(artifact: Artifact, tmp_path: Path) -> None:
    huge, size = tmp_path / "made", 1 << 43
    huge.mkdir()
    with (huge / "model.safetensors").open("wb") as file:
        file.truncate(size)
    files = (replace(artifact.files[0], path="model.safetensors", bytes=size),)
    more = replace(artifact, folder=huge, manifest=replace(artifact.manifest, files=files))
    with pytest.raises(OutOfSpace) as caught:
        folders.publish(tmp_path / "out", more, "# Ours\n", never)
    assert str(caught.value) == f"{tmp_path}/out: has no room for the {size:,} bytes that are published\n  make room there"
    assert list((tmp_path / "out").iterdir()) == []


def test_a_copy_that_cannot_be_synced_is_made_anew(artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked again, fsync would say that all is well, and reading would show what the disk does not have."""
    plain, failed = os.fsync, []

    def failing(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        if path.name.endswith(folders.PART) and not failed:
            failed.append(path)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        plain(descriptor)

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(folders.Away, match="Input/output error; it is tried again later"):
        folders.publish(tmp_path / "out", artifact, "# Ours\n", never)
    assert failed and not failed[0].exists()
    assert folders.publish(tmp_path / "out", artifact, "# Ours\n", never)
    (report,) = verify_path(tmp_path / "out")
    assert report.files == len(artifact.files)  # type: ignore[union-attr]
