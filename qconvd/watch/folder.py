"""Watched folders: inotify where it works, polling where it cannot, and nothing that anyone must rely on.

An event brings the next look forward and says no more than "look at this"; the daemon's periodic scan is the truth. So a
lost event costs time, never a model. One inotify watch is spent on each watched folder and one on each model that is still
arriving, not one on every folder below (a git clone has hundreds).
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

from watchdog import events
from watchdog.observers.api import BaseObserver, ObservedWatch
from watchdog.observers.inotify import InotifyObserver
from watchdog.observers.polling import PollingObserver

from qconvd.ledger.filesystem import MOUNTS, mount_of

log = logging.getLogger(__name__)
Poll: TypeAlias = Literal["auto", "always", "never"]
POLL_SECONDS = 10.0
FOLLOWED = 64
"""At most so many arriving models have a watch of their own; the others are found by the scan."""
# Opening and reading are left out, or every look would cause the next one. So is every single write: a copy of 100 GB would
# be a million events, and that the file was closed says all that matters.
WANTED: list[type[events.FileSystemEvent]] = [
    events.FileCreatedEvent, events.FileClosedEvent, events.FileMovedEvent, events.FileDeletedEvent,
    events.DirCreatedEvent, events.DirMovedEvent, events.DirDeletedEvent,
]  # fmt: skip
# Polling cannot see that a file was closed, only that it became another one.
POLLED: list[type[events.FileSystemEvent]] = [*WANTED, events.FileModifiedEvent]


@dataclass
class Folder:
    """One watched folder and how changes in it are noticed."""

    path: Path
    poll: Poll = "auto"
    interval: float = 60.0
    how: Literal["events", "polling", "scanning", "missing"] = "missing"
    reason: str = ""
    identity: tuple[int, int] | None = None
    observer: BaseObserver | None = None
    watch: ObservedWatch | None = None
    followed: dict[Path, ObservedWatch] = field(default_factory=dict)
    said: str = ""


@dataclass
class _Use:
    """How many folders and links want one watch of watchdog's, and which folder it is armed on."""

    count: int = 0
    place: tuple[int, int] | None = None


