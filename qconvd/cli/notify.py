"""`qconvd notify`: try out who is told what happens."""

from __future__ import annotations

from typing import Annotated

import typer

from qconvd.cli.exits import Exit
from qconvd.cli.options import AsJson, ConfigFile

app = typer.Typer(
    name="notify", help="Try out the notifications.", no_args_is_help=True, rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)  # fmt: skip


@app.callback()
def notify() -> None:
    """Try out the notifications."""


@app.command("test")
def test(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Only this entry of `notify:`, by its name as this command prints it.")
    ] = None,
    config: ConfigFile = None,
    json: AsJson = False,
) -> None:
    """Send a test to every entry of `notify:`, and say what happened.

    Whatever an entry's `on:` says. Exit code 1 if one was not told. No daemon is needed, and the ledger hears nothing of it.
    """
    import time

    from qconvd.cli import output
    from qconvd.cli.options import load_config
    from qconvd.errors import QconvdError
    from qconvd.notifications.news import of_test
    from qconvd.notifications.sender import tell_all

    loaded = load_config(config)
    entries = tuple(n for n in loaded.notify if name in (None, n.name))
    if not loaded.notify:
        raise QconvdError("there is nobody to tell", where=str(loaded.path), fix="add entries to `notify:` in it")
    if not entries:
        known = ", ".join(n.name for n in loaded.notify)
        raise QconvdError(f"there is no entry called {name!r}", where=str(loaded.path), fix=f"the entries are: {known}")
    results = tell_all(entries, of_test(time.time()))
    if json:
        output.as_json([
            {"notifier": n.name, "told": error is None, "answer": said, **({"problem": error.as_dict()} if error else {})}
            for n, said, error in results
        ])  # fmt: skip
    else:
        output.table(
            ("", "NOTIFIER"), [("BAD" if error else "ok", n.name) for n, _, error in results],
            sentences=[(said,) if error is None else (f"{error.where}: {error.what}" if error.where else error.what, error.fix)
                       for _, said, error in results],
        )  # fmt: skip
    if any(error for *_, error in results):
        raise typer.Exit(Exit.FAILED)
