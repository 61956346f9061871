"""An artifact's data files while they are made: disk reserved first, bytes written anywhere, hashed in order behind."""

from __future__ import annotations

import errno
import hashlib
import os
import queue
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from qconvd.engine.checksum import Checksum
from qconvd.engine.durable import sync_folder
from qconvd.engine.layout import Layout
from qconvd.engine.plan import Unit
from qconvd.errors import OutOfSpace, TakenAway
from qconvd.quantities import show_size

HASH_BLOCK = 1 << 20
HASHED_AT_ONCE = 1 << 18
"""Bytes that are read to be hashed: they are still in the second-level cache then."""


class DataFile:
    """One file of fixed size, written in pieces in any order. `frontier` is the end of what is written without a hole."""

    def __init__(self, path: Path, nbytes: int) -> None:
        self.path = path
        self.nbytes = nbytes
        self.frontier = 0
        self.hashed = 0
        self.digest = hashlib.sha256()
        self._islands: dict[int, int] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        self.descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        self.linked = os.fstat(self.descriptor).st_nlink > 0
        """Whether the filesystem counts a file's names; some do not."""

    def reserve(self) -> None:
        """Give the file its size and its blocks, as zeros where nothing was written."""
        os.ftruncate(self.descriptor, self.nbytes)
        if self.nbytes:
            try:
                os.posix_fallocate(self.descriptor, 0, self.nbytes)
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENODEV):
                    raise

    def write(self, offset: int, data: memoryview) -> None:
        """Write all of `data`."""
        while data:
            count = os.pwrite(self.descriptor, data, offset)
            data, offset = data[count:], offset + count

    def read(self, offset: int, nbytes: int) -> bytes:
        """Up to `nbytes` from `offset`."""
        return os.pread(self.descriptor, nbytes, offset)

    def checksum(self, offset: int, nbytes: int) -> int:
        """The checksum of a range as it is in the file."""
        found, end = Checksum(), offset + nbytes
        while offset < end:
            data = self.read(offset, min(HASH_BLOCK, end - offset))
            if not data:
                break
            found.update(data)
            offset += len(data)
        return found.value()

    def written(self, start: int, stop: int) -> None:
        """Note that a range holds its final bytes."""
        if start == stop:
            return
        self._islands[start] = stop
        while self.frontier in self._islands:
            self.frontier = self._islands.pop(self.frontier)

    def hash_on(self, buffer: memoryview) -> None:
        """Hash what was written since the last call, which is read into `buffer` piece by piece."""
        while self.hashed < (end := self.frontier):
            count = os.preadv(self.descriptor, [buffer[: end - self.hashed]], self.hashed)
            if not count:
                raise OSError(errno.EIO, "the file became shorter while it was written", str(self.path))
            self.digest.update(buffer[:count])
            self.hashed += count


