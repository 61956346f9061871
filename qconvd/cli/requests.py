"""`qconvd retry`, `cancel`, `reconvert`, `publish`, `pause`, `resume`, `priority`, `reload`: asked of the running daemon."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from qconvd.cli.exits import Exit
from qconvd.cli.options import ConfigFile
from qconvd.cli.reached import Url, elsewhere, reached

if TYPE_CHECKING:
    from qconvd.client import Answer

Jobs = Annotated[list[str], typer.Argument(metavar="JOB", help="Numbers of jobs, or ids of single targets (`qconvd job N`).")]


def retry(jobs: Jobs, config: ConfigFile = None, url: Url = None) -> None:
    """Try again what failed or was cancelled.

    What waits for its next attempt is tried at once.
    """
    with reached(config, url) as daemon:
        told(daemon.ask("retry", jobs))


def cancel(jobs: Jobs, config: ConfigFile = None, url: Url = None) -> None:
    """Stop jobs.

    What runs is stopped, what waits is not begun. `qconvd retry` begins them again from the start.
    """
    with reached(config, url) as daemon:
        told(daemon.ask("cancel", jobs))


def reconvert(jobs: Jobs, config: ConfigFile = None, url: Url = None) -> None:
    """Make artifacts again that were done.

    With the plugins as they are now; also what was deleted by hand.
    """
    with reached(config, url) as daemon:
        told(daemon.ask("reconvert", jobs))


def publish(jobs: Jobs, config: ConfigFile = None, url: Url = None) -> None:
    """Publish what waits for somebody's word.

    Of recipes with `confirm: true`. What is not made yet is published as soon as it is.
    """
    with reached(config, url) as daemon:
        told(daemon.ask("publish", jobs))


def pause(
    reason: Annotated[str, typer.Argument(metavar="REASON", help="Why, for whoever looks at `qconvd status`.")] = "",
    config: ConfigFile = None,
    url: Url = None,
) -> None:
    """Start no task any more, until `qconvd resume`.

    What runs comes to its end, and models are still taken in. A restart does not end it.
    """
    with reached(config, url) as daemon:
        told(daemon.pause(reason))


def resume(config: ConfigFile = None, url: Url = None) -> None:
    """Start tasks again after `qconvd pause`."""
    with reached(config, url) as daemon:
        told(daemon.resume())


def priority(
    job: Annotated[str, typer.Argument(metavar="JOB", help="The job's number.")],
    number: Annotated[int, typer.Argument(metavar="N", help="From -1000 to 1000; 0 is what every job begins with.")],
    config: ConfigFile = None,
    url: Url = None,
) -> None:
    """Let a job go before others (above 0) or after them (below 0).

    It counts among tasks of one kind: planning still comes before converting. What runs is not interrupted.
    """
    from qconvd.ledger.control import checked_priority

    with reached(config, url) as daemon:
        told(daemon.prioritize(job, checked_priority(number)))


def reload(config: ConfigFile = None, url: Url = None) -> None:
    """Let the daemon read its config file again, as SIGHUP does.

    A bad one is refused with its mistakes, and the old one stays.
    """
    from qconvd.cli.options import load_config

    # Its mistakes are told here, all at once.
    file = None if elsewhere(config, url) else load_config(config).path
    with reached(file, url) as daemon:
        told(daemon.reload())


def told(answer: Answer) -> None:
    """Print what the daemon says. A refusal exits with 3."""
    from qconvd.cli import output

    if answer.state == "refused":
        output.note(f"qconvd: {answer.said}")
        raise typer.Exit(Exit.REFUSED)
    print(output.safe(answer.said))
