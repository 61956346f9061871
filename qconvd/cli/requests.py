"""`qconvd retry`, `cancel`, `reconvert`, `publish`, `pause`, `resume`, `priority`, `reload`: asked of the running daemon."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from qconvd.cli.exits import Exit
from qconvd.cli.options import ConfigFile

Jobs = Annotated[
    list[str], typer.Argument(metavar="JOB...", help="Numbers of jobs, or ids of single targets (`qconvd job N`).")
]
WAIT = 10.0
"""Seconds to wait for the daemon's answer; it looks twice a second."""


def retry(jobs: Jobs, config: ConfigFile = None) -> None:
    """Try again what failed or was cancelled.

    What waits for its next attempt is tried at once.
    """
    ask(config, "retry", ids=jobs)


def cancel(jobs: Jobs, config: ConfigFile = None) -> None:
    """Stop jobs.

    What runs is stopped, what waits is not begun. `qconvd retry` begins them again from the start.
    """
    ask(config, "cancel", ids=jobs)


def reconvert(jobs: Jobs, config: ConfigFile = None) -> None:
    """Make artifacts again that were done.

    With the plugins as they are now; also what was deleted by hand.
    """
    ask(config, "reconvert", ids=jobs)


def publish(jobs: Jobs, config: ConfigFile = None) -> None:
    """Publish what waits for somebody's word.

    Of recipes with `confirm: true`. What is not made yet is published as soon as it is.
    """
    ask(config, "publish", ids=jobs)


def pause(
    reason: Annotated[str, typer.Argument(metavar="[REASON]", help="Why, for whoever looks at `qconvd status`.")] = "",
    config: ConfigFile = None,
) -> None:
    """Start no task any more, until `qconvd resume`; also after a restart.

    What runs comes to its end, and models are still taken in.
    """
    ask(config, "pause", reason=reason)


def resume(config: ConfigFile = None) -> None:
    """Start tasks again after `qconvd pause`."""
    ask(config, "resume")


def priority(
    job: Annotated[str, typer.Argument(metavar="JOB", help="The job's number.")],
    number: Annotated[int, typer.Argument(metavar="N", help="From -1000 to 1000; 0 is what every job begins with.")],
    config: ConfigFile = None,
) -> None:
    """Let a job go before others (above 0) or after them (below 0).

    It counts among tasks of one kind: planning still comes before converting. What runs is not interrupted.
    """
    ask(config, "priority", job=job, priority=number)


def reload(config: ConfigFile = None) -> None:
    """Let the daemon read its config file again, as SIGHUP does.

    A bad one is refused with its mistakes, and the old one stays.
    """
    from qconvd.cli.options import load_config

    # Its mistakes are told here, all at once.
    ask(load_config(config).path, "reload")


def ask(file: Any, kind: str, **arguments: Any) -> None:
    """Put a request into the ledger, wake the daemon, wait for the answer and print it. A refusal exits with 3."""
    import time

    from qconvd.cli import output
    from qconvd.cli.place import opened

    with opened(file) as (place, ledger):
        for id in arguments.get("ids", ()):
            ledger.find(id)
        if "job" in arguments:
            ledger.job(arguments["job"])
        number = ledger.request(kind, **arguments)
        (place.state / "wake").touch()
        if not place.daemon:
            print(f"No daemon runs on {place.state}; it will be done when one is started (`qconvd run`).")
            return
        end = time.monotonic() + WAIT
        while (answer := ledger.asked(number)).state == "open":
            if time.monotonic() > end:
                print("The daemon has not answered yet; `qconvd status` shows what it does.")
                return
            time.sleep(0.05)
    if answer.state == "refused":
        output.note(f"qconvd: {answer.answer}")
        raise typer.Exit(Exit.REFUSED)
    print(answer.answer)
