"""A job's history with what its workers wrote between, in pieces: each says where the next begins, so one can follow it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from qconvd.errors import QconvdError
from qconvd.executors.base import MARK
from qconvd.hub.tokens import redacted
from qconvd.ledger import Event, Ledger
from qconvd.logs.job import FOLDER, change, title
from qconvd.logs.text import sentence

PIECE = 1 << 18
"""Characters, line ends included, after which a piece ends."""
READ = 1 << 22
"""Bytes of logs after which a piece ends, whatever of them is told."""
LONGEST_LINE = 1 << 16
"""Bytes after which a line of a worker's is broken: what is no text may have no line's end."""
BEGINNINGS = ("converting", "publishing")
"""States that a target gets when a task starts; all other changes are what came of it."""
CURSOR = r"([0-9]{1,15}(;[0-9]{1,15}:[0-9]{1,15})*)?"
"""What `next` looks like: the last event that was told, and for each task how far its log was read."""
_AMONG = "(SELECT value FROM json_each(?))"
_WORDS = re.compile(rb".*[^0-9A-Za-z_\x80-\xff]", re.DOTALL)
"""As much of a line as ends with a word: neither a character nor a secret is broken."""


def log_piece(ledger: Ledger, state: Path, of: str, after: str = "", *, events: bool = False) -> dict[str, Any]:
    """The lines after `after`, which is the `next` of the piece before; at most about `PIECE` characters of them.

    `of` is a job's number or a target's id. `more`: there is more already. `over`: nothing of it will change by itself any
    more. `events`: also what workers told the daemon. What looks like a secret is made unreadable. Raises `QconvdError` if
    there is no such job or target, or if `after` is no such `next`.
    """
    cursor = _Cursor.of(after)
    lines: list[str] = []
    size = 0
    # As of one moment: somebody may prune it meanwhile. What a worker wrote before its end is in its log by then.
    with ledger.snapshot():
        targets = ledger.find(of)
        over = not any(t.pending for t in targets)
        tail = _Tail(ledger, state / FOLDER, cursor, events, [t.id for t in targets])
        for line in tail.lines():
            if line is not None:
                lines.append(redacted(line))
                size += len(line) + 1
            if more := size >= PIECE or tail.bytes_read >= READ:
                break
        else:
            more = False
        tasks = tail.tasks()
    return {
        "lines": lines, "next": str(cursor), "more": more, "over": over and not more, "tasks": tasks,
        "targets": [{"label": t.label, "state": t.state, "reason": t.reason} for t in targets],
    }  # fmt: skip


@dataclass
class _Cursor:
    """How far a log was told: the last event, and of each task that was mentioned and may go on, how many bytes."""

    event: int = 0
    read: dict[int, int] = field(default_factory=dict)

    @classmethod
    def of(cls, text: str) -> _Cursor:
        if not re.fullmatch(CURSOR, text):
            raise QconvdError(f"{text!r} is no place in a log", fix="`after` is the `next` of the piece before")
        event, *read = text.split(";")
        return cls(int(event or 0), {int(task): int(place) for task, _, place in (one.partition(":") for one in read)})

    def __str__(self) -> str:
        return ";".join([str(self.event), *(f"{task}:{place}" for task, place in self.read.items())])


class _Tail:
    """Lines from a place on, None for one that is not told. It may be left after any: the cursor is always behind it."""

    def __init__(self, ledger: Ledger, folder: Path, cursor: _Cursor, events: bool, targets: list[str]) -> None:
        self.cursor = cursor
        self.bytes_read = 0
        self._ledger, self._folder, self._events, self._wanted = ledger, folder, events, targets
        # Nobody but this job's own tasks: a cursor comes from outside.
        self._targets: dict[int, set[str]] = {}
        for row in ledger.rows(f"SELECT task, target FROM task_target WHERE target IN {_AMONG}", (json.dumps(targets),)):
            self._targets.setdefault(row["task"], set()).add(row["target"])
        cursor.read = {task: place for task, place in cursor.read.items() if task in self._targets}

    def lines(self) -> Iterator[str | None]:
        for event in self._ledger.history_of(self._wanted, self.cursor.event):
            yield from self._told(event)
        for task in list(self.cursor.read):
            yield from self._written(task)

    def tasks(self) -> int:
        """How many tasks were mentioned up to the cursor."""
        query = (
            "SELECT count(DISTINCT task) FROM event WHERE id <= ? AND to_state = 'running' AND task IN"
            f" (SELECT task FROM task_target WHERE target IN {_AMONG})"
        )
        return int(self._ledger.rows(query, (self.cursor.event, json.dumps(self._wanted)))[0][0])

    def _told(self, event: Event) -> Iterator[str | None]:
        line = ""
        if event.target is not None:
            if event.to_state not in BEGINNINGS:
                for number in [n for n in self.cursor.read if event.target in self._targets[n]]:
                    yield from self._written(number)
            line = change(self._ledger, event)
        elif event.task is not None and event.to_state == "running" and event.task not in self.cursor.read:
            self.cursor.read[event.task] = 0
            line = f"── task {event.task}: {title(self._ledger, self._ledger.task(event.task))} ──"
        elif event.task is not None and event.from_state == "running":
            yield from self._written(event.task, ended=True)
            if event.to_state != "queued":
                # Its log is told to the end, and a job may have had any number of tasks.
                self.cursor.read.pop(event.task, None)
            # A kill leaves no word in the log; the daemon knows.
            line = f"── task {event.task} ended: {sentence(event.reason)} ──" if event.reason else ""
        self.cursor.event = event.id
        if line:
            yield line

    def _written(self, task: int, *, ended: bool = False) -> Iterator[str | None]:
        """The whole lines that were added since; a worker may be in the middle of one, unless it has ended."""
        try:
            file = (self._folder / f"{task}.log").open("rb")
        except OSError:  # not yet, or not any more
            return
        with file:
            place = self.cursor.read.get(task, 0)
            if place >= os.fstat(file.fileno()).st_size:
                return
            while True:
                file.seek(place)
                text, length = self._next(file, ended)
                if not length:
                    return
                place += length
                self.cursor.read[task] = place
                self.bytes_read += length
                yield text

    def _next(self, file: BinaryIO, ended: bool) -> tuple[str | None, int]:
        """A line, None if it is not to be told, and how many bytes it takes: 0 if there is no whole one."""
        line = file.readline(LONGEST_LINE + 1)
        length = len(line)
        if line.startswith(MARK.encode()) and not self._events:
            # Its end is looked for however far that is: broken off, the rest would pass for a worker's words.
            while not line.endswith(b"\n") and (line := file.readline(LONGEST_LINE)):
                length += len(line)
            return None, length if ended or line.endswith(b"\n") else 0
        if length > LONGEST_LINE and not line.endswith(b"\n"):
            line = line[:LONGEST_LINE]
            found = _WORDS.match(line)
            line = found[0] if found else line
        elif not line.endswith(b"\n") and not ended:
            return None, 0
        return line.decode(errors="replace").removesuffix("\n"), len(line)
