"""The fetch task: a model on the Hub comes to this machine, exactly the commit and the files that were listed.

It may be killed at any point and run again: what is in the Hub cache is not fetched twice, what a killed download left there is
removed, and nothing counts as fetched before its hash was compared. What is left is a folder of links in the state folder:
the model, and nothing of what else the cache may hold of that repository.
"""

from __future__ import annotations

import fcntl
import json
import os
import queue
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from qconvd import checkpoints, rates
from qconvd.engine.durable import make_folders, sync_file, sync_folder, sync_folders, write_whole
from qconvd.engine.run import Cancelled
from qconvd.errors import Busy, HubBusy, HubRefused, OutOfSpace, TakenAway
from qconvd.hub.address import SCHEME
from qconvd.hub.cache import CachedRepo, cache_folder, holds
from qconvd.hub.client import Hub, RemoteFile
from qconvd.hub.journal import JOURNAL, MODEL, begun
from qconvd.quantities import show_size
from qconvd.tasks import FetchSpec, TargetResult, TaskResult, TaskSpec

Emit = Callable[[Mapping[str, Any]], None]
AT_A_TIME = 4
"""Files that are downloaded at a time."""
PAUSES = (1.0, 3.0)
"""Seconds before a file is asked for again, within one attempt of the task."""
LAST_SECONDS = 5.0
TELL_SECONDS = 0.5
RESERVE = 256 << 20
"""Bytes of the cache's disk that a fetch leaves alone."""


def fetch_task(spec: TaskSpec, on_event: Emit, cancelled: Callable[[], bool]) -> TaskResult:
    """Fetch the model of a task. Raises `HubRefused`, `HubBusy`, `OutOfSpace`, `Busy` and `Cancelled`."""
    wanted = spec.fetch
    assert wanted is not None, "the daemon gives every fetch task a repository"
    folder = wanted.folder
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder):
        fetch = _Fetch(wanted, cache_folder(wanted.cache), folder)
        try:
            fetch.bring(_told(spec, fetch, on_event), cancelled)
        except HubRefused as error:
            raise HubRefused(error.what, where=error.where, fix=f"{error.fix}; then `qconvd retry JOB`") from error
        model = fetch.link()
        identity = checkpoints.identity(checkpoints.inspect(model))
    data = {"folder": str(model), "identity": identity, "nbytes": wanted.nbytes, "fetched": fetch.ours}
    print(f"{SCHEME}{wanted.repo}@{wanted.commit[:12]}: {show_size(wanted.nbytes)} are here and verified", flush=True)
    return TaskResult(ok=True, targets={t.id: TargetResult(ok=True, data=data) for t in spec.targets})


