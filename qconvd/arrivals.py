"""From "look at this" to the ledger: which models are in the watched folders, whether they are all there, and who wants them.

The scan of a folder is the truth. Hints of the watchers bring it forward, candidates that settle are looked at when they are
due, and whatever else happens a folder is scanned every `interval`.
"""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from qconvd import checkpoints, intake
from qconvd.config import Config, WatchFolder
from qconvd.errors import QconvdError
from qconvd.ledger import Ledger
from qconvd.logs.about import about_source
from qconvd.recovery import second_chance, withdraw
from qconvd.sightings import Sighting
from qconvd.watch.folder import FolderWatch
from qconvd.watch.settle import LOCAL_SECONDS, POLLED_SECONDS, Candidate, Settling
from qconvd.wishes import Wishes

log = logging.getLogger(__name__)
HINT_GAP = 0.2
"""Seconds between two scans that hints ask for: a copy of a thousand files is a thousand hints."""
TOGETHER = 0.25
"""Seconds within which models that are taken are written down: a thousand at once are a few syncs of the disk."""


class Arrivals:
    """Watched folders, and what lies in them. `wake` is called (from any thread) when there is something to do."""

    def __init__(
        self, ledger: Ledger, wishes: Wishes, wake: Callable[[], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.settling = Settling(clock)
        self.problems: dict[Path, str] = {}
        """Watched folders that cannot be read, and why."""
        self._ledger = ledger
        self._wishes = wishes
        self._wake = wake
        self._clock = clock
        self._hints: deque[Path] = deque(maxlen=4096)
        self._watch = FolderWatch(self._hint)
        self._folders: dict[Path, WatchFolder] = {}
        self._scan_at: dict[Path, float] = {}
        self._scanned: dict[Path, float] = {}
        self._ready: list[tuple[Candidate, WatchFolder, str]] = []
        """Models that are taken and not written down yet, with their identities."""
        self._ready_since = 0.0

    def configure(self, config: Config) -> None:
        """Watch the folders of this configuration and no others, from now on; each is scanned at the next `tick`."""
        wanted = {watch.folder: watch for watch in config.folders}
        for path in set(self._folders) - set(wanted):
            self._watch.forget(path)
            self.settling.forget(self._below(path))
            self.problems.pop(path, None)
        self._folders = wanted
        self._scan_at = dict.fromkeys(wanted, self._clock())
        # Armed before anybody is told that the daemon is ready; what is away is taken up by the scans.
        for path, watch in wanted.items():
            self._watch.watch(path, watch.poll, watch.interval)

    def tick(self) -> None:
        """Everything that is due: hinted and scheduled scans, then candidates that settle."""
        self._hear()
        now = self._clock()
        for path, watch in self._folders.items():
            if self._scan_at[path] <= now:
                self._scan(path, watch)
        for path in self.settling.due():
            for folder, watch in self._folders.items():
                if path.is_relative_to(folder):
                    self._look(path, watch)
        self._write_down()

    def next_due(self) -> float:
        """Seconds until `tick` has something to do, if nobody wakes it before."""
        now = self._clock()
        scans = [max(0.0, at - now) for at in self._scan_at.values()]
        settles = self.settling.next_due()
        return min([*scans, *([] if settles is None else [settles])], default=3600.0)

    def quiet(self) -> bool:
        """Whether every candidate is decided: nothing settles any more, though some may wait for what is missing."""
        return not any(c.verdict == "settling" for c in self.settling.candidates.values())

    def sightings(self) -> list[Sighting]:
        """What lies in the watched folders and is no job yet, and those that cannot be read."""
        found = [Sighting("unreadable", str(path), path.name, reason) for path, reason in self.problems.items()]
        for candidate in self.settling.candidates.values():
            if candidate.verdict not in ("settling", "waiting"):
                continue
            recipes = next((w.recipes for f, w in self._folders.items() if candidate.path.is_relative_to(f)), ())
            arriving = candidate.verdict == "settling"
            found.append(Sighting(
                "arriving" if arriving else "incomplete", str(candidate.path), intake.name_of(candidate.path),
                candidate.reason, "" if arriving else candidate.look.fix, tuple(recipes),
            ))  # fmt: skip
        return found

    def close(self) -> None:
        self._watch.close()

    def _hint(self, path: Path) -> None:
        # Called from the watchers' threads: nothing but these two, which are safe there.
        self._hints.append(path)
        self._wake()

    def _hear(self) -> None:
        """Bring forward the scans of the folders in which something happened."""
        heard = set()
        while self._hints:
            heard.add(self._hints.popleft())
        if not heard:
            return
        for path in self._folders:
            # A hint may come from behind a link, where the path says nothing about the folder.
            near = any(h.is_relative_to(path) for h in heard) or any(self._behind_link(path, h) for h in heard)
            if near:
                self._scan_at[path] = min(self._scan_at[path], self._scanned.get(path, 0.0) + HINT_GAP)

    def _behind_link(self, folder: Path, hint: Path) -> bool:
        # realpath, not resolve: that raises for links that go round in circles.
        return any(p.is_symlink() and hint.is_relative_to(os.path.realpath(p)) for p in self.settling.arriving(folder))

    def _scan(self, path: Path, watch: WatchFolder) -> None:
        """Look at all that lies in a folder, and forget what does not."""
        folder = self._watch.watch(path, watch.poll, watch.interval)
        now = self._clock()
        self._scanned[path], self._scan_at[path] = now, now + watch.interval
        try:
            if folder.how == "missing":
                raise OSError(0, folder.reason)
            found = intake.candidates(path)
        except OSError as error:
            self._missing(path, error.strerror or str(error))
            return
        if self.problems.pop(path, None):
            log.info("%s is there again", path, extra={"action": "watch.back", "folder": path})
        for candidate in found:
            if not self._still_settles(candidate):
                self._look(candidate, watch)
        self._write_down()
        self._leave(path, set(found))
        if self._watch.follow(path, [*self.settling.arriving(path), *intake.openings(path, found)]):
            self._scan_at[path] = now + HINT_GAP

    def _missing(self, path: Path, reason: str) -> None:
        """A watched folder is away, perhaps for a moment: what the ledger knows of its models stays as it is."""
        if self.problems.get(path) != reason:
            log.warning("the watched folder %s cannot be read: %s; it is tried again at each scan", path, reason,
                        extra={"action": "watch.missing", "folder": path})  # fmt: skip
        self.problems[path] = reason
        self.settling.forget(self._below(path))

    def _still_settles(self, path: Path) -> bool:
        """Whether nothing happened to a candidate that is looked at again anyway, when its time is over."""
        known = self.settling.candidates.get(path)
        if known is None or known.verdict != "settling" or known.due is None or known.due <= self._clock():
            return False
        return known.look.fingerprint == intake.fingerprint(path)

    def _look(self, path: Path, watch: WatchFolder) -> None:
        known = self._ledger.source_at(str(path))
        current = known is not None and known.state in ("present", "refused") and known.fingerprint == intake.fingerprint(path)
        if known is not None and current and (known.state == "refused" or self._wishes.asked(known.id)):
            self.settling.forget([path])
            return
        look = intake.look(path)
        if known is not None and current and look.model is not None and look.fingerprint == known.fingerprint:
            # Nothing about it is new but the recipes, or this daemon.
            self._wishes.want(known, look.model, watch.recipes)
            self.settling.forget([path])
            return
        candidate = self.settling.observe(path, look, self._settle(watch))
        if candidate.verdict == "take":
            self._take(candidate, watch)
        elif candidate.verdict == "refused":
            error = QconvdError(look.reason, where=str(path), fix=look.fix)
            self._ledger.source_refused(str(path), intake.name_of(path), look.fingerprint, error)
            self.settling.forget([path])
            fix = f"\n  {look.fix}" if look.fix else ""
            log.warning("%s is refused: %s%s", path, look.reason, fix,
                        extra={"action": "model.refused", "model": intake.name_of(path), "source": path})  # fmt: skip
        elif candidate.verdict == "nothing":
            self.settling.forget([path])
        elif candidate.worth_telling(self._clock()):
            log.info("%s waits: %s", path, candidate.reason, extra={"action": "model.waiting", "source": path})

    def _take(self, candidate: Candidate, watch: WatchFolder) -> None:
        """A complete model that is quiet: identified now, written down together with what else is taken in this moment."""
        path, model = candidate.path, candidate.look.model
        assert model is not None
        try:
            identity = checkpoints.identity(model)
            unchanged = intake.fingerprint(path) == candidate.look.fingerprint
        except (OSError, QconvdError) as error:
            log.info("%s changed while it was identified: %s", path, error,
                     extra={"action": "model.unsettled", "source": path})  # fmt: skip
            unchanged = False
        if not unchanged:
            candidate.since, candidate.verdict = self._clock(), "settling"
            candidate.due = candidate.since + self._settle(watch)
            return
        if not self._ready:
            self._ready_since = self._clock()
        self._ready.append((candidate, watch, identity))
        if self._clock() - self._ready_since >= TOGETHER:
            self._write_down()

    def _write_down(self) -> None:
        """Into the ledger with the models that were taken, and with what the recipes want of them, in one step.

        If that does not work, the next scan finds them as they were.
        """
        ready, self._ready = self._ready, []
        if not ready:
            return
        written = []
        with self._ledger.transaction():
            for candidate, watch, identity in ready:
                path, model = candidate.path, candidate.look.model
                assert model is not None
                source = self._ledger.source_seen(str(path), identity, model.name, candidate.look.fingerprint)
                second_chance(self._ledger, source.id)
                written.append((path, source, self._wishes.want(source, model, watch.recipes)))
        for path, source, made in written:
            self.settling.forget([path])
            version = f" (version {source.version})" if source.version > 1 else ""
            jobs = self._ledger.job_numbers(made)
            log.info("%s%s is taken; artifacts to make: %d", path, version, len(made),
                     extra={"action": "model.taken", **about_source(source), "jobs": jobs})  # fmt: skip

    def _leave(self, folder: Path, found: set[Path]) -> None:
        """Models of this folder that are no longer there."""
        for gone in self.settling.forget([p for p in self._below(folder) if p not in found]):
            log.info("%s was removed before it was taken", gone.path,
                     extra={"action": "model.forgotten", "source": gone.path})  # fmt: skip
        for source in self._ledger.sources():
            path = Path(source.locator)
            if source.state != "gone" and path.is_relative_to(folder) and path not in found:
                with self._ledger.transaction():
                    self._ledger.source_gone(source.locator, "the model was removed from the watched folder")
                    withdraw(self._ledger, source.id)
                log.info("%s is no longer there", path, extra={"action": "model.gone", **about_source(source)})

    def _below(self, folder: Path) -> list[Path]:
        return [p for p in self.settling.candidates if p.is_relative_to(folder)]

    def _settle(self, watch: WatchFolder) -> float:
        if watch.settle is not None:
            return watch.settle
        folder = self._watch.folders.get(watch.folder)
        return POLLED_SECONDS if folder is not None and folder.how == "polling" else LOCAL_SECONDS
