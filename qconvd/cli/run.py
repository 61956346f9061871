"""`qconvd run`."""

from __future__ import annotations

import logging
import sys
from typing import Annotated

import typer

from qconvd.cli.options import ConfigFile


def run(
    config: ConfigFile = None,
    once: Annotated[
        bool,
        typer.Option("--once", help="Do all there is to do, then end; exit code 1 if something failed, 130 if stopped before."),
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log more.")] = False,
) -> None:
    """Run the daemon: watch the folders, convert what appears.

    Ctrl-C or SIGTERM stops it within `limits.stop_grace`, a second one at once; SIGHUP reads the config again.
    """
    from qconvd import config as configuration
    from qconvd.checkpoints.files import is_there
    from qconvd.daemon import Daemon
    from qconvd.log_lines import LogLines

    path = config or configuration.find()
    loaded = configuration.load(path)
    # With systemd the journal has the time already.
    stamp = "" if sys.stderr.isatty() is False and _under_systemd() else "%(asctime)s "
    handler = logging.StreamHandler()
    handler.setFormatter(LogLines(f"{stamp}%(levelname)-7s %(message)s", "%Y-%m-%d %H:%M:%S"))
    logging.basicConfig(level=logging.DEBUG if verbose else logging.INFO, handlers=[handler], force=True)
    # Its debug lines are two for every file, in its own terms.
    logging.getLogger("watchdog").setLevel(logging.INFO)
    for watch in loaded.folders:
        if not is_there(watch.folder):
            logging.getLogger(__name__).warning(
                "the watched folder %s does not exist yet; it is taken up when it does", watch.folder
            )
    code = Daemon(loaded, lambda: configuration.load(path)).run(once)
    if code:
        raise typer.Exit(code)


def _under_systemd() -> bool:
    import os

    return "JOURNAL_STREAM" in os.environ