class FolderWatch:
    """Notices changes in watched folders. `hint` is called from other threads with a path that is worth a look.

    No method raises for what a folder or the kernel may do: a folder that is missing, unreadable or beyond inotify's limit
    is left to the scan, and `Folder.how` and `Folder.reason` say so.
    """

    def __init__(self, hint: Callable[[Path], None], *, mounts: Path = MOUNTS) -> None:
        self.folders: dict[Path, Folder] = {}
        self._hint = _Hint(hint)
        self._mounts = mounts
        self._observers: dict[str, BaseObserver] = {}
        self._uses: dict[tuple[BaseObserver, ObservedWatch], _Use] = {}
        self._warned: set[str] = set()
        self._overflow = _Overflow(self._lost_events)
        logging.getLogger("watchdog").addHandler(self._overflow)

    def watch(self, path: Path, poll: Poll = "auto", interval: float = 60.0) -> Folder:
        """Arm the watch on a folder, or arm it again if the folder was replaced, unmounted or mounted. Cheap if all is well.

        The daemon calls it before each scan.
        """
        folder = self.folders.setdefault(path, Folder(path))
        found = _identity(path)
        alive = folder.identity == found and (folder.poll, folder.interval) == (poll, interval) and self._alive(folder)
        if alive and folder.how != "missing":
            return folder
        if folder.how != "missing":
            self._disarm(folder)
        folder.poll, folder.interval, folder.identity = poll, interval, found
        if found is None:
            folder.how, folder.reason, folder.said = "missing", _why_missing(path), ""
        else:
            self._arm(folder)
        return folder

    def follow(self, path: Path, arriving: Collection[Path]) -> bool:
        """Notice changes inside these models, too: those that are still arriving. The others are no longer followed.

        Returns whether a watch is new: what happened before it was armed nobody has seen, so another scan is due.
        """
        folder = self.folders[path]
        wanted = set(list(arriving)[:FOLLOWED]) if folder.how == "events" else set()
        for gone in [m for m, w in folder.followed.items() if m not in wanted or not self._serves(folder.observer, w)]:
            self._unschedule(folder.observer, folder.followed.pop(gone))
        new = sorted(wanted - set(folder.followed))
        for model in new:
            try:
                # inotify does not follow a link that it is given. realpath: resolve raises for links that go round in circles.
                watch = self._schedule(folder, Path(os.path.realpath(model)))
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EMFILE):
                    self._warn_limit(error)
                    break
            else:
                folder.followed[model] = watch
        return any(model in folder.followed for model in new)

    def forget(self, path: Path) -> None:
        """Stop watching a folder."""
        folder = self.folders.pop(path, None)
        if folder is not None:
            self._disarm(folder)

    def close(self) -> None:
        """Stop all threads."""
        logging.getLogger("watchdog").removeHandler(self._overflow)
        for observer in self._observers.values():
            observer.stop()
        for observer in self._observers.values():
            observer.join()
        self._observers.clear()
        self._uses.clear()
        self.folders.clear()

    def _arm(self, folder: Folder) -> None:
        kind = mount_of(folder.path, self._mounts)
        if folder.poll == "always":
            folder.how, folder.reason = "polling", "as configured"
        elif folder.poll == "auto" and (kind.network or kind.kind.partition(".")[0] == "fuse"):
            folder.how, folder.reason = "polling", f"{kind.kind} does not report what other machines change"
        else:
            folder.how, folder.reason = "events", ""
        try:
            folder.observer = self._observer(folder)
            folder.watch = self._schedule(folder, folder.path)
        except OSError as error:
            folder.how, folder.observer, folder.watch = "scanning", None, None
            if error.errno in (errno.ENOSPC, errno.EMFILE):
                folder.reason = self._warn_limit(error)
            else:
                folder.reason = os.strerror(error.errno or 0)
        if folder.said != (said := f"{folder.how} {folder.reason}"):
            folder.said = said
            why = f" ({folder.reason})" if folder.reason else ""
            log.info("%s is watched by %s%s", folder.path, folder.how, why,
                     extra={"action": "watch.armed", "folder": folder.path})  # fmt: skip

    def _observer(self, folder: Folder) -> BaseObserver:
        seconds = min(POLL_SECONDS, folder.interval)
        name = "inotify" if folder.how == "events" else f"poll {seconds}"
        if name not in self._observers:
            observer = InotifyObserver() if folder.how == "events" else PollingObserver(timeout=seconds)
            observer.start()
            self._observers[name] = observer
        return self._observers[name]

    def _schedule(self, folder: Folder, path: Path) -> ObservedWatch:
        assert folder.observer is not None
        polling = folder.how == "polling"
        filtered = POLLED if polling else WANTED
        watch = ObservedWatch(str(path), recursive=polling, event_filter=filtered)
        # Links lead to one folder by several ways, also to a watched one itself; watchdog then gives all the same watch, also
        # where another folder has come to that path meanwhile.
        if not self._serves(folder.observer, watch):
            self._drop(folder.observer, watch)
        place = _place(watch.path)
        folder.observer.schedule(self._hint, str(path), recursive=polling, event_filter=filtered)
        use = self._uses.setdefault((folder.observer, watch), _Use())
        use.count, use.place = use.count + 1, place
        return watch

    def _disarm(self, folder: Folder) -> None:
        for watch in (*folder.followed.values(), folder.watch):
            self._unschedule(folder.observer, watch)
        folder.followed.clear()
        folder.how, folder.observer, folder.watch = "missing", None, None

    def _unschedule(self, observer: BaseObserver | None, watch: ObservedWatch | None) -> None:
        if observer is None or watch is None:
            return
        use = self._uses[observer, watch]
        use.count -= 1
        if not use.count:
            del self._uses[observer, watch]
        if not self._serves(observer, watch):
            self._drop(observer, watch)

    def _drop(self, observer: BaseObserver, watch: ObservedWatch) -> None:
        # KeyError: watchdog has dropped it by itself, because its folder went away.
        with suppress(KeyError, OSError):
            observer.unschedule(watch)

    def _alive(self, folder: Folder) -> bool:
        # What is only scanned is tried again each time: the limit may have been raised.
        return folder.watch is not None and self._serves(folder.observer, folder.watch)

    def _serves(self, observer: BaseObserver | None, watch: ObservedWatch) -> bool:
        """Whether somebody uses a watch, it is on the folder that is at its path now, and its thread runs.

        The thread ends when the folder is deleted.
        """
        if observer is None or (use := self._uses.get((observer, watch))) is None:
            return False
        return use.place == _place(watch.path) and any(e.watch == watch and e.is_alive() for e in list(observer.emitters))

    def _warn_limit(self, error: OSError) -> str:
        limit = "max_user_instances" if error.errno == errno.EMFILE else "max_user_watches"
        current = _limit(limit)
        remedy = f"sudo sysctl fs.inotify.{limit}={max(current * 4, 524288 if limit == 'max_user_watches' else 1024)}"
        reason = (
            f"inotify's limit fs.inotify.{limit} ({current}) is used up; changes are found by scanning until you run: {remedy}"
        )
        if limit not in self._warned:
            self._warned.add(limit)
            log.warning("%s", reason, extra={"action": "watch.limit"})
        return reason

    def _lost_events(self) -> None:
        for path in list(self.folders):
            self._hint.call(path)


class _Hint(events.FileSystemEventHandler):
    """Passes on where something happened, never what."""

    def __init__(self, call: Callable[[Path], None]) -> None:
        self.call = call

    def on_any_event(self, event: events.FileSystemEvent) -> None:
        for path in (event.src_path, event.dest_path):
            if path:
                self.call(Path(os.fsdecode(path)))


class _Overflow(logging.Handler):
    """watchdog tells of a queue overflow (IN_Q_OVERFLOW) in its log alone; then everything is worth a look."""

    def __init__(self, call: Callable[[], None]) -> None:
        super().__init__(logging.WARNING)
        self._call = call

    def emit(self, record: logging.LogRecord) -> None:
        if "overflow" in record.getMessage():
            self._call()


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        os.scandir(path).close()
    except OSError:
        return None
    return _place(path)


def _place(path: Path | str) -> tuple[int, int] | None:
    """What is at a path; None where there is nothing, as behind a link that leads nowhere."""
    try:
        found = Path(path).stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _why_missing(path: Path) -> str:
    try:
        os.scandir(path).close()
    except OSError as error:
        return os.strerror(error.errno or 0)
    return "it came back just now"


def _limit(name: str) -> int:
    try:
        return int(Path("/proc/sys/fs/inotify", name).read_text())
    except (OSError, ValueError):
        return 0
