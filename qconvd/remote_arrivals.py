"""From the Hub to the ledger: what is watched there and what somebody adds, taken like models in watched folders.

The questions to the Hub are asked by a thread (watch/hub.py); here, in the daemon's loop, its reports become sources and what
the recipes want of them. What cannot be had is told, with the page to visit.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from qconvd import checkpoints
from qconvd.config import Config, WatchHub
from qconvd.errors import HubBusy, HubRefused, QconvdError
from qconvd.hub.address import MAIN, SCHEME, Address
from qconvd.hub.cache import CachedRepo, cache_folder
from qconvd.hub.client import RemoteModel
from qconvd.hub.heads import Found
from qconvd.hub.journal import JOURNAL, MODEL, begun
from qconvd.ledger import Ledger, Snapshot, Source
from qconvd.logs.about import about_source
from qconvd.quantities import show_size
from qconvd.sightings import Kind, Sighting
from qconvd.watch.hub import HubWatch, Report, fits
from qconvd.wishes import Wishes

log = logging.getLogger(__name__)
KEEP_SECONDS = 3600.0
FOLDER = "hub"
"""Below the state folder: heads of models, and links to what was fetched."""


@dataclass
class Added:
    """What somebody asked for by `qconvd add`, until it was looked at."""

    recipe: str
    error: QconvdError | None = None
    source: int | None = None


class RemoteArrivals:
    """The Hub's side of `Arrivals`. `wake` is called (from any thread) when there is something to do."""

    def __init__(self, ledger: Ledger, wishes: Wishes, wake: Callable[[], None], state: Path) -> None:
        self.problems: dict[str, QconvdError] = {}
        """By locator: what cannot be had, and why."""
        self._ledger = ledger
        self._wishes = wishes
        self._state = state
        self._entries: tuple[WatchHub, ...] = ()
        self._cache: Path | None = None
        self._added: dict[tuple[str, str], Added] = {}
        self._commits: dict[str, str] = {}
        """By locator: the commit that the ledger knows, or that was refused; the watching thread reads it."""
        self._earlier: dict[str, set[str]] = {}
        """By locator: all commits that were ever taken."""
        self._recipes_there: frozenset[str] = frozenset()
        self._unheld: set[str] = set()
        """Locators of models of a watched author that were not held against the present filters yet: those need a listing."""
        self._freed: tuple[object, ...] = ()
        self._watch = HubWatch(wake, self, state / FOLDER)

    def configure(self, config: Config) -> None:
        """Watch what this configuration says, and hold what is known against its recipes."""
        self._entries, self._cache, self._freed = config.repositories, config.hub.cache, ()
        self._recipes_there = frozenset(config.recipes)
        self.problems.clear()
        self._unheld.clear()
        self._commits = {s.locator: s.fingerprint for s in self._sources() if s.state in ("present", "refused")}
        for row in self._ledger.rows("SELECT locator, fingerprint FROM source WHERE locator LIKE 'hub:%'"):
            self._earlier.setdefault(row["locator"], set()).add(row["fingerprint"])
        for source in self._sources():
            if source.state == "present":
                self._want_again(source)
        self._watch.configure(config.hub, {entry.hub: entry.interval for entry in config.repositories})

    def tick(self) -> None:
        """Take what the Hub has answered, and let go of what was made."""
        for report in self._watch.take():
            self._hear(report)
        self._free()

    def add(self, address: Address, recipe: str) -> Added | None:
        """Somebody wants a model by a recipe. None while it is looked at; to be asked again until it is not."""
        key = (address.locator, recipe)
        if key not in self._added:
            self._added[key] = Added(recipe)
            self._commits.pop(address.locator, None)
            self._watch.ask(address)
        known = self._added[key]
        if known.error is None and known.source is None:
            return None
        return self._added.pop(key)

    def hint(self, repo: str) -> bool:
        """A webhook names a repository; returns whether it is watched."""
        return self._watch.hint(repo)

    def quiet(self) -> bool:
        return self._watch.quiet() and not self._added

    def sightings(self) -> list[Sighting]:
        """What is watched on the Hub and cannot be had."""
        return [
            Sighting(_kind(error), locator, locator.rpartition("/")[2], error.what, _remedy(error), self._recipes(locator))
            for locator, error in self.problems.items()
        ]

    def close(self) -> None:
        self._watch.close()

    def _recipes(self, locator: str) -> tuple[str, ...]:
        return tuple(dict.fromkeys(r for e in self._entries if e.hub.shown == locator for r in e.recipes))

    # Called from the watching thread, where a look into a dictionary is safe.

    def commit(self, address: Address) -> str:
        """The commit that was last looked at."""
        return self._commits.get(address.locator, "")

    def earlier(self, address: Address, commit: str) -> bool:
        """Whether a commit was taken before the present one."""
        return bool(self._commits.get(address.locator)) and commit in self._earlier.get(address.locator, ())

    # In the daemon's loop

    def _hear(self, report: Report) -> None:
        locator = report.address.locator
        if report.error is not None:
            self._refuse(report)
            return
        self.problems.pop(f"hub:{report.address.owner}/*", None)
        if report.found is not None:
            self._take(report.found)
        elif report.remote is not None and locator in self._unheld:
            source = self._ledger.source_at(locator)
            if source is not None and source.state == "present":
                self._want_again(source, report.remote)
        # What was wrong with a commit is wrong with it still, unless it was only that it could not be had.
        told = self.problems.get(locator)
        if told is not None and (report.found is not None or isinstance(told, HubBusy | HubRefused)):
            del self.problems[locator]
            log.info("%s can be had again", locator, extra={"action": "hub.back", "source": locator})

    def _refuse(self, report: Report) -> None:
        error, locator = report.error, report.address.locator
        assert error is not None
        told = self.problems.get(locator)
        self.problems[locator] = error
        for key in [k for k in self._added if k[0] == locator]:
            self._added[key].error = error
            self.problems.pop(locator, None)
        if report.commit:
            self._commits[locator] = report.commit  # this commit is not looked at again; the next one is
        if told is None or str(told) != str(error):
            fix = f"; {fix}" if (fix := _remedy(error)) else ""
            if isinstance(error, HubBusy):
                log.info("%s: %s%s", locator, error.what, fix, extra={"action": "hub.busy", "source": locator})
            else:
                log.warning("%s: %s%s", locator, error.what, fix, extra={"action": "hub.refused", "source": locator})

    def _take(self, found: Found) -> None:
        """A commit that was not seen before. The same content as before is the same version, whatever else it brings."""
        locator = found.address.locator
        entries = [e for e in self._entries if _covers(e, found.address, found.remote)]
        added = {key: one for key, one in self._added.items() if key[0] == locator}
        recipes = dict.fromkeys(r for e in entries for r in e.recipes)
        with self._ledger.transaction():
            before = self._ledger.source_at(locator)
            source = self._ledger.source_seen(locator, found.digest, found.model.name, found.remote.commit)
            recipes |= dict.fromkeys([*self._asked_before(source), *(one.recipe for one in added.values())])
            recipes = {name: None for name in recipes if name in self._recipes_there}
            after = "delete" if any(e.after == "delete" for e in entries) else "keep"
            known = self._ledger.snapshot_of(source.id)
            if known is not None and known.state != "here" and not Path(known.heads).is_dir():
                self._ledger.snapshot_lost(source.id)
            remote, heads = found.remote, found.model.path
            self._ledger.snapshot_listed(source.id, remote.repo, remote.commit, heads, found.listing, after)
            made = self._wishes.want(source, found.model, list(recipes))
        self._commits[locator] = found.remote.commit
        self._earlier.setdefault(locator, set()).add(found.remote.commit)
        for one in added.values():
            one.source = source.id
        new = before is None or before.id != source.id
        version = f" (version {source.version})" if source.version > 1 else ""
        if new or made:
            log.info("%s%s at %s is taken; artifacts to make: %d", locator, version, found.remote.commit[:12], len(made),
                     extra={"action": "model.taken", **about_source(source), "jobs": self._ledger.job_numbers(made)},
                     )  # fmt: skip
        else:
            log.info("%s at %s: what changed is no part of the model", locator, found.remote.commit[:12],
                     extra={"action": "model.unchanged", **about_source(source)})  # fmt: skip
        self._sweep(found)

    def _asked_before(self, source: Source) -> list[str]:
        """Recipes that wanted a model before, by an entry or because somebody asked."""
        return [j.recipe for j in self._ledger.jobs_of(source.id) if j.recipe in self._recipes_there]

    def _want_again(self, source: Source, remote: RemoteModel | None = None) -> None:
        """The recipes may be others than they were: hold the headers against them, without asking the Hub.

        Whether a model fits the filters of an author's entry is known from a listing only, so without `remote` these wait.
        """
        snapshot = self._ledger.snapshot_of(source.id)
        if snapshot is None:
            return
        repo, _, revision = source.locator.removeprefix(SCHEME).partition("@")
        address = Address(repo, revision or MAIN)
        recipes = dict.fromkeys(self._asked_before(source))
        for entry in self._entries:
            if _covers(entry, address, remote):
                recipes |= dict.fromkeys(entry.recipes)
        self._unheld.discard(source.locator)
        if remote is None and any(entry.hub.author == address.owner for entry in self._entries):
            self._unheld.add(source.locator)
        try:
            model = checkpoints.inspect(Path(snapshot.heads))
        except QconvdError:
            self._commits.pop(source.locator, None)  # the next look makes the headers anew
            return
        self._wishes.want(source, replace(model, name=source.name), list(recipes))

    def _free(self) -> None:
        """Delete what was fetched for models that are done, or that a newer version has replaced, where the configuration
        says so."""
        if self._freed == (mark := self._ledger.mark()):
            return
        self._freed = mark
        read = {t.source for t in self._ledger.tasks("queued", "running")}
        for snapshot in self._ledger.snapshots("here", "listed"):
            replaced = self._ledger.source(snapshot.source).state == "replaced"
            if snapshot.after != "delete" or snapshot.source in read or (snapshot.state == "listed" and not replaced):
                continue
            targets = [t for t in self._ledger.targets(source=snapshot.source) if t.state != "superseded"]
            if (targets or replaced) and all(t.state == "done" for t in targets):
                self._let_go(snapshot)

    def _let_go(self, snapshot: Snapshot) -> None:
        contents = {str(f["path"]): str(f["sha256"] or f["oid"]) for f in snapshot.files}
        folder, cached = Path(snapshot.heads).parent, CachedRepo(cache_folder(self._cache), snapshot.repo)
        # What was begun and replaced before it was here, only the journal knows.
        ours = {path: contents[path] for path in (*snapshot.fetched, *begun(folder)) if path in contents}
        # First the ledger: what is half deleted is not here.
        self._ledger.snapshot_freed(snapshot.source)
        cached.sweep(ours.values())
        freed = cached.free(snapshot.commit_id, ours)
        shutil.rmtree(folder / MODEL, ignore_errors=True)
        with suppress(OSError):
            (folder / JOURNAL).unlink()
        if not ours:
            return
        log.info("%s at %s is done, and what was fetched of it is deleted (%s)", snapshot.repo, snapshot.commit_id[:12],
                 show_size(freed),
                 extra={"action": "source.left", **about_source(self._ledger.source(snapshot.source))})  # fmt: skip

    def _sweep(self, found: Found) -> None:
        """Remove the headers of old commits of this repository that no source speaks of any more."""
        folder = found.model.path.parent.parent
        current = {s.id for s in self._ledger.sources()} | {t.source for t in self._ledger.tasks("running")}
        used = {Path(s.heads).parent.name for s in self._ledger.snapshots() if s.source in current} | {found.remote.commit}
        for old in folder.iterdir() if folder.exists() else ():
            # A young one may have been made by the watching thread for a branch that is reported next.
            if old.name not in used and time.time() - old.stat().st_mtime > KEEP_SECONDS:
                shutil.rmtree(old, ignore_errors=True)

    def _sources(self) -> list[Source]:
        return [s for s in self._ledger.sources() if s.locator.startswith("hub:")]


def _kind(error: QconvdError) -> Kind:
    """A refusal waits for somebody (conditions to accept, a token); a model of another kind is not converted at all."""
    return "unreadable" if isinstance(error, HubBusy) else "refused" if isinstance(error, HubRefused) else "unwanted"


def _remedy(error: QconvdError) -> str:
    """What to do about it, and when the Hub is asked again then."""
    match error:
        case HubBusy():
            again = "it is asked again by itself"
        case HubRefused():
            again = "then `qconvd reload`"
        case _:
            again = ""
    return "; ".join(filter(None, (error.fix, again)))


def _covers(entry: WatchHub, address: Address, remote: RemoteModel | None) -> bool:
    models = entry.hub
    if models.repo is not None:
        return Address(models.repo, models.revision or MAIN) == address
    return models.author == address.owner and address.revision == MAIN and remote is not None and fits(models, remote)
