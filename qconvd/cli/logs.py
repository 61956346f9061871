"""`qconvd logs`."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import IO, Annotated

import typer

from qconvd.cli.jobs import opened
from qconvd.cli.options import ConfigFile

PAUSE = 0.2


def logs(
    id: Annotated[str, typer.Argument(metavar="JOB", help="The job's number, or one target's id.")],
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job is over.")] = False,
    events: Annotated[bool, typer.Option("--events", help="Also the worker's events (JSON lines).")] = False,
    config: ConfigFile = None,
) -> None:
    """Print what the workers of a job wrote."""
    with opened(config) as (loaded, ledger):
        shown: dict[Path, IO[str]] = {}
        try:
            while True:
                targets = ledger.find(id)
                over = not any(t.pending for t in targets)
                tasks = sorted({task.id: task for t in targets for task in ledger.tasks_of(t.id)}.items())
                for number, task in tasks:
                    path = loaded.state / "logs" / f"{number}.log"
                    if path not in shown and path.exists():
                        print(f"── task {number}: {task.kind} ──", flush=True)
                        shown[path] = path.open(errors="replace")
                    if path in shown:
                        _copy(shown[path], events)
                if over or not follow:
                    break
                time.sleep(PAUSE)
        finally:
            for file in shown.values():
                file.close()
    if not shown:
        print("No worker of this job has written anything.", file=sys.stderr)


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
