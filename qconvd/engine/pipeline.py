"""What follows encoding: one thread that writes, one that makes writes durable and journals them, and the lease on memory."""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence
from dataclasses import dataclass

from qconvd.engine.credits import Credits
from qconvd.engine.graph import Chunk
from qconvd.engine.journal import Record
from qconvd.engine.source import Window
from qconvd.engine.target import TargetRun
from qconvd.engine.writer import DataFile, Hashing

SYNC_BYTES = 256 << 20
SYNC_SECONDS = 2.0
"""Writes are synced after this many bytes or seconds: what a crash may cost."""


class Lease:
    """An item's bytes and buffers, in use until the item is done and everything it made is written."""

    def __init__(self, credit: Credits, nbytes: int) -> None:
        self.window: Window | None = None
        self._credits = credit
        self._nbytes = nbytes
        self._holders = 1
        self._lock = threading.Lock()

    def hold(self) -> None:
        with self._lock:
            self._holders += 1

    def release(self) -> None:
        with self._lock:
            self._holders -= 1
            if self._holders:
                return
        if self.window:
            self.window.close()
        self._credits.give(self._nbytes)


@dataclass(frozen=True, slots=True)
class Write:
    run: TargetRun
    chunk: Chunk
    data: Sequence[memoryview]
    record: Record
    lease: Lease


class Writer:
    """The one thread that writes data, in whatever order chunks become ready."""

    def __init__(self, syncer: Syncer, hashing: Hashing) -> None:
        self.nbytes = 0
        self._syncer = syncer
        self._hashing = hashing
        self._queue: queue.SimpleQueue[Write | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="write", daemon=True)
        self._thread.start()

    def put(self, write: Write) -> None:
        """Queue a write. The queue is short: what is in it has credit."""
        self._queue.put(write)

    def close(self) -> None:
        """Write what is queued and stop."""
        self._queue.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (write := self._queue.get()) is not None:
            run, unit, rows = write.run, write.chunk.part.unit, write.chunk.rows
            try:
                if run.error is None:
                    run.files.write(unit, rows, write.data)
                    files = run.note(unit, write.record)
                    nbytes = sum(d.nbytes for d in write.data)
                    self.nbytes += nbytes
                    self._syncer.add(run, write.record, files, nbytes)
                    self._hashing.follow(run, files)
            except Exception as error:  # noqa: BLE001 — this thread must live; the target gets the reason
                run.fail(error)
            finally:
                write.lease.release()
                del write


class Syncer:
    """The thread that makes writes durable, in batches, and journals them afterwards."""

    def __init__(self) -> None:
        self._pending: dict[TargetRun, tuple[list[Record], set[DataFile]]] = {}
        self._nbytes = 0
        self._wanted = False
        self._closed = False
        self._busy = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="sync", daemon=True)
        self._thread.start()

    def add(self, run: TargetRun, record: Record, files: set[DataFile], nbytes: int) -> None:
        """These rows are written to these files, and not yet synced."""
        with self._changed:
            records, touched = self._pending.setdefault(run, ([], set()))
            records.append(record)
            touched |= files
            self._nbytes += nbytes
            if self._nbytes >= SYNC_BYTES or len(self._pending) == 1:
                self._changed.notify_all()

    def flush(self) -> None:
        """Sync and journal all that was added; returns when it is done."""
        with self._changed:
            self._wanted = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._pending and not self._busy)
            self._wanted = False

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._pending or self._closed)
                self._changed.wait_for(lambda: self._nbytes >= SYNC_BYTES or self._wanted or self._closed, SYNC_SECONDS)
                batch, self._pending, self._nbytes = self._pending, {}, 0
                if not batch and self._closed:
                    return
                self._busy = True
            for run, (records, files) in batch.items():
                if run.error is None:
                    try:
                        run.record(records, files)
                    except Exception as error:  # noqa: BLE001 — as in the writer
                        run.fail(error)
            with self._changed:
                self._busy = False
                self._changed.notify_all()
