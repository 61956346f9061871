"""Record what processes do to a file system, to see later what a disk may hold when the power fails at any point of it.

Every call that syncs or changes names is an event: under one lock for all processes it is made and the whole tree is looked at,
by inode. So writes need not be caught one by one, whoever makes them; what a file holds beyond what it held when it was last
synced may or may not be on disk. `power_disk.py` makes disks of that.

SQLite's own files are left to what SQLite promises: after a COMMIT with `synchronous=FULL` the ledger is on disk as it is then.
"""

from __future__ import annotations

import builtins
import fcntl
import hashlib
import io
import os
import pickle
import sqlite3
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

SYNCS = ("fsync", "fdatasync")
NAMES = ("rename", "replace", "link", "symlink", "unlink", "remove", "mkdir", "rmdir", "truncate", "ftruncate")
TOPS = ("inbox", "models", "state", "published")
"""What of a home is looked at; the rest belongs to the test."""
LEDGER = "ledger.sqlite"
FULL = 2
FRESH_NS = 50_000_000
"""A file that was changed so lately is read again: the clock of file systems is coarse."""

Tree: TypeAlias = "dict[int, Node]"


@dataclass(frozen=True)
class Node:
    """What an inode is: entries of a folder, or what a file or a link holds (a digest)."""

    kind: str
    entries: dict[str, int] = field(default_factory=dict)
    content: str = ""
    mtime_ns: int = 0


@dataclass(frozen=True)
class Event:
    """What was done, and the tree after it; of a sync, the tree before it, which is on disk after it."""

    call: str
    pid: int
    root: int
    tree: Tree
    synced: int | None = None
    ledger: dict[str, str] | None = None


class Recorder:
    """The record of one home, in a folder of its own. Arm each process with it, after a fork."""

    def __init__(self, home: Path, folder: Path) -> None:
        self.home = home
        self.folder = folder
        (folder / "contents").mkdir(parents=True)
        self._known: dict[int, tuple[tuple[int, ...], Node]] = {}
        self._thread = threading.RLock()
        self._plain_open = os.open
        self._write = os.write
        self._lock = self._pid = -1

    def events(self) -> Iterator[Event]:
        with (self.folder / "events").open("rb") as file:
            yield from _pickles(file)

    def content(self, digest: str) -> bytes:
        return (self.folder / "contents" / digest).read_bytes() if digest else b""

    def arm(self) -> None:
        """Record what this process does from now on."""
        self._open()
        for name in SYNCS:
            setattr(os, name, self._syncing(name, getattr(os, name)))
        for name in NAMES:
            setattr(os, name, self._changing(name, getattr(os, name)))
        os.open = self._opening(os.open, lambda path, flags=0, *_, **__: isinstance(flags, int) and flags & os.O_CREAT)
        opened = self._opening(io.open, lambda file, mode="r", *_, **__: not isinstance(file, int) and set(mode) & set("wax+"))
        io.open = builtins.open = opened  # type: ignore[assignment]
        self._arm_sqlite()

    def _note(self, call: str, tree: tuple[int, Tree], **more: Any) -> None:
        data = pickle.dumps(Event(call, os.getpid(), *tree, **more))
        assert self._write(self._lock, data) == len(data)

    def _tree(self) -> tuple[int, Tree]:
        tree: Tree = {}
        return self._look(self.home, tree, TOPS), tree

    @contextmanager
    def held(self) -> Iterator[None]:
        """Nobody else makes an event meanwhile."""
        with self._thread:
            if self._pid != os.getpid():  # a fork: its lock would be its parent's
                self._open()
            fcntl.flock(self._lock, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.flock(self._lock, fcntl.LOCK_UN)

    def _open(self) -> None:
        self._lock = self._plain_open(self.folder / "events", os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        self._pid = os.getpid()

    def _syncing(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def sync(descriptor: Any) -> None:
            with self.held():
                number = descriptor if isinstance(descriptor, int) else descriptor.fileno()
                before = self._tree()  # what others write while it syncs need not be on disk
                call(descriptor)
                self._note(name, before, synced=os.fstat(number).st_ino)

        return sync

    def _changing(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def change(*arguments: Any, **options: Any) -> Any:
            with self.held():
                result = call(*arguments, **options)
                self._note(name, self._tree())
            return result

        return change

    def _opening(self, call: Callable[..., Any], makes: Callable[..., object]) -> Callable[..., Any]:
        def opening(*arguments: Any, **options: Any) -> Any:
            if self._thread._is_owned() or not makes(*arguments, **options):  # type: ignore[attr-defined]
                return call(*arguments, **options)
            with self.held():
                result = call(*arguments, **options)
                self._note("open", self._tree())
            return result

        return opening

    def _arm_sqlite(self) -> None:
        recorder = self

        class Connection(sqlite3.Connection):
            def execute(self, sql: str, *arguments: Any) -> sqlite3.Cursor:
                if not sql.lstrip().upper().startswith(("COMMIT", "END")):
                    return super().execute(sql, *arguments)
                with recorder.held():
                    cursor = super().execute(sql, *arguments)
                    full = super().execute("PRAGMA synchronous").fetchone()[0] >= FULL
                    recorder._note("commit", recorder._tree(), ledger=recorder._ledger() if full else None)
                return cursor

        connect = sqlite3.connect
        sqlite3.connect = lambda *a, **k: connect(*a, **{"factory": Connection, **k})  # type: ignore[assignment]

    def _ledger(self) -> dict[str, str]:
        state = self.home / "state"
        return {p.name: self._keep(p.read_bytes()) for p in (state / LEDGER, state / f"{LEDGER}-wal") if p.exists()}

    def _look(self, path: Path, tree: Tree, only: tuple[str, ...] = ()) -> int:
        found = path.lstat()
        if stat.S_ISDIR(found.st_mode):
            entries = {}
            for name in sorted(p.name for p in path.iterdir()):
                if (not only or name in only) and not name.startswith(LEDGER):
                    try:
                        entries[name] = self._look(path / name, tree)
                    except FileNotFoundError:
                        continue  # SQLite's, or a socket's
            tree[found.st_ino] = Node("folder", entries)
            return found.st_ino
        seen = (found.st_mode, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
        before = self._known.get(found.st_ino)
        if before is not None and before[0] == seen and time.time_ns() - found.st_ctime_ns > FRESH_NS:
            tree[found.st_ino] = before[1]
            return found.st_ino
        if stat.S_ISLNK(found.st_mode):
            node = Node("link", content=self._keep(os.fsencode(path.readlink())))
        elif stat.S_ISREG(found.st_mode):
            node = Node("file", content=self._keep(path.read_bytes()), mtime_ns=found.st_mtime_ns)
        else:
            raise FileNotFoundError(path)
        self._known[found.st_ino] = seen, node
        tree[found.st_ino] = node
        return found.st_ino

    def _keep(self, data: bytes) -> str:
        digest = hashlib.sha256(data).hexdigest()[:24]
        place = self.folder / "contents" / digest
        if not place.exists():
            descriptor = self._plain_open(place, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                assert self._write(descriptor, data) == len(data)
            finally:
                os.close(descriptor)
        return digest


def _pickles(file: Any) -> Iterator[Event]:
    while True:
        try:
            yield pickle.load(file)
        except EOFError:
            return
