"""`qconvd logs`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated

import typer

from qconvd.cli.options import ConfigFile
from qconvd.cli.place import opened

if TYPE_CHECKING:
    from qconvd.ledger import Ledger, Task

PAUSE = 0.2


def logs(
    id: Annotated[str, typer.Argument(metavar="JOB", help="The job's number, or one target's id.")],
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job is over.")] = False,
    events: Annotated[bool, typer.Option("--events", help="Also the worker's events (JSON lines).")] = False,
    config: ConfigFile = None,
) -> None:
    """Print what the workers of a job wrote."""
    from qconvd.cli import output

    with opened(config) as (place, ledger):
        tail = _Tail(place.state / "logs", ledger, events)
        try:
            while True:
                targets = ledger.find(id)
                over = not any(t.pending for t in targets)
                for _, task in sorted({task.id: task for t in targets for task in ledger.tasks_of(t.id)}.items()):
                    tail.show(task)
                if over or not follow:
                    break
                time.sleep(PAUSE)
        finally:
            tail.close()
    if not tail.shown:
        output.note("No worker of this job has written anything.")
        for target in targets:
            output.note(f"  {target.label} is {target.state}{f': {target.reason}' if target.reason != target.state else ''}")


class _Tail:
    """Logs of tasks, printed from where they were read last."""

    def __init__(self, folder: Path, ledger: Ledger, events: bool) -> None:
        self.shown: dict[int, IO[str]] = {}
        self._folder, self._ledger, self._events = folder, ledger, events
        self._told = dict[int, int]()
        """The last event of each task that was printed."""

    def show(self, task: Task) -> None:
        from qconvd.cli.output import safe

        path = self._folder / f"{task.id}.log"
        if task.id not in self.shown and path.exists():
            labels = ", ".join(self._ledger.target(t).label for t in task.targets)
            print(f"── task {task.id}: {task.kind} {labels} ──", flush=True)
            self.shown[task.id] = path.open(errors="replace")
        if task.id not in self.shown:
            return
        # Asked first, so that what the worker wrote before its end stands before it.
        happened = self._ledger.history(task=task.id, since=self._told.get(task.id, 0))
        _copy(self.shown[task.id], self._events)
        for event in happened:
            self._told[task.id] = event.id
            # A kill leaves no word in the log; the daemon knows.
            if event.reason and event.from_state == "running":
                print(f"── task {task.id} ended: {safe(event.reason)} ──", flush=True)

    def close(self) -> None:
        for file in self.shown.values():
            file.close()


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
