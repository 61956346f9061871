"""Committing an artifact: into a folder of its own or a shared one, over older versions, and after every possible crash."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import crash
from qconvd.engine import commit as module
from qconvd.engine.commit import commit
from qconvd.engine.manifest import Manifest, ManifestFile, is_ours, manifests_in, read_manifest, write_manifest
from qconvd.errors import QconvdError
from tiny import tree


def finished(work: Path, content: dict[str, bytes], manifest: str = "qconvd.json", name: str = "model") -> dict[str, bytes]:
    """A work folder as `convert` leaves it; returns the tree that committing it should make."""
    files = work / "files"
    for path, data in content.items():
        (files / path).parent.mkdir(parents=True, exist_ok=True)
        (files / path).write_bytes(data)
    entries = tuple(ManifestFile(p, len(d), hashlib.sha256(d).hexdigest()) for p, d in content.items())
    write_manifest(files / manifest, Manifest(name, "tiny", "tiny", "sha256:0", entries))
    (work / "journal.jsonl").write_text("{}\n")
    (work / "plan.json").write_text("{}")
    (work / "lock").touch()
    return tree(files)


def manifest_with(**fields: object) -> str:
    return json.dumps({**json.loads(Manifest("m", "tiny", "tiny", "sha256:0", ()).to_json()), **fields})


def test_a_folder_of_its_own_appears_and_the_work_folder_goes(tmp_path: Path) -> None:
    work, folder = tmp_path / ".qconvd/work/t", tmp_path / "deep/er/M-fp16"
    expected = finished(work, {"model.safetensors": b"weights", "sub/vocab.txt": b"a b"})
    commit(work, folder)
    assert tree(folder) == expected
    assert not work.exists()
    assert is_ours(folder)
    commit(work, folder)
    assert tree(folder) == expected


def test_an_older_version_is_replaced_and_other_peoples_files_beside_it_are_kept(tmp_path: Path) -> None:
    work, folder = tmp_path / "w", tmp_path / "M-fp16"
    finished(work, {"model-1.st": b"1", "model-2.st": b"2"})
    commit(work, folder)
    (folder / "notes").mkdir()
    (folder / "notes" / "mine.txt").write_text("keep me")
    expected = finished(work, {"model-1.st": b"new"})
    commit(work, folder)
    assert tree(folder) == {**expected, "notes/mine.txt": b"keep me"}


@pytest.mark.parametrize("manifest", ["qconvd.json", ".qconvd/M-Q8_0.json"])
def test_a_folder_that_is_not_ours_is_left_as_it_is(tmp_path: Path, manifest: str) -> None:
    work, folder = tmp_path / "w", tmp_path / "M"
    finished(work, {"m.gguf": b"ours"}, manifest)
    folder.mkdir()
    (folder / "m.gguf").write_bytes(b"theirs")
    before = tree(work)
    with pytest.raises(QconvdError) as caught:
        commit(work, folder)
    own = manifest == "qconvd.json"
    place, why = (folder, "was not made by qconvd") if own else (folder / "m.gguf", "belongs to something else")
    assert str(caught.value) == (
        f"{place}: is there already and {why}; it is left as it is\n  move it away, or give the target another name"
    )
    assert tree(folder) == {"m.gguf": b"theirs"}
    assert tree(work) == before


@pytest.mark.parametrize("manifest", ["qconvd.json", ".qconvd/M.json"])
def test_an_artifact_whose_manifest_is_damaged_is_replaced_only_if_the_ledger_knows_it(tmp_path: Path, manifest: str) -> None:
    work, folder = tmp_path / "w", tmp_path / "M"
    finished(work, {"m-1.gguf": b"1", "m-2.gguf": b"2"}, manifest)
    commit(work, folder)
    (folder / "notes.txt").write_text("mine")
    (folder / manifest).write_text("{")
    expected = finished(work, {"m-1.gguf": b"new"}, manifest)
    with pytest.raises(QconvdError, match=r"is there already and .*; it is left as it is"):
        commit(work, folder)
    assert (folder / "m-1.gguf").read_bytes() == b"1"
    commit(work, folder, laid=["m-1.gguf", "m-2.gguf"])
    assert tree(folder) == {**expected, "notes.txt": b"mine"}


@pytest.mark.parametrize("manifest", ["qconvd.json", ".qconvd/M.json"])
def test_what_lies_there_without_a_manifest_is_not_ours_whatever_the_ledger_knew(tmp_path: Path, manifest: str) -> None:
    finished(tmp_path / "w", {"m.gguf": b"ours"}, manifest)
    (tmp_path / "M" / ".qconvd").mkdir(parents=True)
    (tmp_path / "M" / "m.gguf").write_bytes(b"theirs")
    with pytest.raises(QconvdError, match=r"is there already and .*; it is left as it is"):
        commit(tmp_path / "w", tmp_path / "M", laid=["m.gguf"])
    assert (tmp_path / "M" / "m.gguf").read_bytes() == b"theirs"


def test_an_empty_folder_is_nobodys(tmp_path: Path) -> None:
    (tmp_path / "M").mkdir()
    expected = finished(tmp_path / "w", {"a": b"1"})
    commit(tmp_path / "w", tmp_path / "M")
    assert tree(tmp_path / "M") == expected


def test_artifacts_share_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "M-GGUF"
    one = finished(tmp_path / "a", {"M-Q8_0.gguf": b"eight", "LICENSE": b"same"}, ".qconvd/M-Q8_0.json", "M-Q8_0")
    two = finished(tmp_path / "b", {"M-Q4_0.gguf": b"four", "LICENSE": b"same"}, ".qconvd/M-Q4_0.json", "M-Q4_0")
    commit(tmp_path / "a", folder)
    commit(tmp_path / "b", folder)
    assert tree(folder) == one | two
    assert [m.artifact for m in manifests_in(folder)] == ["M-Q4_0", "M-Q8_0"]


def test_in_a_shared_folder_only_the_same_artifact_is_replaced(tmp_path: Path) -> None:
    folder, work = tmp_path / "M-GGUF", tmp_path / "w"
    finished(work, {"M-1.gguf": b"1", "M-2.gguf": b"2"}, ".qconvd/M.json")
    commit(work, folder)
    (folder / "other.gguf").write_bytes(b"theirs")
    expected = finished(work, {"M-1.gguf": b"new"}, ".qconvd/M.json")
    commit(work, folder)
    assert tree(folder) == {**expected, "other.gguf": b"theirs"}
    finished(work, {"other.gguf": b"ours"}, ".qconvd/N.json")
    with pytest.raises(QconvdError, match=r"other\.gguf: is there already and belongs to something else; it is left as it is"):
        commit(work, folder)
    assert (folder / "other.gguf").read_bytes() == b"theirs"


def test_beside_somebody_s_files_there_is_room_in_a_shared_folder(tmp_path: Path) -> None:
    (tmp_path / "M").mkdir()
    (tmp_path / "M" / "other.gguf").write_bytes(b"theirs")
    expected = finished(tmp_path / "w", {"m.gguf": b"ours"}, ".qconvd/m.json")
    commit(tmp_path / "w", tmp_path / "M")
    assert tree(tmp_path / "M") == {**expected, "other.gguf": b"theirs"}


def test_a_shared_artifact_does_not_go_into_another_one_s_own_folder(tmp_path: Path) -> None:
    before = finished(tmp_path / "a", {"m.st": b"1"})
    commit(tmp_path / "a", tmp_path / "M")
    finished(tmp_path / "b", {"m.gguf": b"2"}, ".qconvd/m.json")
    with pytest.raises(QconvdError, match="was not made by qconvd"):
        commit(tmp_path / "b", tmp_path / "M")
    assert tree(tmp_path / "M") == before


def test_an_own_folder_never_replaces_a_shared_one(tmp_path: Path) -> None:
    finished(tmp_path / "a", {"m.gguf": b"1"}, ".qconvd/m.json")
    commit(tmp_path / "a", tmp_path / "M")
    finished(tmp_path / "b", {"m.st": b"2"})
    with pytest.raises(QconvdError, match="was not made by qconvd"):
        commit(tmp_path / "b", tmp_path / "M")
    assert (tmp_path / "M" / "m.gguf").read_bytes() == b"1"


def test_there_must_be_something_to_commit(tmp_path: Path) -> None:
    (tmp_path / "w").mkdir()
    with pytest.raises(QconvdError, match=r"w: there is no finished artifact to commit\n  convert again"):
        commit(tmp_path / "w", tmp_path / "M")
    (tmp_path / "w" / "files").mkdir()
    with pytest.raises(QconvdError, match=r"files: the artifact has no manifest: it is not finished"):
        commit(tmp_path / "w", tmp_path / "M")


def test_the_work_folder_must_be_on_the_same_filesystem(tmp_path: Path) -> None:
    other = Path("/dev/shm") / f"qconvd-test-{os.getpid()}"
    work = other / "w"
    try:
        finished(work, {"a": b"1"})
        with pytest.raises(QconvdError, match=f"M: lies on another filesystem than the work folder {work}\n"):
            commit(work, tmp_path / "M")
        assert not (tmp_path / "M").exists()
    finally:
        shutil.rmtree(other)


def test_a_folder_that_cannot_be_written_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finished(tmp_path / "w", {"a": b"1"})

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "rename", refuse)
    with pytest.raises(QconvdError, match=r"M: the artifact cannot be put there: Permission denied\n  the artifact waits"):
        commit(tmp_path / "w", tmp_path / "M")
    monkeypatch.undo()
    commit(tmp_path / "w", tmp_path / "M")
    assert (tmp_path / "M" / "a").read_bytes() == b"1"


def into_own(root: Path) -> dict[str, bytes]:
    return finished(root / "w", {"m-1.st": b"new", "sub/v.txt": b"v"})


def over_older(root: Path) -> dict[str, bytes]:
    finished(root / "w", {"m-1.st": b"1", "m-2.st": b"2"})
    commit(root / "w", root / "M")
    (root / "M" / "mine.txt").write_text("mine")
    return {**finished(root / "w", {"m-1.st": b"new"}), "mine.txt": b"mine"}


def into_shared(root: Path) -> dict[str, bytes]:
    finished(root / "x", {"o.gguf": b"other"}, ".qconvd/o.json", "o")
    commit(root / "x", root / "M")
    other = tree(root / "M")
    finished(root / "w", {"m-1.gguf": b"1", "m-2.gguf": b"2"}, ".qconvd/m.json")
    commit(root / "w", root / "M")
    return other | finished(root / "w", {"m-1.gguf": b"new", "m-3.gguf": b"3"}, ".qconvd/m.json")


@pytest.mark.parametrize("exchange", [True, False])
@pytest.mark.parametrize("scene", [into_own, over_older, into_shared])
def test_a_crash_at_any_call_is_mended_by_committing_again(
    tmp_path: Path, scene: Callable[[Path], dict[str, bytes]], exchange: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not exchange:
        monkeypatch.setattr(module.ctypes, "CDLL", lambda *_, **__: object())
    scene(tmp_path / "count")
    total = crash.count(lambda: commit(tmp_path / "count" / "w", tmp_path / "count" / "M"))
    assert total > 10
    for n in range(total):
        root = tmp_path / str(n)
        expected = scene(root)
        seen = tree(root / "M") if (root / "M").exists() else {}
        assert crash.crashed(lambda root=root: commit(root / "w", root / "M"), n)
        for manifest in manifests_in(root / "M"):
            complete(root / "M", manifest)
        commit(root / "w", root / "M")
        assert tree(root / "M") == expected, f"after a crash at call {n}; before it: {sorted(seen)}"
        assert sorted(p.name for p in root.iterdir()) == ["M"]


def complete(folder: Path, manifest: Manifest) -> None:
    """What has a manifest has all its files, whole."""
    for file in manifest.files:
        assert hashlib.sha256((folder / file.path).read_bytes()).hexdigest() == file.sha256


def test_the_control_side_can_use_this_without_numpy() -> None:
    check = "import sys, qconvd.engine.commit; assert not {'numpy', 'pydantic', 'torch'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


def test_manifests_are_told_from_other_files(tmp_path: Path) -> None:
    path = tmp_path / "qconvd.json"
    for content, message in (
        ("{", "is not valid JSON"),
        ("[]", "is no manifest of qconvd"),
        ('{"qconvd": "manifest", "schema": 99}', "another version of qconvd\n  use that version"),
        ('{"qconvd": "manifest", "schema": 1}', "is a damaged manifest"),
        (manifest_with(source=[]), "is a damaged manifest: source is of another type"),
        (manifest_with(plan=None), "is a damaged manifest: plan is of another type"),
        (manifest_with(verification="fine"), "is a damaged manifest: verification is of another type"),
        (manifest_with(files=[{"path": 5, "bytes": 1, "sha256": ""}]), "is a damaged manifest: files is of another type"),
        ("[" * 100_000, "is not valid JSON"),
    ):
        path.write_text(content)
        assert not is_ours(tmp_path)
        with pytest.raises(QconvdError, match=message):
            read_manifest(path)
    write_manifest(path, Manifest("m", "f", "c", "p", (ManifestFile("../../x", 1, "0"),)))
    with pytest.raises(QconvdError, match=r"the path '\.\./\.\./x' leaves the folder"):
        read_manifest(path)
    manifest = Manifest("m", "f", "c", "p", (ManifestFile("x", 1, "0"),), notes=("é",), errors={"relative_rms": None})
    write_manifest(path, manifest)
    assert read_manifest(path) == manifest
    assert sorted(tree(tmp_path)) == ["qconvd.json"]


def test_what_cannot_be_synced_is_thrown_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked again, fsync would say that all is well, and reading would show what the disk does not have."""
    into_own(tmp_path)
    (tmp_path / "w" / "journal.jsonl").write_text("{}\n")
    plain, failed = os.fsync, []

    def failing(descriptor: int) -> None:
        path = str(Path(f"/proc/self/fd/{descriptor}").readlink())
        if "/w/files/" in path and not failed:
            failed.append(path)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        plain(descriptor)

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(QconvdError) as caught:
        commit(tmp_path / "w", tmp_path / "M")
    assert str(caught.value) == (
        f"{tmp_path}/w/files: the artifact could not be put on the disk: Input/output error; it is thrown away\n"
        "  look at the disk and the kernel's log; `qconvd retry JOB` then converts again"
    )
    assert failed and not (tmp_path / "M").exists()
    assert [p.name for p in (tmp_path / "w").iterdir() if p.name != "lock"] == []
