"""The source's bytes: read with pread into reused buffers, each byte once per work item, and proved unchanged at the end.

No mmap: mapped pages count as resident memory, and a file that shrinks would be a SIGBUS instead of an error.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from types import TracebackType

import numpy as np

from qconvd.checkpoints.base import ModelInfo, TensorInfo
from qconvd.engine.elements import AnyArray, matrix, numpy_dtype
from qconvd.engine.expr import Read
from qconvd.engine.regions import Need
from qconvd.errors import BadCheckpoint

ROUND = 1 << 16
"""Buffers are multiples of this, so that chunks of about one size reuse each other's."""
LARGEST_READ = 1 << 30
"""Linux moves at most 2 GiB - 4 KiB in one call."""


class Buffers:
    """Byte buffers that are handed out again: fresh pages cost more than the copy into them. At most `idle` bytes are kept."""

    def __init__(self, idle: int) -> None:
        self._limit = idle
        self._idle = 0
        self._free: list[AnyArray] = []
        self._lock = threading.Lock()

    def take(self, nbytes: int) -> AnyArray:
        """A uint8 array of at least `nbytes`, its content undefined."""
        with self._lock:
            fitting = [i for i, b in enumerate(self._free) if nbytes <= len(b) <= 2 * nbytes + ROUND]
            if fitting:
                buffer = self._free.pop(min(fitting, key=lambda i: len(self._free[i])))
                self._idle -= len(buffer)
                return buffer
        return np.empty(-(-max(1, nbytes) // ROUND) * ROUND, np.uint8)

    def give(self, buffer: AnyArray) -> None:
        """Take a buffer back that nobody looks at any more."""
        with self._lock:
            self._free.append(buffer)
            self._idle += len(buffer)
            while self._idle > self._limit:
                self._idle -= len(self._free.pop(0))


class Source:
    """A model's weight files, open for reading. Use as a context manager; `block` may be called from any thread."""

    def __init__(self, model: ModelInfo, buffers: Buffers | None = None) -> None:
        self.model = model
        self.bytes_read = 0
        self._buffers = buffers or Buffers(0)
        self._files: dict[str, tuple[int, os.stat_result]] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> Source:
        try:
            for name in sorted({t.file for t in self.model.stored.values()}):
                self._files[name] = self._open(name)
            for tensor in self.model.stored.values():
                if tensor.offset + tensor.nbytes > self._files[tensor.file][1].st_size:
                    raise self._truncated(tensor, self._files[tensor.file][1].st_size)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the files; the source cannot be read any more."""
        while self._files:
            os.close(self._files.popitem()[1][0])

    def identity(self) -> list[list[str | int]]:
        """What tells this state of the files from another: [name, bytes, nanoseconds of the last change] each."""
        return [[name, known.st_size, known.st_mtime_ns] for name, (_, known) in self._files.items()]

    def check(self) -> None:
        """Raise `BadCheckpoint` if a file was written to, replaced or removed since it was opened."""
        for name, (descriptor, known) in self._files.items():
            try:
                found = [os.fstat(descriptor), (self.model.path / name).stat()]
            except OSError as error:
                raise self._changed(name) from error
            if any(_identity(status) != _identity(known) for status in found):
                raise self._changed(name)

    def tensor(self, read: Read) -> TensorInfo:
        """What a `Read` refers to. Raises `BadCheckpoint` if the model has no such tensor, or another type or shape."""
        tensor = self.model.stored.get(read.tensor)
        if tensor is None or (tensor.dtype, tensor.shape) != (read.dtype, tuple(read.shape)):
            found = f"{tensor.dtype} {tensor.shape}" if tensor else "nothing of that name"
            raise BadCheckpoint(
                f"the plan wants {read.tensor} as {read.dtype} {read.shape}, the model has {found}",
                where=str(self.model.path),
                fix="the model changed after it was planned; plan again",
            )
        return tensor

    def block(self, read: Read, r0: int, r1: int, c0: int, c1: int) -> AnyArray:
        """Rows `r0:r1`, columns `c0:c1` of a tensor as stored: a new (rows, columns) array. Raises `BadCheckpoint`."""
        need = Need(read, r0, r1, c0, c1)
        return self._fill(need, np.empty(need.nbytes, np.uint8))

    def window(self, needs: Sequence[Need]) -> Window:
        """Read these blocks once, for any number of consumers."""
        return Window(self, needs)

    def _fill(self, need: Need, buffer: AnyArray) -> AnyArray:
        tensor = self.tensor(need.read)
        rows, columns = matrix(tensor.dtype, tensor.shape)
        item = numpy_dtype(tensor.dtype).itemsize
        height, width = need.r1 - need.r0, need.c1 - need.c0
        view = memoryview(buffer.data)[: need.nbytes]
        if not (0 <= need.r0 <= need.r1 <= rows and 0 <= need.c0 <= need.c1 <= columns):
            raise BadCheckpoint(f"rows {need.r0}:{need.r1} are not in the tensor", where=self._place(tensor))
        if width == columns:
            self._pread(tensor, need.r0 * columns * item, view)
        else:
            for row in range(height):
                start = ((need.r0 + row) * columns + need.c0) * item
                self._pread(tensor, start, view[row * width * item : (row + 1) * width * item])
        with self._lock:
            self.bytes_read += need.nbytes
        return np.frombuffer(view, numpy_dtype(tensor.dtype)).reshape(height, width)

    def _pread(self, tensor: TensorInfo, start: int, view: memoryview) -> None:
        descriptor = self._files[tensor.file][0]
        done = 0
        while done < len(view):
            at = tensor.offset + start + done
            try:
                count = os.preadv(descriptor, [view[done : done + LARGEST_READ]], at)
            except OSError as error:
                reason = os.strerror(error.errno or 0)
                raise BadCheckpoint(f"cannot be read at byte {at}: {reason}", where=self._place(tensor)) from error
            if not count:
                raise self._truncated(tensor, at)
            done += count

    def _open(self, name: str) -> tuple[int, os.stat_result]:
        path = self.model.path / name
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise BadCheckpoint(f"cannot be opened: {os.strerror(error.errno or 0)}", where=str(path)) from error
        return descriptor, os.fstat(descriptor)

    def _place(self, tensor: TensorInfo) -> str:
        return f"{self.model.path / tensor.file}, tensor {tensor.name}"

    def _truncated(self, tensor: TensorInfo, at: int) -> BadCheckpoint:
        end = tensor.offset + tensor.nbytes
        what = f"is truncated: it ends at byte {at}, the tensor at byte {end}"
        return BadCheckpoint(what, where=self._place(tensor), fix="copy or download the file again")

    def _changed(self, name: str) -> BadCheckpoint:
        return BadCheckpoint(
            "changed while it was read", where=str(self.model.path / name), fix="convert again when nobody writes to the model"
        )


class Window:
    """The source bytes of one work item, read when made. Arrays from `block` are views: they end with `close`."""

    def __init__(self, source: Source, needs: Sequence[Need]) -> None:
        self._source = source
        self._buffers: list[AnyArray] = []
        self._held: dict[str, list[tuple[Need, AnyArray]]] = {}
        for need in needs:
            buffer = source._buffers.take(need.nbytes)
            self._buffers.append(buffer)
            self._held.setdefault(need.read.tensor, []).append((need, source._fill(need, buffer)))

    def block(self, read: Read, r0: int, r1: int, c0: int, c1: int) -> AnyArray:
        """Rows `r0:r1`, columns `c0:c1` of a tensor; read again only if the window was not made for them."""
        for need, array in self._held.get(read.tensor, ()):
            if need.r0 <= r0 and r1 <= need.r1 and need.c0 <= c0 and c1 <= need.c1:
                return array[r0 - need.r0 : r1 - need.r0, c0 - need.c0 : c1 - need.c0]
        return self._source.block(read, r0, r1, c0, c1)

    def close(self) -> None:
        """Give the buffers back for the next window."""
        self._held.clear()
        while self._buffers:
            self._source._buffers.give(self._buffers.pop())


def _identity(status: os.stat_result) -> tuple[int, int, int, int]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
