"""Looks for changes as long as anybody listens, and tells all who do: what happened, how far it is, what the pages show now."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from qconvd.errors import QconvdError
from qconvd.ledger import Ledger
from qconvd.progress import NAME as PROGRESS
from qconvd.progress import read_progress
from qconvd.quantities import show_size
from qconvd.sightings import NAME as SIGHTINGS
from qconvd.web.pages import Pages
from qconvd.web.reading import row_data
from qconvd.web.site import Site
from qconvd.web.streams import Frame, Streams, frame

log = logging.getLogger(__name__)
PERIOD = 0.5
"""Seconds between two looks; the daemon itself writes progress no oftener."""
SLOW = 10
"""Looks after which what nobody tells of is looked at: memory, disks, the ends of logs."""
API = "api"
MISSED = 1000
"""Events that a reader who comes again is told at most."""


class Watcher:
    """One for all readers. Without readers it sleeps."""

    def __init__(self, site: Site, ledger: Ledger, pages: Pages, streams: Streams) -> None:
        self._site, self._ledger, self._pages, self._streams = site, ledger, pages, streams
        self._task: asyncio.Task[None] | None = None
        self._seen: object = None
        self._progress_seen: object = None
        self._last = 0
        self._looks = 0
        self._sent: dict[str, dict[str, str]] = {}
        """The sections that the readers of a channel have."""

    def begin(self) -> None:
        """There is a reader."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())

    def end(self) -> None:
        """There is none any more."""
        if self._task is not None:
            self._task.cancel()
        self._task, self._seen = None, None
        self._sent.clear()

    def missed(self, since: int | None) -> list[Frame]:
        """What a reader of the API gets first: what happened since the last event that it had."""
        return [frame("history", row_data(row), row["id"]) for row in self._events(since)] if since is not None else []

    def greeting(self, channel: str) -> list[Frame]:
        """What a reader of a page gets first: every section as it is now."""
        return [*map(_section, self._pages.sections(channel).items()), *self._progress(channel)]

    async def _run(self) -> None:
        self._last = await asyncio.to_thread(self._newest)
        while True:
            await asyncio.sleep(PERIOD)
            try:
                for channel, frames in await asyncio.to_thread(self._look, self._streams.channels):
                    self._streams.send(channel, frames)
            except (sqlite3.Error, OSError, QconvdError) as error:
                # The disk is full, or somebody holds the ledger: the daemon itself says so in its log.
                log.debug("cannot look: %s", error, extra={"action": "web.trouble"})

    def _look(self, channels: Iterable[str]) -> list[tuple[str, list[Frame]]]:
        """What is new, for each of these channels."""
        state = self._site.state
        self._looks += 1
        seen = (self._ledger.mark(), _modified(state / SIGHTINGS), self._site.unready(), id(self._site.config))
        told = seen != self._seen
        moved = (now := _modified(state / PROGRESS)) != self._progress_seen
        self._seen, self._progress_seen = seen, now
        found: list[tuple[str, list[Frame]]] = []
        for channel in channels:
            frames: list[Frame] = []
            if channel == API and told:
                frames += self._happened()
            elif channel != API and (told or channel not in self._sent):
                frames += self._changed(channel, self._pages.sections(channel))
            elif channel != API and self._looks % SLOW == 0:
                frames += self._changed(channel, self._pages.unannounced(channel))
            if moved or told:
                frames += self._progress(channel)
            found.append((channel, frames))
        for gone in set(self._sent) - {channel for channel, _ in found}:
            del self._sent[gone]
        return found

    def _happened(self) -> list[Frame]:
        rows = self._events(self._last)
        self._last = rows[-1]["id"] if rows else self._last
        return [frame("history", row_data(row), row["id"]) for row in rows]

    def _events(self, since: int) -> list[sqlite3.Row]:
        return self._ledger.rows("SELECT * FROM event WHERE id > ? ORDER BY id LIMIT ?", (since, MISSED))

    def _changed(self, channel: str, now: dict[str, str]) -> list[Frame]:
        """What of these sections the readers of a channel do not have yet."""
        sent = self._sent.setdefault(channel, {})
        new = {name: html for name, html in now.items() if sent.get(name) != html}
        sent.update(new)
        return [*map(_section, new.items())]

    def _progress(self, channel: str) -> list[Frame]:
        known = read_progress(self._site.state)
        if channel == API:
            return [frame("progress", {id: asdict(p) for id, p in known.items()})]
        shown = {id: {"done": p.done, "total": p.total, "text": p.told} for id, p in known.items()}
        return [frame("progress", {"targets": shown, "rate": f"{show_size(sum(p.rate for p in known.values()))}/s"})]

    def _newest(self) -> int:
        return int(self._ledger.rows("SELECT coalesce(max(id), 0) FROM event")[0][0])


def _section(item: tuple[str, str]) -> Frame:
    return frame("section", {"id": item[0], "html": item[1]})


def _modified(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0