class _Fetch:
    """One commit on its way into the cache."""

    def __init__(self, wanted: FetchSpec, cache: Path, folder: Path) -> None:
        self.wanted = wanted
        self.cache = cache
        self.repo = CachedRepo(cache, wanted.repo)
        self.folder = folder
        self.files = [RemoteFile(f.path, f.size, f.sha256, f.oid) for f in wanted.files]
        self.ours: list[str] = begun(folder)
        """Files that were not in the cache before us. What is deleted afterwards is among these."""
        # Found by name: a connection of its own for each process, and the token never leaves it.
        os.environ.setdefault("HF_HUB_DOWNLOAD_TIMEOUT", str(max(1, int(wanted.timeout))))
        self.hub = Hub.of(wanted)

    def bring(self, tell: Callable[..., None], cancelled: Callable[[], bool]) -> None:
        """Download what is missing, the small files first, and hold every file against its hash."""
        began = time.monotonic()
        for litter in self.repo.sweep(f.content for f in self.files):
            print(f"removed what an interrupted download left: {litter.name}", flush=True)
        missing = [f for f in self.files if not self.repo.has(self.wanted.commit, f.path, f.content)]
        self._preflight(missing)
        if new := [f.path for f in missing if f.path not in self.ours]:
            self.ours += new
            write_whole(self.folder / JOURNAL, json.dumps(self.ours).encode())
        todo: queue.SimpleQueue[RemoteFile] = queue.SimpleQueue()
        done: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()
        for file in sorted(self.files, key=lambda f: f.size):
            todo.put(file)
        # Daemons: a stop does not wait for a download that nobody can interrupt.
        threads = [threading.Thread(target=self._work, args=(todo, done), daemon=True) for _ in self.files[:AT_A_TIME]]
        for thread in threads:
            thread.start()
        for _ in self.files:
            while True:
                if cancelled():
                    raise Cancelled
                tell()
                try:
                    failed = done.get(timeout=TELL_SECONDS / 2)
                except queue.Empty:
                    continue
                break
            if failed is not None:
                _end(threads, todo)
                raise failed
        tell(True)
        rates.note_fetch(sum(f.size for f in missing), time.monotonic() - began)

    def link(self) -> Path:
        """The model as a folder of links into the cache; it appears whole, in the place of what an earlier attempt made."""
        place, draft = self.folder / MODEL, self.folder / f".{MODEL}"
        shutil.rmtree(draft, ignore_errors=True)
        for file in self.files:
            link = draft / file.path
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(os.path.abspath(self.repo.file(self.wanted.commit, file.path)))  # noqa: PTH100
        self._put_on_disk(draft)
        if place.exists():
            shutil.rmtree(place)
        draft.rename(place)
        sync_folder(self.folder)
        return place

    def _put_on_disk(self, links: Path) -> None:
        """The names in the cache, and our links; what the files hold is synced. The ledger will say that all of it is here."""
        snapshot = self.repo.file(self.wanted.commit, "")
        blobs = {Path(os.path.realpath(self.repo.file(self.wanted.commit, file.path))).parent for file in self.files}
        for folder in (snapshot, self.folder, *sorted(blobs)):
            make_folders(folder)
        folders = [p for root in (links, snapshot) for p in (root, *root.rglob("*")) if p.is_dir() and not p.is_symlink()]
        sync_folders((*folders, *sorted(blobs)))

    def _work(self, todo: queue.SimpleQueue[RemoteFile], done: queue.SimpleQueue[Exception | None]) -> None:
        while True:
            try:
                file = todo.get_nowait()
            except queue.Empty:
                return
            try:
                self._one(file)
            except Exception as error:  # noqa: BLE001 — raised again by the thread that waits
                done.put(error)
            else:
                done.put(None)

    def _one(self, file: RemoteFile) -> None:
        """One file, right to the last bit. A wrong one is fetched once more: the cache may have held damage, or the way had."""
        for again in (False, True):
            path = self._download(file)
            if holds(path, file):
                sync_file(path)
                return
            self.repo.discard(self.wanted.commit, file.path, file.content)
            if not again:
                print(f"{file.path}: is not what the Hub lists; it is fetched again", flush=True)
        raise TakenAway(
            f"{file.path} arrives with another content than the Hub lists",
            where=f"{SCHEME}{self.wanted.repo}",
            fix="it is tried again; if it stays so, the repository is damaged: tell its author",
        )

    def _download(self, file: RemoteFile) -> Path:
        """From the Hub, or from the cache. A connection that breaks is taken up again here, a few times."""
        for pause in PAUSES:
            try:
                return self._ask_for(file)
            except HubBusy as error:
                if error.reached:
                    raise  # the server is there and cannot: asking at once does not help it
                print(f"{error.what}; again in {pause:g} s", flush=True)
                time.sleep(pause)
        return self._ask_for(file)

    def _ask_for(self, file: RemoteFile) -> Path:
        with self.hub.asking(f"fetching {file.path}", self.wanted.repo):
            found = self.hub.api.hf_hub_download(
                self.wanted.repo, file.path, revision=self.wanted.commit, cache_dir=self.cache,
                etag_timeout=self.wanted.timeout,
            )  # fmt: skip
        return Path(found)

    def _preflight(self, missing: list[RemoteFile]) -> None:
        """Raise `OutOfSpace` now, and not when the disk is full of a half model."""
        there = next(p for p in (self.cache, *self.cache.parents) if p.exists())
        need = sum(f.size for f in missing)
        free = shutil.disk_usage(there).free
        if need > max(0, free - (RESERVE if need > RESERVE else 0)):
            what = f"{show_size(need)} are to be fetched, and {show_size(free)} are free"
            raise OutOfSpace(what, where=str(self.cache), fix="make room, or set `hub.cache` to a folder on a larger disk")


def _end(threads: list[threading.Thread], todo: queue.SimpleQueue[RemoteFile]) -> None:
    """Begin no file any more; what is nearly here may still come."""
    with suppress(queue.Empty):
        while True:
            todo.get_nowait()
    end = time.monotonic() + LAST_SECONDS
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))


def _told(spec: TaskSpec, fetch: _Fetch, on_event: Emit) -> Callable[..., None]:
    """Says how many bytes are there, for every target that waits for them."""
    began = time.monotonic()
    contents = [f.content for f in fetch.files]
    total = sum(f.size for f in fetch.files)
    before = min(total, fetch.repo.arriving(contents))
    last = [began - TELL_SECONDS]

    def tell(at_once: bool = False) -> None:
        now = time.monotonic()
        if now - last[0] < TELL_SECONDS and not at_once:
            return
        last[0] = now
        done = min(total, fetch.repo.arriving(contents))
        for target in spec.targets:
            on_event({
                "event": "progress", "target": target.id, "done": done, "total": total, "seconds": now - began,
                "resumed": min(before, done), "unit": "fetch",
            })  # fmt: skip

    return tell


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Nobody else fetches into this folder. Raises `Busy`."""
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise Busy("another worker fetches this model", where=str(folder), fix="it is tried again") from error
    finally:
        os.close(descriptor)
