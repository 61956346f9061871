"""What becomes of a source that is done: `after: keep | move | delete`.

Moving is one rename to `.qconvd-done/` inside the watched folder: the same filesystem, so no copy that could break off, and
a hidden name, so it is not taken for a new model. A link is moved or removed itself; what it points to is somebody else's.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
from pathlib import Path

from qconvd import intake
from qconvd.checkpoints.files import is_there
from qconvd.config import Config, WatchFolder
from qconvd.engine.durable import make_folders, sync_folders
from qconvd.errors import QconvdError
from qconvd.ledger import Ledger, Source
from qconvd.logs.about import about_source

log = logging.getLogger(__name__)
DONE = ".qconvd-done"
LEAVING = ".qconvd-leaving"


class Departures:
    """Lets sources go, when something in the ledger has changed; complains once about each that cannot."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._seen: tuple[object, ...] = ()
        self._complaints: dict[str, str] = {}

    def configure(self, config: Config) -> None:
        """Also finishes deletions that a crash has interrupted."""
        self._seen = ()
        for watch in config.folders:
            if watch.after == "delete":
                shutil.rmtree(watch.folder / LEAVING, ignore_errors=True)

    def tick(self, config: Config) -> None:
        if all(watch.after == "keep" for watch in config.folders) or self._seen == (mark := self._ledger.mark()):
            return
        self._seen = mark
        folders = {watch.folder: watch for watch in config.folders if watch.after != "keep"}
        for source in self._ledger.sources():
            watch = next((w for f, w in folders.items() if Path(source.locator).is_relative_to(f)), None)
            if watch is not None and source.state == "present":
                self._depart(config.output, watch, source)

    def _depart(self, output: Path, watch: WatchFolder, source: Source) -> None:
        try:
            depart(self._ledger, output, watch, source)
        except QconvdError as error:
            if self._complaints.get(source.locator) != str(error):
                self._complaints[source.locator] = str(error)
                log.error("%s", error, extra={"action": "source.stays", **about_source(source)})


def depart(ledger: Ledger, output: Path, watch: WatchFolder, source: Source) -> bool:
    """Move or delete a source if its folder says so and every artifact of it is made; returns whether it went.

    Every live target must be done, one at least, and each artifact's manifest must be there now: nothing is deleted for
    what a person has removed by hand. A source that changed since it was taken stays. Raises `QconvdError` if the
    filesystem does not let it go.
    """
    path = Path(source.locator)
    if not _all_made(ledger, output, source) or intake.look(path).fingerprint != source.fingerprint:
        return False
    try:
        whole = _whole(path)
        place = _move(whole, watch.folder) if watch.after == "move" else _delete(whole, watch.folder)
    except OSError as error:
        gone = "moved" if watch.after == "move" else "deleted"
        raise QconvdError(
            f"the source is done but cannot be {gone}: {os.strerror(error.errno or 0)}",
            where=source.locator,
            fix=f"give the user that runs qconvd write permission to {watch.folder}, or set `after: keep`",
        ) from error
    ledger.source_gone(source.locator, place)
    log.info("%s is done and was %s", path, place, extra={"action": "source.left", **about_source(source)})
    return True


def _all_made(ledger: Ledger, output: Path, source: Source) -> bool:
    live = [t for t in ledger.targets(source=source.id) if t.state != "superseded"]
    return bool(live) and all(t.state == "done" and is_there(output / t.folder / t.manifest_name) for t in live)


def _whole(path: Path) -> list[Path]:
    """What leaves with a model: all parts of a split GGUF; of a snapshot in the Hugging Face cache, links, the repository."""
    if (part := re.fullmatch(r"(.+)-\d{5}-of-(\d{5})\.gguf", path.name)) is not None:
        count = int(part[2])
        parts = [path.with_name(f"{part[1]}-{number:05}-of-{part[2]}.gguf") for number in range(1, count + 1)]
        return [p for p in parts if os.path.lexists(p)]
    if path.parent.name != "snapshots" or not path.parent.parent.name.startswith("models--"):
        return [path]
    if others := [p.name for p in path.parent.iterdir() if p != path]:
        raise QconvdError(
            f"the source is done and stays: its files may be shared with the snapshot {others[0]}",
            where=str(path),
            fix="remove the repository by hand, or set `after: keep`",
        )
    return [path.parent.parent]


def _move(whole: list[Path], folder: Path) -> str:
    done = folder / DONE
    if done.is_symlink():
        raise QconvdError(
            f"the source is done and stays: {DONE} is a link, and leads out of the watched folder",
            where=str(done),
            fix="make it a folder; another disk can be mounted there",
        )
    make_folders(done)
    places, number = [done / p.name for p in whole], 1
    while any(os.path.lexists(place) for place in places):
        number += 1
        places = [done / f"{p.name}.{number}" for p in whole]
    for path, place in zip(whole, places, strict=True):
        if path.is_symlink() and not (target := path.readlink()).is_absolute():
            # One folder further down a relative link would lead elsewhere.
            place.symlink_to(os.path.relpath(path.parent / target, done))
            path.unlink()
        else:
            path.rename(place)
    sync_folders((done, *(path.parent for path in whole)))
    return f"moved to {places[0]}"


def _delete(whole: list[Path], folder: Path) -> str:
    """Out of sight by one rename first, and on disk: half a model is never left where a model was."""
    leaving = folder / LEAVING
    make_folders(leaving)
    for path in whole:
        path.rename(leaving / path.name)
    sync_folders((leaving, *(path.parent for path in whole)))
    shutil.rmtree(leaving)
    return "deleted"
