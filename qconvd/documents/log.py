"""A job's history with what its workers wrote between, in pieces: each says where the next begins, so one can follow it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qconvd.errors import QconvdError
from qconvd.executors.base import MARK
from qconvd.hub.tokens import redacted
from qconvd.ledger import Event, Ledger
from qconvd.logs.job import FOLDER, change, title
from qconvd.logs.text import sentence

PIECE = 1 << 18
"""Characters after which a piece ends."""
LONGEST_LINE = 1 << 16
"""Characters after which a line of a worker's is broken: what is no text may have no line's end."""
BEGINNINGS = ("converting", "publishing")
"""States that a target gets when a task starts; all other changes are what came of it."""
CURSOR = r"([0-9]{1,15}(;[0-9]{1,15}:[0-9]{1,15})*)?"
"""What `next` looks like: the last event that was told, and for each task how far its log was read."""


def log_piece(ledger: Ledger, state: Path, of: str, after: str = "", *, events: bool = False) -> dict[str, Any]:
    """The lines after `after`, which is the `next` of the piece before; at most about `PIECE` characters of them.

    `of` is a job's number or a target's id. `more`: there is more already. `over`: nothing of it will change by itself any
    more. `events`: also what workers told the daemon. What looks like a secret is made unreadable. Raises `QconvdError` if
    there is no such job or target, or if `after` is no such `next`.
    """
    targets = ledger.find(of)
    # Asked before what happened is looked for: what a worker wrote before its end is in its log by then.
    over = not any(t.pending for t in targets)
    tail = _Tail(ledger, state / FOLDER, _Cursor.of(after), events)
    lines: list[str] = []
    size = 0
    for line in tail.lines([t.id for t in targets]):
        lines.append(redacted(line))
        size += len(line)
        if size >= PIECE:
            break
    more = size >= PIECE
    return {
        "lines": lines, "next": str(tail.cursor), "more": more, "over": over and not more, "tasks": len(tail.cursor.read),
        "targets": [{"label": t.label, "state": t.state, "reason": t.reason} for t in targets],
    }  # fmt: skip


@dataclass
class _Cursor:
    """How far a log was told: the last event, and of each task that was mentioned how many bytes."""

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
    """Lines from a place on. It may be left after any line: the cursor is always behind what was given."""

    def __init__(self, ledger: Ledger, folder: Path, cursor: _Cursor, events: bool) -> None:
        self.cursor = cursor
        self._ledger, self._folder, self._events = ledger, folder, events
        self._targets = {task: ledger.task(task).targets for task in cursor.read if _known(ledger, task)}

    def lines(self, targets: list[str]) -> Iterator[str]:
        for event in self._ledger.history_of(targets, self.cursor.event):
            yield from self._told(event)
            self.cursor.event = event.id
        for task in list(self.cursor.read):
            yield from self._written(task)

    def _told(self, event: Event) -> Iterator[str]:
        line = ""
        if event.target is not None:
            if event.to_state not in BEGINNINGS:
                for number in [n for n, targets in self._targets.items() if event.target in targets]:
                    yield from self._written(number)
            line = change(self._ledger, event)
        elif event.task is not None and event.to_state == "running" and event.task not in self.cursor.read:
            task = self._ledger.task(event.task)
            self.cursor.read[task.id], self._targets[task.id] = 0, task.targets
            line = f"── task {task.id}: {title(self._ledger, task)} ──"
        elif event.task is not None and event.from_state == "running":
            yield from self._written(event.task)
            # A kill leaves no word in the log; the daemon knows.
            line = f"── task {event.task} ended: {sentence(event.reason)} ──" if event.reason else ""
        self.cursor.event = event.id
        if line:
            yield line

    def _written(self, task: int) -> Iterator[str]:
        """The whole lines that were added since; a worker may be in the middle of one."""
        try:
            file = (self._folder / f"{task}.log").open("rb")
        except OSError:  # not yet, or not any more
            return
        with file:
            file.seek(self.cursor.read.get(task, 0))
            while line := file.readline(LONGEST_LINE):
                if not line.endswith(b"\n") and len(line) < LONGEST_LINE:
                    return
                self.cursor.read[task] = file.tell()
                text = line.decode(errors="replace").rstrip("\n")
                if self._events or not text.startswith(MARK):
                    yield text


def _known(ledger: Ledger, task: int) -> bool:
    return bool(ledger.rows("SELECT 1 FROM task WHERE id = ?", (task,)))
