"""What is published: an artifact as it lies on disk now, held against its manifest once more."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from qconvd.engine.manifest import Manifest, ManifestFile, read_manifest
from qconvd.engine.run import Cancelled
from qconvd.errors import QconvdError
from qconvd.publish.modelcard import NAME as CARD

NOT_PUBLISHED = (CARD, ".gitattributes")
"""Files of the model beside its weights that its own repository has: the card is ours, and how files are kept is the Hub's."""
BLOCK = 4 << 20


@dataclass(frozen=True)
class Artifact:
    """A verified artifact in its folder. `manifest` is that of what is published of it; `place` where it is to lie."""

    target: str
    folder: Path
    place: str
    manifest: Manifest

    @property
    def files(self) -> tuple[ManifestFile, ...]:
        return self.manifest.files

    def path(self, file: ManifestFile) -> Path:
        return self.folder / file.path


def held(target: str, folder: Path, place: str, cancelled: Callable[[], bool]) -> Artifact:
    """The artifact in `folder` whose manifest is `place`, every file of it read and hashed again.

    Raises `QconvdError` if it was never verified, or is not what was verified any more; `Cancelled` between two blocks.
    """
    manifest = read_manifest(folder / place)
    if manifest.verification is None:
        raise QconvdError("was not verified, so it is not published", where=str(folder / place), fix="`qconvd reconvert JOB`")
    files = tuple(f for f in manifest.files if f.path not in NOT_PUBLISHED)
    for file in files:
        check(folder / file.path, file, cancelled)
    return Artifact(target, folder, place, replace(manifest, files=files))


def check(path: Path, file: ManifestFile, cancelled: Callable[[], bool]) -> None:
    """Raise `QconvdError` unless a file has the size and the SHA-256 of its entry in a manifest."""
    try:
        size = path.stat().st_size
        found = digest(path, cancelled) if size == file.bytes else ""
    except OSError as error:
        raise QconvdError(
            f"cannot be read: {error.strerror}", where=str(path), fix="`qconvd reconvert JOB` makes it again"
        ) from error
    if size != file.bytes:
        what = f"has {size} bytes, its manifest says {file.bytes}"
    elif found != file.sha256:
        what = f"has other bytes than were verified: SHA-256 {found}, its manifest says {file.sha256}"
    else:
        return
    raise QconvdError(f"{what}; nothing is published", where=str(path), fix="`qconvd reconvert JOB` makes it again")


def digest(path: Path, cancelled: Callable[[], bool]) -> str:
    """SHA-256 of a file, in hex. Raises `Cancelled` between two blocks."""
    found = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while block := file.read(BLOCK):
            found.update(block)
            if cancelled():
                raise Cancelled
    return found.hexdigest()
