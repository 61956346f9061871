"""The Hub cache on this machine, which other programs use too: nothing here removes or changes what is not ours.

Its layout (https://huggingface.co/docs/huggingface_hub/guides/manage-cache): `models--owner--name/` with `blobs/<hash>`,
`snapshots/<commit>/<path>`, which link to blobs, and `refs/`; beside it `.locks/models--owner--name/<hash>.lock`, locked while
a blob is downloaded to `blobs/<hash>.<something>.incomplete`. A killed download leaves such a file, and nobody cleans it.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from qconvd.hub.client import RemoteFile

INCOMPLETE = ".incomplete"
CHUNK = 1 << 20


def cache_folder(named: Path | None = None) -> Path:
    """Where the Hub cache is: as configured, else by the variables that huggingface_hub itself follows."""
    if named is not None:
        return named
    if (own := os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")) is not None:
        return Path(own).expanduser()
    caches = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    return Path(os.environ.get("HF_HOME") or caches / "huggingface").expanduser() / "hub"


def holds(path: Path, file: RemoteFile) -> bool:
    """Whether a file is the one that was listed: its size, and the sha256 of a large or git's id of a small one."""
    with path.open("rb") as opened:
        if os.fstat(opened.fileno()).st_size != file.size:
            return False
        found = file.hasher()
        while piece := opened.read(CHUNK):
            found.update(piece)
    return found.hexdigest() == file.content


class CachedRepo:
    """One repository's part of the cache."""

    def __init__(self, cache: Path, repo: str) -> None:
        self.folder = cache / f"models--{repo.replace('/', '--')}"
        self._locks = cache / ".locks" / self.folder.name

    def blob(self, content: str) -> Path:
        """Where the content of this hash lies, or would lie."""
        return self.folder / "blobs" / content

    def file(self, commit: str, path: str) -> Path:
        """Where a file of a commit lies, or would lie: a link to its blob."""
        return self.folder / "snapshots" / commit / path

    def has(self, commit: str, path: str, content: str) -> bool:
        """Whether a file is there, whatever it holds."""
        return self.blob(content).exists() or self.file(commit, path).exists()

    def sweep(self, contents: Iterable[str]) -> list[Path]:
        """Remove what killed downloads of these contents left; what somebody is downloading now stays. Returns what went."""
        removed = []
        for content in contents:
            with self._locked(content) as mine:
                for litter in self._litter(content) if mine else ():
                    with suppress(FileNotFoundError):
                        litter.unlink()
                        removed.append(litter)
        return removed

    def arriving(self, contents: Iterable[str]) -> int:
        """Bytes that are there of these contents, half downloads too."""
        total = 0
        for content in contents:
            for path in (self.blob(content), *self._litter(content)):
                with suppress(OSError):
                    total += path.stat().st_size
        return total

    def discard(self, commit: str, path: str, content: str) -> None:
        """Remove a file that is not what its name says, so that it is downloaded anew."""
        for place in (self.file(commit, path), self.blob(content)):
            with suppress(FileNotFoundError):
                place.unlink()

    def free(self, commit: str, files: Mapping[str, str]) -> int:
        """Remove these files (path to hash) of a commit, and their blobs unless another snapshot has them; returns bytes."""
        for path in files:
            with suppress(OSError):
                self.file(commit, path).unlink()
        kept = {os.path.realpath(link) for link in self._links()}
        freed = 0
        for content in dict.fromkeys(files.values()):
            blob = self.blob(content)
            with suppress(OSError):
                if os.path.realpath(blob) not in kept:
                    freed += blob.stat().st_size
                    blob.unlink()
        self._remove_empty(commit)
        return freed

    def _remove_empty(self, commit: str) -> None:
        """Folders that hold nothing any more, from the inside out; the last snapshot takes the repository with it."""
        snapshot = self.folder / "snapshots" / commit
        inner = sorted((p for p in snapshot.rglob("*") if p.is_dir() and not p.is_symlink()), reverse=True)
        for folder in (*inner, snapshot, snapshot.parent):
            with suppress(OSError):
                folder.rmdir()
        if not snapshot.parent.exists():
            refs = self.folder / "refs"
            for ref in sorted(refs.rglob("*"), reverse=True) if refs.exists() else ():
                with suppress(OSError):
                    ref.rmdir() if ref.is_dir() else ref.unlink()
            for folder in (refs, self.folder / "blobs", self.folder):
                with suppress(OSError):
                    folder.rmdir()

    def _links(self) -> Iterator[Path]:
        snapshots = self.folder / "snapshots"
        return (p for p in snapshots.rglob("*") if p.is_symlink()) if snapshots.exists() else iter(())

    def _litter(self, content: str) -> list[Path]:
        """Half downloads of a content: `<hash>.incomplete`, and `<hash>.<process>.incomplete` since huggingface_hub 2."""
        try:
            found = list((self.folder / "blobs").iterdir())
        except OSError:
            return []
        return [p for p in found if p.name.startswith(f"{content}.") and p.name.endswith(INCOMPLETE)]

    @contextmanager
    def _locked(self, content: str) -> Iterator[bool]:
        """Whether nobody downloads this now; while inside, nobody begins to."""
        path = self._locks / f"{content}.lock"
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            yield True  # who downloads makes it first
            return
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield True
        except BlockingIOError:
            yield False
        finally:
            os.close(descriptor)
