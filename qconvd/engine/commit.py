"""A finished artifact becomes visible: moved from its work folder to its place, whole, and for good.

A folder of its own comes into being by one rename; an older version of it is exchanged in one step. In a folder that artifacts
share, the data files go first and the manifest last: an artifact without its manifest does not exist. Every step can be
the last before a power loss: running `commit` again finishes what was begun.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qconvd.engine.durable import sync_file, sync_folder, write_whole
from qconvd.engine.manifest import OWN_NAME, SHARED_FOLDER, Manifest, manifest_paths, manifests_in, read_manifest
from qconvd.errors import QconvdError

BEGUN = "commit.json"
"""In the work folder: the checks passed, and which folder is the new one (its inode, which no rename changes)."""
OLD = "old"
GONE = "gone"
OLD_MANIFEST = "old-manifest.json"
LOCK = "lock"
AT_FDCWD = -100
RENAME_EXCHANGE = 2


def commit(work: Path, folder: Path) -> None:
    """Move the artifact in `<work>/files` to `folder` and remove `work`.

    Finishes an interrupted commit; does nothing after a finished one. People's files beside an older version are kept.
    Raises `QconvdError` if the folder holds files that qconvd did not make, if it lies on another filesystem than
    `work`, or if there is nothing to commit.
    """
    files = work / "files"
    if not files.exists() and not _begun(work):
        if not manifest_paths(folder):
            raise QconvdError("there is no finished artifact to commit", where=str(work), fix="convert again")
        _remove(work)
        return
    try:
        if _is_shared(work):
            _into_shared(work, folder)
        else:
            _as_own(work, folder)
    except OSError as error:
        raise _worded(error, work, folder) from error
    _remove(work)


def _as_own(work: Path, folder: Path) -> None:
    files = work / "files"
    begun = _begun(work)
    if begun is None or not (_is_inode(files, begun["inode"]) or _is_inode(folder, begun["inode"])):
        _check_own(work, folder)
        _sync_tree(files)
        begun = {"inode": files.stat().st_ino}
        write_whole(work / BEGUN, json.dumps(begun).encode())
    if files.exists() and not _is_inode(folder, begun["inode"]):
        _make_folders(folder.parent)
        if folder.exists():
            _exchange(files, folder, work / OLD)
        else:
            files.rename(folder)
        sync_folder(folder.parent)
        sync_folder(work)
    if files.exists():
        files.rename(work / OLD)
    if (work / OLD).exists():
        _keep_others(work / OLD, folder)
        (work / OLD).rename(work / GONE)


def _into_shared(work: Path, folder: Path) -> None:
    files = work / "files"
    if _begun(work) is None:
        _check_shared(work, folder)
        _sync_tree(files)
        write_whole(work / BEGUN, b'{"shared": true}')
    _make_folders(folder / SHARED_FOLDER)
    manifest = next(iter(sorted((files / SHARED_FOLDER).glob("*.json"))), None)
    if manifest:
        final = folder / SHARED_FOLDER / manifest.name
        if final.exists():
            final.replace(work / OLD_MANIFEST)
            sync_folder(final.parent)
            sync_folder(work)
        for path in _files_under(files):
            if path != manifest:
                target = folder / path.relative_to(files)
                _make_folders(target.parent)
                path.replace(target)
                sync_folder(target.parent)
        manifest.rename(final)
        sync_folder(final.parent)
    _remove_outdated(work, folder)


def _check_own(work: Path, folder: Path) -> None:
    _check_place(work, folder)
    if folder.is_dir() and not any(folder.iterdir()):
        return
    if folder.exists() and not (folder.is_dir() and _readable(folder / OWN_NAME)):
        raise QconvdError(
            "is there already and was not made by qconvd; it is left as it is",
            where=str(folder),
            fix="move it away, or give the target another name",
        )


def _check_shared(work: Path, folder: Path) -> None:
    _check_place(work, folder)
    if folder.exists() and not folder.is_dir():
        raise QconvdError("is there already and is no folder", where=str(folder), fix="move it away")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / SHARED_FOLDER).is_dir():
        raise QconvdError(
            "is there already and was not made by qconvd; it is left as it is",
            where=str(folder),
            fix="move it away, or give the target another name",
        )
    files = work / "files"
    name = next(iter(sorted((files / SHARED_FOLDER).glob("*.json")))).name
    replaced = _readable(folder / SHARED_FOLDER / name)
    mine = {f.path: f.sha256 for f in _readable_or_raise(files / SHARED_FOLDER / name).files}
    before = {f.path for f in replaced.files} if replaced else set()
    elsewhere = {f.path: f.sha256 for m in manifests_in(folder) if m != replaced for f in m.files} if folder.exists() else {}
    for path, digest in mine.items():
        if (path in elsewhere and elsewhere[path] != digest) or (
            path not in elsewhere and path not in before and os.path.lexists(folder / path)
        ):
            raise QconvdError(
                "is there already and belongs to something else; it is left as it is",
                where=str(folder / path),
                fix="move it away, or give the target another name",
            )


def _check_place(work: Path, folder: Path) -> None:
    there = next(p for p in (folder.parent, *folder.parent.parents) if p.exists())
    if there.stat().st_dev != work.stat().st_dev:
        raise QconvdError(
            f"lies on another filesystem than the work folder {work}",
            where=str(folder),
            fix="put both under one output folder",
        )


def _exchange(files: Path, folder: Path, old: Path) -> None:
    """Put `files` in the place of `folder` in one step; where the filesystem has no such step, in two."""
    libc = ctypes.CDLL(None, use_errno=True)
    rename = getattr(libc, "renameat2", None)
    if rename and rename(AT_FDCWD, os.fsencode(files), AT_FDCWD, os.fsencode(folder), RENAME_EXCHANGE) == 0:
        return
    code = ctypes.get_errno() if rename else errno.ENOSYS
    if code not in (errno.ENOSYS, errno.EINVAL, errno.ENOTTY, errno.EOPNOTSUPP):
        raise OSError(code, os.strerror(code), str(folder))
    folder.rename(old)
    files.rename(folder)


def _keep_others(old: Path, folder: Path) -> None:
    """Move what people put beside an older version to the new one, unless that has a file of the name."""
    manifest = _readable(old / OWN_NAME)
    ours = {f.path for f in manifest.files} | {OWN_NAME} if manifest else set()
    for path in _files_under(old):
        name = path.relative_to(old)
        if str(name) not in ours and not os.path.lexists(folder / name):
            _make_folders((folder / name).parent)
            path.rename(folder / name)
            sync_folder((folder / name).parent)


def _remove_outdated(work: Path, folder: Path) -> None:
    """Remove files of the older version that neither the new one nor another artifact has."""
    old = _readable(work / OLD_MANIFEST)
    if old is None:
        return
    wanted = {f.path for m in manifests_in(folder) for f in m.files}
    for file in old.files:
        if file.path not in wanted:
            (folder / file.path).unlink(missing_ok=True)


def _is_shared(work: Path) -> bool:
    begun = _begun(work)
    if begun is not None:
        return "shared" in begun
    files = work / "files"
    if (files / OWN_NAME).exists():
        return False
    if any((files / SHARED_FOLDER).glob("*.json")):
        return True
    raise QconvdError("the artifact has no manifest: it is not finished", where=str(files), fix="convert again")


def _begun(work: Path) -> dict[str, Any] | None:
    try:
        begun: dict[str, Any] = json.loads((work / BEGUN).read_bytes())
    except FileNotFoundError:
        return None
    return begun


def _readable(path: Path) -> Manifest | None:
    try:
        return read_manifest(path)
    except QconvdError:
        return None


def _readable_or_raise(path: Path) -> Manifest:
    return read_manifest(path)


def _is_inode(folder: Path, inode: int) -> bool:
    return folder.exists() and folder.stat().st_ino == inode


def _files_under(folder: Path) -> Iterator[Path]:
    return (p for p in sorted(folder.rglob("*")) if p.is_symlink() or not p.is_dir())


def _sync_tree(folder: Path) -> None:
    for path in _files_under(folder):
        sync_file(path)
    for path in (folder, *(p for p in sorted(folder.rglob("*")) if p.is_dir())):
        sync_folder(path)


def _make_folders(folder: Path) -> None:
    """Create a folder and its parents, each on disk before the next."""
    missing = [p for p in (folder, *folder.parents) if not p.exists()]
    for path in reversed(missing):
        path.mkdir(exist_ok=True)
        sync_folder(path.parent)


def _remove(work: Path) -> None:
    """Remove the work folder, the lock last, so that nobody takes the rest for work to be done."""
    if not work.exists():
        return
    for path in sorted(work.iterdir(), key=lambda p: (p.name == LOCK, p.name == BEGUN, p.name)):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    work.rmdir()
    sync_folder(work.parent)


def _worded(error: OSError, work: Path, folder: Path) -> QconvdError:
    reason = os.strerror(error.errno or 0)
    if error.errno == errno.EXDEV:
        reason = f"it lies on another filesystem than the work folder {work}"
    return QconvdError(
        f"the artifact cannot be put there: {reason}",
        where=str(folder),
        fix="the artifact waits in its work folder; mend this and retry",
    )
