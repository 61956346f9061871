"""`qconvd run`."""

from __future__ import annotations

import logging
from typing import Annotated, Literal

import typer

from qconvd.cli.exits import Exit
from qconvd.cli.options import ConfigFile


def run(
    config: ConfigFile = None,
    once: Annotated[
        bool,
        typer.Option("--once", help="Do all there is to do, then end; exit code 1 if something failed, 130 if stopped before."),
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log more.")] = False,
    log_format: Annotated[
        Literal["auto", "human", "json", "journal"] | None,
        typer.Option("--log-format", help="What the log looks like, whatever `log.format` says."),
    ] = None,
) -> None:
    """Run the daemon: watch the folders, convert what appears.

    Ctrl-C or SIGTERM stops it within `limits.stop_grace`, a second one at once; SIGHUP reads the config again.
    """
    from qconvd import config as configuration
    from qconvd.daemon import Daemon
    from qconvd.errors import ConfigError, QconvdError
    from qconvd.logs.setup import DaemonLog

    path = config or configuration.find()
    loaded = configuration.load(path)
    shown = DaemonLog(log_format, verbose=verbose)
    shown.apply(loaded.log)
    try:
        code = Daemon(loaded, lambda: configuration.load(path), shown.apply).run(once)
    except QconvdError as error:
        if shown.shown == "human":
            raise
        log = logging.getLogger(__name__)
        log.critical("%s", error, extra={"action": "daemon.refused", "error": type(error).__name__})
        code = Exit.BAD_CONFIG if isinstance(error, ConfigError) else Exit.REFUSED
    if code:
        raise typer.Exit(code)
