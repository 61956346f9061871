"""Publishing to a folder: another disk, a share, whatever a web server hands out.

Files are copied under names that nobody takes for theirs, synced, read back and hashed; then they are renamed into place,
the manifest last. So a reader that goes by manifests never sees half an artifact, and a run that was killed is taken up.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from qconvd.engine.durable import make_folders, sync_file, sync_folder, sync_folders, write_whole
from qconvd.engine.manifest import Manifest, ManifestFile, manifests_in
from qconvd.engine.place import readable
from qconvd.engine.run import Cancelled
from qconvd.errors import OutOfSpace, QconvdError
from qconvd.publish import front_matter
from qconvd.publish.artifact import BLOCK, Artifact, check, digest
from qconvd.publish.modelcard import NAME as CARD

AWAY = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENOTCONN)
"""What a share says that cannot be reached."""
PART = ".qconvd-part"
OLD = ".qconvd-old"
"""The endings of a file that is being copied, and of a manifest whose artifact is being replaced."""


class Away(QconvdError):
    """A disk or share does not answer; it may another time."""


def existing_card(folder: Path) -> str:
    """The card that lies there; empty if none does. Raises `QconvdError` if it cannot be read."""
    with reached(folder):
        try:
            return front_matter.decoded((folder / CARD).read_bytes(), str(folder / CARD))
        except FileNotFoundError:
            return ""


def published(folder: Path) -> list[Manifest]:
    """The artifacts that are there."""
    with reached(folder):
        return manifests_in(folder)


def publish(folder: Path, artifact: Artifact, card: str, cancelled: Callable[[], bool]) -> bool:
    """Put an artifact and the card into a folder; returns whether anything had to be written.

    Raises `QconvdError` for what belongs to somebody else and for a disk that is full or cannot be written.
    """
    with reached(folder):
        return _publish(folder, artifact, card, cancelled)


@contextlib.contextmanager
def reached(folder: Path) -> Iterator[None]:
    """Say of every error of the system what it means for whoever publishes to this folder."""
    try:
        yield
    except OSError as error:
        where = str(error.filename or folder)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OutOfSpace("the disk that is published to is full", where=str(folder), fix="make room there") from error
        if error.errno in AWAY:
            what = f"does not answer: {os.strerror(error.errno or 0)}; it is tried again later"
            raise Away(what, where=where, fix="look at the disk or the network share") from error
        what = f"cannot be read or written: {os.strerror(error.errno or 0)}"
        raise QconvdError(what, where=where, fix="give the user that runs qconvd write permission there") from error


def missing(folder: Path, artifact: Artifact, cancelled: Callable[[], bool]) -> list[ManifestFile]:
    """The files of the artifact that are not there yet, or with other bytes."""
    with reached(folder):
        return [f for f in artifact.files if not _is_there(folder / f.path, f, cancelled)]


def _publish(folder: Path, artifact: Artifact, card: str, cancelled: Callable[[], bool]) -> bool:
    make_folders(folder)
    manifest = folder / artifact.place
    old = manifest.with_name(manifest.name + OLD)
    todo = missing(folder, artifact, cancelled)
    _check_foreign(folder, manifest, todo, readable(manifest) or readable(old))
    _check_room(folder, todo)
    for file in todo:
        make_folders((folder / file.path).parent, folder)
        _copy(artifact.path(file), _part(folder / file.path), file, cancelled)
    wanted = artifact.manifest.to_json()
    changed = bool(todo) or not manifest.is_file() or manifest.read_bytes() != wanted
    if changed and manifest.exists():
        # From here on the old artifact does not exist; its manifest is kept, as it tells which files may be replaced.
        manifest.replace(old)
    # Everything is synced though it was there before: whoever put it there may have been killed before that.
    make_folders(manifest.parent, folder)
    sync_folder(manifest.parent)
    for file in todo:
        _part(folder / file.path).replace(folder / file.path)
    for file in artifact.files:
        if file not in todo:
            sync_file(folder / file.path)
    sync_folders((folder / file.path).parent for file in artifact.files)
    if changed:
        _remove_outdated(folder, readable(old), artifact.manifest)
    changed |= _write_card(folder, card)
    if changed:
        write_whole(manifest, wanted)
    old.unlink(missing_ok=True)
    for part in _parts(folder, artifact.files):
        part.unlink(missing_ok=True)
    return changed


def _write_card(folder: Path, card: str) -> bool:
    if existing_card(folder) == card:
        return False
    write_whole(folder / CARD, card.encode())
    return True


def _copy(source: Path, part: Path, file: ManifestFile, cancelled: Callable[[], bool]) -> None:
    """Copy a file, sync it and hold what can be read back against the manifest.

    A copy that cannot be synced is thrown away: reading it would show what the disk does not have, also another time.
    """
    try:
        if not _is_there(part, file, cancelled):
            _write(source, part, cancelled)
            check(part, file, cancelled)
        sync_file(part)
    except OSError:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise


def _write(source: Path, part: Path, cancelled: Callable[[], bool]) -> None:
    with source.open("rb", buffering=0) as reader, part.open("wb", buffering=0) as writer:
        while block := reader.read(BLOCK):
            view = memoryview(block)
            while view:
                view = view[os.write(writer.fileno(), view) :]
            if cancelled():
                raise Cancelled
        os.fsync(writer.fileno())
        with contextlib.suppress(OSError):
            # So that reading it back asks the disk. Some filesystems have no such cache.
            os.posix_fadvise(writer.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _check_foreign(folder: Path, manifest: Path, todo: Iterable[ManifestFile], before: Manifest | None) -> None:
    """Raise `QconvdError` if a file that is to be written is there and no older version of this artifact's."""
    ours = {f.path for f in before.files} if before else set()
    for file in todo:
        if os.path.lexists(folder / file.path) and file.path not in ours:
            raise QconvdError(
                "is there already and belongs to something else; it is left as it is",
                where=str(folder / file.path),
                fix="move it away, or publish to another folder",
            )
    if manifest.exists() and readable(manifest) is None:
        raise QconvdError("is there already and is no manifest of qconvd", where=str(manifest), fix="move it away")


def _check_room(folder: Path, todo: Iterable[ManifestFile]) -> None:
    status = os.statvfs(folder)
    need = sum(f.bytes - _size(_part(folder / f.path)) for f in todo)
    if need > status.f_bavail * status.f_frsize:
        raise OutOfSpace(f"has no room for the {need:,} bytes that are published", where=str(folder), fix="make room there")


def _remove_outdated(folder: Path, before: Manifest | None, now: Manifest) -> None:
    """Remove files of the older version that neither the new one nor another artifact there has."""
    kept = {f.path for m in (now, *manifests_in(folder)) for f in m.files}
    for file in before.files if before else ():
        if file.path not in kept and file.path != CARD:
            (folder / file.path).unlink(missing_ok=True)


def _is_there(path: Path, file: ManifestFile, cancelled: Callable[[], bool]) -> bool:
    return path.is_file() and not path.is_symlink() and _size(path) == file.bytes and digest(path, cancelled) == file.sha256


def _part(path: Path) -> Path:
    return path.with_name(f".{path.name}{PART}")


def _parts(folder: Path, files: Iterable[ManifestFile]) -> list[Path]:
    """Copies that were begun and are not wanted any more, beside the files of an artifact."""
    return [p for place in {(folder / f.path).parent for f in files} for p in sorted(place.glob(f".*{PART}"))]


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


__all__ = ["existing_card", "missing", "publish", "published"]
