"""`qconvd logs`."""

from __future__ import annotations

import sys
import time
from typing import Annotated

import typer

from qconvd.cli.options import ConfigFile
from qconvd.cli.reached import Url, reached

PAUSE = 0.2
"""Seconds between two looks at what goes on."""
AWAY = 120.0
"""Seconds for which a daemon that was there may not answer."""


def logs(
    id: Annotated[str, typer.Argument(metavar="JOB", help="The job's number, or one target's id.")],
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job is over.")] = False,
    events: Annotated[bool, typer.Option("--events", help="Also the worker's events (JSON lines).")] = False,
    config: ConfigFile = None,
    url: Url = None,
) -> None:
    """Print what happened to a job, and what its workers wrote."""
    from qconvd.cli import output
    from qconvd.client.http import NotReached, NotServed

    after = ""
    answered: float | None = None
    with reached(config, url) as daemon:
        while True:
            try:
                piece = daemon.log(id, after, events=events)
            except (NotReached, NotServed):
                # A daemon elsewhere that is started anew is back soon.
                if not follow or answered is None or time.monotonic() - answered > AWAY:
                    raise
                time.sleep(PAUSE)
                continue
            answered = time.monotonic()
            after = piece["next"]
            for line in piece["lines"]:
                print(output.safe(line))
            sys.stdout.flush()
            if piece["more"]:
                continue
            if piece["over"] or not follow:
                break
            time.sleep(PAUSE)
    if not piece["tasks"]:
        output.note("No worker of this job has written anything.")
        for target in piece["targets"]:
            reason = f": {target['reason']}" if target["reason"] != target["state"] else ""
            output.note(f"  {target['label']} is {target['state']}{reason}")
