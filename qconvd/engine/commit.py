"""A finished artifact becomes visible: moved from its work folder to its place, whole, and for good.

A folder of its own comes into being by one rename; an older version of it is exchanged in one step. In a folder that artifacts
share, the data files go first and the manifest last: an artifact without its manifest does not exist. Every step can be
the last before a power loss: running `commit` again finishes what was begun. A step that an attempt before this one took is
synced again: it may have been killed before it synced it, and the power may fail later.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from qconvd.engine.durable import make_folders, sync_file, sync_folder, sync_folders, write_whole
from qconvd.engine.manifest import OWN_NAME, SHARED_FOLDER, manifest_paths, manifests_in, read_manifest
from qconvd.engine.place import check_place, readable
from qconvd.errors import QconvdError

BEGUN = "commit.json"
"""In the work folder: the checks passed, and which folder is the new one (its inode, which no rename changes)."""
OLD = "old"
GONE = "gone"
OLD_MANIFEST = "old-manifest.json"
LOCK = "lock"
AT_FDCWD = -100
RENAME_EXCHANGE = 2


def commit(work: Path, folder: Path, laid: Collection[str] | None = None) -> None:
    """Move the artifact in `<work>/files` to `folder` and remove `work`.

    Finishes an interrupted commit; does nothing after a finished one. People's files beside an older version are kept. `laid`
    are the files that the ledger knows to have put there (None: it knows of none), for a manifest that says it no more.
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
            _into_shared(work, folder, laid)
        else:
            _as_own(work, folder, laid)
    except OSError as error:
        raise _worded(error, work, folder) from error
    _remove(work)


def _as_own(work: Path, folder: Path, laid: Collection[str] | None) -> None:
    files = work / "files"
    begun = _begun(work)
    if begun is None or not (_is_inode(files, begun["inode"]) or _is_inode(folder, begun["inode"])):
        _check(work, folder, OWN_NAME, laid)
        _on_disk(work)
        begun = {"inode": files.stat().st_ino}
        write_whole(work / BEGUN, json.dumps(begun).encode())
    if files.exists() and not _is_inode(folder, begun["inode"]):
        make_folders(folder.parent)
        if folder.exists():
            _exchange(files, folder, work / OLD)
        else:
            files.rename(folder)
    make_folders(folder.parent)
    sync_folders((folder.parent, work))
    if files.exists():
        files.rename(work / OLD)
    if (work / OLD).exists():
        _keep_others(work / OLD, folder, laid or ())
        sync_folders(_folders_in(folder))
        (work / OLD).rename(work / GONE)


def _into_shared(work: Path, folder: Path, laid: Collection[str] | None) -> None:
    files = work / "files"
    if _begun(work) is None:
        name = next(iter(sorted((files / SHARED_FOLDER).glob("*.json")))).name
        _check(work, folder, f"{SHARED_FOLDER}/{name}", laid)
        _on_disk(work)
        write_whole(work / BEGUN, b'{"shared": true}')
    make_folders(folder)
    make_folders(folder / SHARED_FOLDER, folder)
    manifest = next(iter(sorted((files / SHARED_FOLDER).glob("*.json"))), None)
    if manifest:
        final = folder / SHARED_FOLDER / manifest.name
        if final.exists():
            final.replace(work / OLD_MANIFEST)
        sync_folders((final.parent, work))
        for path in _files_under(files):
            if path != manifest:
                target = folder / path.relative_to(files)
                make_folders(target.parent, folder)
                path.replace(target)
        sync_folders((folder / f.path).parent for f in read_manifest(manifest).files)
        manifest.rename(final)
    sync_folder(folder / SHARED_FOLDER)
    _remove_outdated(work, folder, laid or ())


def _check(work: Path, folder: Path, manifest: str, laid: Collection[str] | None) -> None:
    _check_filesystem(work, folder)
    digests = {f.path: f.sha256 for f in read_manifest(work / "files" / manifest).files}
    check_place(folder, manifest, digests, laid=laid, digests=digests)


def _check_filesystem(work: Path, folder: Path) -> None:
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


def _keep_others(old: Path, folder: Path, laid: Collection[str]) -> None:
    """Move what people put beside an older version to the new one, unless that has a file of the name."""
    manifest = readable(old / OWN_NAME)
    ours = {OWN_NAME, *(f.path for f in manifest.files)} if manifest else {OWN_NAME, *laid}
    for path in _files_under(old):
        name = path.relative_to(old)
        if str(name) not in ours and not os.path.lexists(folder / name):
            make_folders((folder / name).parent, folder)
            path.rename(folder / name)


def _remove_outdated(work: Path, folder: Path, laid: Collection[str]) -> None:
    """Remove files of the older version that neither the new one nor another artifact has."""
    if not (work / OLD_MANIFEST).exists():
        return
    old = readable(work / OLD_MANIFEST)
    wanted = {f.path for m in manifests_in(folder) for f in m.files}
    for path in [f.path for f in old.files] if old else laid:
        if path not in wanted:
            (folder / path).unlink(missing_ok=True)


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


def _is_inode(folder: Path, inode: int) -> bool:
    return folder.exists() and folder.stat().st_ino == inode


def _files_under(folder: Path) -> Iterator[Path]:
    return (p for p in sorted(folder.rglob("*")) if p.is_symlink() or not p.is_dir())


def _folders_in(folder: Path) -> list[Path]:
    return [folder, *(p for p in sorted(folder.rglob("*")) if p.is_dir() and not p.is_symlink())]


def _on_disk(work: Path) -> None:
    """Put all of the artifact on disk, or throw it away.

    A sync that fails is not asked for again: the kernel may have dropped what it could not write and call the rest clean, while
    reading still shows what should be there. So nothing of it can be trusted, and a journal would trust it.
    """
    files = work / "files"
    try:
        for path in _files_under(files):
            sync_file(path)
        sync_folders(_folders_in(files))
    except OSError as error:
        with contextlib.suppress(OSError):
            _clear(work)
        raise QconvdError(
            f"the artifact could not be put on the disk: {os.strerror(error.errno or 0)}; it is thrown away",
            where=str(error.filename or files),
            fix="look at the disk and the kernel's log; `qconvd retry JOB` then converts again",
        ) from error


def _remove(work: Path) -> None:
    """Remove the work folder, the lock last, so that nobody takes the rest for work to be done."""
    if not work.exists():
        return
    _clear(work)
    (work / LOCK).unlink(missing_ok=True)
    work.rmdir()
    sync_folder(work.parent)


def _clear(work: Path) -> None:
    """Remove what is in the work folder but its lock."""
    for path in sorted(work.iterdir(), key=lambda p: (p.name == BEGUN, p.name)):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != LOCK:
            path.unlink()


def _worded(error: OSError, work: Path, folder: Path) -> QconvdError:
    reason = os.strerror(error.errno or 0)
    if error.errno == errno.EXDEV:
        reason = f"it lies on another filesystem than the work folder {work}"
    return QconvdError(
        f"the artifact cannot be put there: {reason}",
        where=str(folder),
        fix="the artifact waits in its work folder; mend this and retry",
    )
