"""The command line: each command parses, calls and prints. Start-up imports neither pydantic nor plugins nor numpy."""

from __future__ import annotations

import errno
import logging
import os
import sys
from typing import Any

import typer

from qconvd.cli import (
    add,
    check,
    convert,
    doctor,
    formats,
    init,
    inspect,
    jobs,
    ledger,
    logs,
    notify,
    plan,
    requests,
    run,
    schema,
    service,
    status,
    verify,
)
from qconvd.cli.exits import Exit
from qconvd.cli.output import fitting, safe
from qconvd.errors import ConfigError, QconvdError

_UsageError: type[Any] = typer.BadParameter.__mro__[1]
"""click's UsageError: typer brings a click of its own, or takes the installed one, as its version has it."""

app = typer.Typer(
    name="qconvd",
    help="Turns models into the formats people run: safetensors, GGUF, GPTQ, int8, int4, FP8, GGML, and what plugins add.",
    no_args_is_help=True,
    # Rich help doubles the time that `--help` takes; so does shell completion's set-up for everybody.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)

# In the order in which a newcomer meets them.
app.command("convert")(convert.convert)
app.command("plan")(plan.plan)
app.command("inspect")(inspect.inspect)
app.command("verify")(verify.verify)
app.command("formats")(formats.formats)
app.command("init")(init.init)
app.command("check")(check.check)
app.command("run")(run.run)
app.command("add")(add.add)
app.command("status")(status.status)
app.command("jobs")(jobs.jobs)
app.command("job")(jobs.job)
app.command("logs")(logs.logs)
app.command("retry")(requests.retry)
app.command("cancel")(requests.cancel)
app.command("reconvert")(requests.reconvert)
app.command("publish")(requests.publish)
app.command("pause")(requests.pause)
app.command("resume")(requests.resume)
# A negative number is no option.
app.command("priority", context_settings={"ignore_unknown_options": True})(requests.priority)
app.command("reload")(requests.reload)
app.command("doctor")(doctor.doctor)
app.add_typer(service.app)
app.add_typer(ledger.app)
app.add_typer(notify.app)
app.command("schema")(schema.schema)


@app.command()
def version() -> None:
    """Print the version of qconvd."""
    from qconvd import __version__

    print(f"qconvd {__version__}")


def main(*, forks: bool = False) -> None:
    """Run the command line; what a person can mend is told in sentences, everything else keeps its traceback.

    With `--json` the sentences are also printed as JSON, so that a script always has something to read. `forks`: this process
    is the command and nothing else, so that workers may be forks of it.
    """
    _open_standard_streams()
    _take_names_as_utf8()
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    try:
        _check_folder()
        # Not standalone: typer would print a mistake of the command line itself, and not as JSON.
        code = app(standalone_mode=False, obj=forks) or Exit.OK
        sys.stdout.flush()
        sys.exit(code)
    except _UsageError as error:
        _show(error)
        _tell_script(QconvdError(error.format_message(), fix="`--help` after the command lists what it takes"), "UsageError")
        sys.exit(Exit.USAGE)
    except ConfigError as error:
        sys.exit(_tell(error, Exit.BAD_CONFIG))
    except QconvdError as error:
        sys.exit(_tell(error, Exit.REFUSED))
    except KeyboardInterrupt:
        sys.exit(Exit.INTERRUPTED)
    except BrokenPipeError:
        # `qconvd jobs | head`: who reads has seen enough. Python would complain once more when it flushes at exit.
        sys.stderr.close()
        sys.exit(Exit.OK)
    except OSError as error:
        if error.filename is not None or error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
            raise
        # What is left in the buffer would fail once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        print(f"qconvd: what it prints cannot be written: {os.strerror(error.errno)}", file=sys.stderr)
        sys.exit(Exit.FAILED)


def _open_standard_streams() -> None:
    """Put /dev/null where whoever started this has closed a stream.

    Otherwise the next file that is opened gets its number, and with it what is printed or logged.
    """
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        if getattr(sys, name) is None:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
            os.set_inheritable(number, True)
            setattr(sys, name, os.fdopen(number, mode))


def _take_names_as_utf8() -> None:
    """Begin anew in Python's UTF-8 mode where the locale has another encoding.

    Names that it cannot spell would be passed over in watched folders, and could not be printed.
    """
    if sys.getfilesystemencoding() != "utf-8" and os.environ.get("PYTHONUTF8") != "1":
        os.environ["PYTHONUTF8"] = "1"  # workers inherit it
        os.execv(sys.executable, sys.orig_argv)


def _check_folder() -> None:
    """Raise `QconvdError` if the current folder was removed: nothing can be found from there."""
    try:
        os.getcwd()  # noqa: PTH109 — Path.cwd() says no more
    except FileNotFoundError as error:
        raise QconvdError("the current folder is not there any more", fix="change to another one") from error


def _tell(error: QconvdError, code: Exit) -> Exit:
    problems = getattr(error, "problems", ())
    if len(problems) > 1:
        print(fitting(f"qconvd: {len(problems)} mistakes\n{safe(str(error))}", sys.stderr), file=sys.stderr)
    else:
        print(fitting(f"qconvd: {safe(str(error))}", sys.stderr), file=sys.stderr)
    _tell_script(error, type(error).__name__)
    return code


def _show(error: Any) -> None:
    """A mistake of the command line, as click shows it, in lines that fit."""
    told = error.format_message()
    if error.message and told.endswith(error.message):
        before = f"Error: {told.removesuffix(error.message)}"
        error.message = fitting(f"{before}{error.message}", sys.stderr).removeprefix(before)
    error.show()


def _tell_script(error: QconvdError, kind: str) -> None:
    if "--json" in sys.argv[1:]:
        from qconvd.cli.output import as_json

        as_json(error.as_dict() | {"error": kind})
