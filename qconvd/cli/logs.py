"""`qconvd logs`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated

import typer

from qconvd.cli.options import ConfigFile
from qconvd.cli.place import opened

if TYPE_CHECKING:
    from qconvd.ledger import Event, Ledger

PAUSE = 0.2
BEGINNINGS = ("converting", "publishing")
"""States that a target gets when a task starts; all other changes are what came of it."""


def logs(
    id: Annotated[str, typer.Argument(metavar="JOB", help="The job's number, or one target's id.")],
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job is over.")] = False,
    events: Annotated[bool, typer.Option("--events", help="Also the worker's events (JSON lines).")] = False,
    config: ConfigFile = None,
) -> None:
    """Print what happened to a job, and what its workers wrote."""
    from qconvd.cli import output

    with opened(config) as (place, ledger):
        tail = _Tail(place.state / "logs", ledger, events)
        try:
            while True:
                targets = ledger.find(id)
                over = not any(t.pending for t in targets)
                tail.show([t.id for t in targets])
                if over or not follow:
                    break
                time.sleep(PAUSE)
        finally:
            tail.close()
    if not tail.tasks:
        output.note("No worker of this job has written anything.")
        for target in targets:
            output.note(f"  {target.label} is {target.state}{f': {target.reason}' if target.reason != target.state else ''}")


class _Tail:
    """A job's history with the logs of its tasks between, printed from where they were read last."""

    def __init__(self, folder: Path, ledger: Ledger, events: bool) -> None:
        self.tasks: dict[int, tuple[str, ...]] = {}
        """Tasks that were shown, with their targets."""
        self._folder, self._ledger, self._events = folder, ledger, events
        self._files: dict[int, IO[str]] = {}
        self._last = 0

    def show(self, targets: list[str]) -> None:
        """Print what happened since the last call."""
        # Asked first: what a worker wrote before its end is in its log by then.
        for event in self._ledger.history_of(targets, self._last):
            self._last = event.id
            self._tell(event)
        for task in self.tasks:
            self._copy(task)

    def close(self) -> None:
        for file in self._files.values():
            file.close()

    def _tell(self, event: Event) -> None:
        from qconvd.logs.job import change, title
        from qconvd.logs.text import sentence

        if event.target is not None:
            if event.to_state not in BEGINNINGS:
                for number in [n for n, targets in self.tasks.items() if event.target in targets]:
                    self._copy(number)
            print(change(self._ledger, event), flush=True)
        elif event.task is not None and event.to_state == "running" and event.task not in self.tasks:
            task = self._ledger.task(event.task)
            self.tasks[task.id] = task.targets
            print(f"── task {task.id}: {title(self._ledger, task)} ──", flush=True)
        elif event.task is not None and event.from_state == "running":
            self._copy(event.task)
            # A kill leaves no word in the log; the daemon knows.
            if event.reason:
                print(f"── task {event.task} ended: {sentence(event.reason)} ──", flush=True)

    def _copy(self, task: int) -> None:
        if task not in self._files:
            try:
                self._files[task] = (self._folder / f"{task}.log").open(errors="replace")
            except FileNotFoundError:  # not yet, or not any more
                return
        _copy(self._files[task], self._events)


def _copy(file: IO[str], events: bool) -> None:
    """Print the whole lines that were added since; a worker may be in the middle of one."""
    from qconvd.cli.output import safe
    from qconvd.executors.base import MARK

    while True:
        place = file.tell()
        line = file.readline()
        if not line.endswith("\n"):
            file.seek(place)
            return
        if events or not line.startswith(MARK):
            print(safe(line.rstrip("\n")), flush=True)
