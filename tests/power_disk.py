"""What a disk may hold after the power failed at some point of what `power.py` has recorded.

Promised is only what POSIX promises, and that a name changes in one step: what a file held when it was synced, and which names
a folder had when it was synced. All else is there, or not, or in part:

- A change of names that no sync of one of its folders followed may be lost. Changes of the same name or the same file keep
  their order; others do not.
- Of a file, each block of what it holds beyond its last sync may be there, or be what it was, or zeros; its size likewise.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from power import TOPS, Event, Node, Recorder, Tree
from qconvd.engine.commit import BEGUN

BLOCK = 512
HOW = ("lost", "names", "data", "some")
"""Nothing that was not synced is there; only the names; only what files hold, under the old names; any part of both."""


@dataclass
class Change:
    """Names that changed in one step: (folder, name) to an inode, or None."""

    after: dict[tuple[int, str], int | None]
    inodes: set[int]
    durable: bool = False

    def follows(self, other: Change) -> bool:
        return bool(self.inodes & other.inodes) or any(key in other.after for key in self.after)


@dataclass
class Disk:
    """All that is known of a disk at one point. Inodes have numbers of their own here, as file systems use theirs again."""

    root: int = 0
    names: dict[tuple[int, str], int] = field(default_factory=dict)
    """On disk for certain."""
    current: dict[tuple[int, str], int] = field(default_factory=dict)
    """As processes see it."""
    pending: list[Change] = field(default_factory=list)
    nodes: dict[int, Node] = field(default_factory=dict)
    synced: dict[int, str] = field(default_factory=dict)
    """What of each file is on disk for certain."""
    ledger: dict[str, str] = field(default_factory=dict)
    real: dict[int, int] = field(default_factory=dict)
    """The file system's numbers."""

    def sync(self, inode: int) -> None:
        """What a file holds, or a folder's names, is on disk from now on."""
        if self.nodes[inode].kind != "folder":
            self.synced[inode] = self.nodes[inode].content
            return
        settled: list[Change] = []
        for change in reversed(self.pending):
            if any(folder == inode for folder, _ in change.after) or any(later.follows(change) for later in settled):
                settled.append(change)
        for change in reversed(settled):
            _apply(self.names, change)
        self.pending = [c for c in self.pending if not any(c is s for s in settled)]


def points(events: Iterable[Event]) -> Iterator[tuple[str, Disk]]:
    """The disk before and after each event: (what was done last, disk). It goes on changing."""
    disk = Disk()
    last: Tree = {}
    numbers: dict[int, int] = {}
    for number, event in enumerate(events):
        told = _follow(disk, last, event, numbers)
        if not last:  # what was there before is on disk
            disk.names, disk.pending = dict(disk.current), []
            disk.synced = {inode: node.content for inode, node in disk.nodes.items()}
        last = event.tree
        where = f"event {number}, {event.call} {told}"
        if event.ledger is not None:
            if not disk.ledger:
                # SQLite syncs the folder when it makes its log.
                disk.sync(disk.current[disk.root, "state"])
            disk.ledger = event.ledger
        if event.synced is not None:
            yield f"before {where}", disk
            if event.synced in numbers:
                disk.sync(numbers[event.synced])
        yield f"after {where}", disk


@dataclass(frozen=True)
class State:
    """What a disk holds: what is at each path below the home; None is a folder."""

    files: Mapping[Path, bytes | None]
    times: Mapping[Path, int]
    folders: Mapping[int, Path]
    """Where the folders are, by the numbers that the file system gave them."""

    def digest(self) -> str:
        text = "\n".join(
            f"{path} {'' if data is None else hashlib.sha256(data).hexdigest()}" for path, data in self.files.items()
        )
        return hashlib.sha256(text.encode()).hexdigest()

    def lay(self, home: Path) -> None:
        """Put it into a home, in place of what is there."""
        for top in TOPS:
            shutil.rmtree(home / top, ignore_errors=True)
        for path, data in self.files.items():
            if data is None:
                (home / path).mkdir()
            else:
                (home / path).write_bytes(data)
                os.utime(home / path, ns=(self.times[path],) * 2)
        for path, data in self.files.items():
            if path.name == BEGUN and data and b'"inode"' in data:
                # On a real disk a folder has the number that it had.
                with contextlib.suppress(ValueError):
                    place = self.folders.get(json.loads(data)["inode"])
                    number = (home / place).stat().st_ino if place else 0
                    (home / path).write_text(json.dumps({"inode": number}))