class DataFiles:
    """All data files of one target."""

    def __init__(self, folder: Path, layout: Layout) -> None:
        self.folder = folder
        self._layout = layout
        self.files: list[DataFile] = []

    def reserve(self) -> None:
        """Create the files in their full size with their headers. Raises `QconvdError` if the disk cannot hold them."""
        plan = self._layout.plan
        self.folder.mkdir(parents=True, exist_ok=True)
        there = sum(_allocated(self.folder / f.path) for f in plan.files)
        free = _free(self.folder)
        if plan.nbytes - there > free:
            raise no_space(self.folder, plan.nbytes - there, free)
        try:
            for spec in plan.files:
                file = DataFile(self.folder / spec.path, spec.nbytes)
                self.files.append(file)
                file.reserve()
                header = self._layout.header(spec)
                file.write(0, memoryview(header))
                file.written(0, len(header))
                for place, data in self._layout.between(spec).items():
                    file.write(place, memoryview(data))
                for start, stop in self._layout.gaps(spec, len(header)):
                    file.written(start, stop)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise no_space(self.folder, plan.nbytes - there, free) from error
            raise
        for folder in {f.path.parent for f in self.files} | {self.folder, self.folder.parent}:
            sync_folder(folder)

    def check_there(self, every: bool = False) -> None:
        """Raise `TakenAway` if the files were removed or moved while they are written; `every`: each is looked for by its name.

        A file that is open goes on without its name, so writing to it would say nothing.
        """
        if not self.folder.is_dir():
            raise _taken_away(self.folder)
        for file in self.files:
            if (file.linked and not os.fstat(file.descriptor).st_nlink) or (every and not file.path.exists()):
                raise _taken_away(file.path)

    def write(self, unit: Unit, rows: tuple[int, int], buffers: Sequence[memoryview]) -> None:
        """Write the outputs of a unit for some rows."""
        for (index, offset, _), data in zip(self._layout.pieces(unit, rows), buffers, strict=True):
            self.files[index].write(offset, data)

    def written(self, unit: Unit, rows: tuple[int, int]) -> set[DataFile]:
        """Note that these rows are written, and return the files they are in."""
        touched = set()
        for index, offset, nbytes in self._layout.pieces(unit, rows):
            self.files[index].written(offset, offset + nbytes)
            touched.add(self.files[index])
        return touched

    def sums(self, unit: Unit, rows: tuple[int, int]) -> tuple[int, ...]:
        """The checksum of each output of a unit for some rows, as read back."""
        return tuple(self.files[i].checksum(offset, nbytes) for i, offset, nbytes in self._layout.pieces(unit, rows))

    def discard(self) -> None:
        """Free the disk space at once; the files stay open, so that a late write in another thread harms nobody."""
        for file in self.files:
            os.ftruncate(file.descriptor, 0)
            file.path.unlink(missing_ok=True)

    def close(self) -> None:
        while self.files:
            os.close(self.files.pop().descriptor)


class Hashing:
    """Threads that hash files behind their frontiers, each file by one thread at a time."""

    def __init__(self, threads: int, failed: Callable[[Any, Exception], None]) -> None:
        self._failed = failed
        self._queue: queue.SimpleQueue[tuple[Any, DataFile] | None] = queue.SimpleQueue()
        self._waiting: set[DataFile] = set()
        self._changed = threading.Condition()
        self._threads = [threading.Thread(target=self._work, name=f"hash-{i}", daemon=True) for i in range(threads)]
        for thread in self._threads:
            thread.start()

    def follow(self, owner: Any, files: Iterable[DataFile]) -> None:
        """These files have more to hash. `owner` is told with `failed` if they cannot be read."""
        with self._changed:
            new = [f for f in files if f not in self._waiting and _worth_hashing(f)]
            self._waiting.update(new)
        for file in new:
            self._queue.put((owner, file))

    def settled(self, timeout: float) -> bool:
        """Wait up to `timeout` seconds until nothing is left to hash; whether that is so."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._waiting, timeout)

    def close(self) -> None:
        """Stop the threads; what is queued is not hashed."""
        with self._changed:
            self._waiting.clear()
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        buffer = memoryview(bytearray(HASHED_AT_ONCE))
        while (job := self._queue.get()) is not None:
            owner, file = job
            try:
                while file in self._waiting:
                    file.hash_on(buffer)
                    with self._changed:
                        if file.hashed == file.frontier:
                            self._waiting.discard(file)
                            self._changed.notify_all()
            except OSError as error:
                with self._changed:
                    self._waiting.discard(file)
                    self._changed.notify_all()
                self._failed(owner, error)


def _worth_hashing(file: DataFile) -> bool:
    return file.frontier - file.hashed >= min(HASH_BLOCK, file.nbytes - file.hashed) > 0


def no_space(folder: Path, needed: int, free: int) -> OutOfSpace:
    """The disk cannot hold what a plan needs."""
    return OutOfSpace(
        f"needs {show_size(needed)} of disk, {show_size(free)} are free",
        where=str(folder),
        fix="free some space, or choose an output folder on another disk",
    )


def _taken_away(place: Path) -> TakenAway:
    return TakenAway(
        "was removed or moved away while it was being written",
        where=str(place),
        fix="leave `.qconvd` in the output folder alone while something is converted",
    )


def _allocated(path: Path) -> int:
    try:
        return path.stat().st_blocks * 512
    except FileNotFoundError:
        return 0


def _free(folder: Path) -> int:
    status = os.statvfs(folder)
    return status.f_bavail * status.f_frsize
