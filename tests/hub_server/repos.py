"""Repositories in memory, large files on disk: what the server knows."""

from __future__ import annotations

import hashlib
import itertools
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LFS_ENDINGS = (".safetensors", ".bin", ".gguf", ".pt", ".onnx", ".h5", ".msgpack")
LFS_FROM = 10 << 20
"""Bytes from which any file is a large one; the real Hub has the same limit for text."""
ATTRIBUTES = b"".join(b"*%s filter=lfs diff=lfs merge=lfs -text\n" % ending.encode() for ending in LFS_ENDINGS)
_numbers = itertools.count()


@dataclass(frozen=True)
class File:
    """A file of a commit. `lfs` is the sha256 of a large file, `oid` the id that git gives the content or its pointer."""

    oid: str
    size: int
    lfs: str = ""

    @property
    def etag(self) -> str:
        return self.lfs or self.oid


@dataclass(frozen=True)
class Commit:
    id: str
    parent: str
    files: dict[str, File]
    title: str
    user: str
    date: str


@dataclass
class Repo:
    id: str
    private: bool = False
    gated: Any = False
    disabled: bool = False
    granted: list[str] = field(default_factory=list)
    """Users that have accepted the conditions of a gated repository."""
    about: dict[str, Any] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, Commit] = field(default_factory=dict)
    created: str = ""

    @property
    def owner(self) -> str:
        return self.id.partition("/")[0]

    @property
    def head(self) -> Commit:
        return self.commits[self.branches["main"]]

    def find(self, revision: str) -> Commit | None:
        return self.commits.get(self.branches.get(revision, revision))


class Store:
    """All repositories, and the large files by their sha256."""

    def __init__(self, folder: Path) -> None:
        self.repos: dict[str, Repo] = {}
        self.blobs: dict[str, bytes] = {}
        self.webhooks: dict[str, dict[str, Any]] = {}
        self._folder = folder / "lfs"
        self._folder.mkdir(parents=True, exist_ok=True)

    def lfs(self, sha256: str) -> Path:
        return self._folder / sha256

    def create(self, id: str, user: str, private: bool = False) -> Repo:
        repo = self.repos[id] = Repo(id, private=private, created=now())
        self.commit(repo, "main", {".gitattributes": self.put(ATTRIBUTES)}, "initial commit", user)
        return repo

    def put(self, data: bytes, path: str = "") -> File:
        """Keep a file's content."""
        if not path.endswith(LFS_ENDINGS) and len(data) < LFS_FROM:
            oid = git_id(data)
            self.blobs[oid] = data
            return File(oid, len(data))
        sha256 = hashlib.sha256(data).hexdigest()
        if not self.lfs(sha256).exists():
            self.lfs(sha256).write_bytes(data)
        return self.large(sha256)

    def large(self, sha256: str) -> File:
        """A file whose content was put on the disk before."""
        size = self.lfs(sha256).stat().st_size
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n"
        return File(git_id(pointer.encode()), size, sha256)

    def read(self, file: File, start: int = 0, end: int | None = None) -> bytes:
        if not file.lfs:
            return self.blobs[file.oid][start:end]
        with self.lfs(file.lfs).open("rb") as opened:
            opened.seek(start)
            return opened.read(None if end is None else end - start)

    def commit(self, repo: Repo, branch: str, files: dict[str, File], title: str, user: str) -> Commit:
        parent = repo.branches.get(branch, "")
        id = hashlib.sha1(f"{repo.id} {parent} {title} {next(_numbers)} {time.time_ns()}".encode()).hexdigest()
        repo.commits[id] = Commit(id, parent, files, title, user, now())
        repo.branches[branch] = id
        return repo.commits[id]

    def history(self, repo: Repo, commit: Commit | None) -> list[Commit]:
        found = []
        while commit is not None:
            found.append(commit)
            commit = repo.commits.get(commit.parent)
        return found


def git_id(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime())