def make(disk: Disk, recorder: Recorder, how: str, seed: int) -> State:
    """One of the states that a disk may be in."""
    chance = random.Random(seed)
    in_order, survives = chance.random() < 0.5, chance.random()
    names = dict(disk.names)
    dropped: list[Change] = []
    for change in disk.pending:
        wanted = how == "names" or (how == "some" and chance.random() < survives)
        if not wanted or any(change.follows(other) for other in dropped) or (in_order and dropped):
            dropped.append(change)
        else:
            _apply(names, change)
    below: dict[int, list[tuple[str, int]]] = {}
    for (folder, name), inode in sorted(names.items()):
        below.setdefault(folder, []).append((name, inode))
    files: dict[Path, bytes | None] = {}
    times: dict[Path, int] = {}
    folders: dict[int, Path] = {}
    todo = [(Path(name), inode) for name, inode in reversed(below.get(disk.root, []))]
    while todo:
        path, inode = todo.pop()
        node = disk.nodes[inode]
        if node.kind == "folder":
            files[path], folders[disk.real[inode]] = None, path
            todo += [(path / name, inside) for name, inside in reversed(below.get(inode, []))]
        else:
            assert node.kind == "file", "links are not laid"
            synced = recorder.content(disk.synced.get(inode, ""))
            files[path], times[path] = _part(synced, recorder.content(node.content), how, chance), node.mtime_ns
    if Path("state") in files:
        for name, content in disk.ledger.items():
            path = Path("state", name)
            files[path], times[path] = recorder.content(content), 0
    return State(files, times, folders)


def _part(synced: bytes, now: bytes, how: str, chance: random.Random) -> bytes:
    """What is there of a file."""
    if how == "data" or synced == now:
        return now
    if how == "lost" or (how == "names" and chance.random() < 0.5):
        return synced
    if how == "names":  # its size is a name's neighbour in the journal of many file systems
        return synced.ljust(len(now), b"\0")[: len(now)]
    size = chance.choice([len(synced), len(now), chance.randint(0, max(len(synced), len(now)))])
    blocks = []
    for start in range(0, size, BLOCK):
        old, new = (data[start : start + BLOCK].ljust(BLOCK, b"\0") for data in (synced, now))
        blocks.append(chance.choice([old, new]))
    return b"".join(blocks)[:size]


def _follow(disk: Disk, last: Tree, event: Event, numbers: dict[int, int]) -> str:
    """Take in what has changed since the last event; what it was, in words."""
    for inode, node in last.items():
        if inode not in event.tree or event.tree[inode].kind != node.kind:
            del numbers[inode]
    for inode, node in event.tree.items():
        if inode not in numbers:
            numbers[inode] = len(disk.real) + 1
            disk.real[numbers[inode]] = inode
        disk.nodes[numbers[inode]] = node
    disk.root = numbers[event.root]
    before = disk.current
    disk.current = {(numbers[f], name): numbers[i] for f, node in event.tree.items() for name, i in node.entries.items()}
    changed = {k: disk.current.get(k) for k in before.keys() | disk.current.keys() if before.get(k) != disk.current.get(k)}
    told = sorted(f"{'+' if inode else '-'}{name}" for (_, name), inode in changed.items())
    while changed:
        change = Change({}, set())
        more = [next(iter(changed))]
        while more:
            for key in more:
                change.after[key] = changed.pop(key)
                change.inodes |= {i for i in (change.after[key], before.get(key)) if i is not None}
            more = [k for k, i in changed.items() if change.inodes & {i, before.get(k)}]
        disk.pending.append(change)
    if event.synced in numbers:
        told += [name for (_, name), inode in disk.current.items() if inode == numbers[event.synced]]
    return " ".join(told)


def _apply(names: dict[tuple[int, str], int], change: Change) -> None:
    for key, inode in change.after.items():
        if inode is None:
            names.pop(key, None)
        else:
            names[key] = inode
