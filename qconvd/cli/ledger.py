"""`qconvd ledger`: copies of what the daemon remembers, and less of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qconvd.cli.options import ConfigFile
from qconvd.cli.place import opened

app = typer.Typer(
    name="ledger", help="Copy the ledger, or let it forget.", no_args_is_help=True, rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)  # fmt: skip


@app.command("backup")
def backup(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where the copy goes; one that is there is replaced.")],
    config: ConfigFile = None,
) -> None:
    """Copy the ledger to a file, while the daemon runs or not.

    To restore it, stop the daemon, remove ledger.sqlite-wal and ledger.sqlite-shm, and let the copy take the place of
    ledger.sqlite.
    """
    from qconvd.ledger.backup import backup as copied
    from qconvd.quantities import show_size

    with opened(config) as (_, ledger):
        print(f"Copied the ledger to {file} ({show_size(copied(ledger, file))}).")


@app.command("prune")
def prune(
    older: Annotated[str, typer.Option("--older-than", metavar="DURATION", help="What ended before that, e.g. `90d`.")] = "90d",
    config: ConfigFile = None,
) -> None:
    """Forget old history: what happened when, answered requests, ended tasks with their logs, and replaced versions.

    Artifacts, and the states of all that is made, failed or wanted, stay. The file shrinks when no daemon runs.
    """
    import time

    from qconvd.errors import QconvdError
    from qconvd.ledger.pruning import prune as pruned
    from qconvd.quantities import duration

    try:
        seconds = duration(older)
    except ValueError as error:
        raise QconvdError(str(error), where="--older-than") from error
    with opened(config) as (place, ledger):
        gone = pruned(ledger, time.time() - seconds)
        for task in gone.tasks:
            (place.state / "logs" / f"{task}.log").unlink(missing_ok=True)
        if gone.total and not place.daemon:
            ledger.rows("VACUUM")
    if not gone.total:
        print("There is nothing that old to forget.")
        return
    counts = ((gone.events, "changes of state"), (len(gone.tasks), "tasks with their logs"), (gone.requests, "requests"),
              (gone.targets, "artifacts that were replaced"), (gone.sources, "versions of models"),
              (gone.notifications, "notifications"))  # fmt: skip
    print(f"Forgot {', '.join(f'{count} {what}' for count, what in counts if count)}.")
