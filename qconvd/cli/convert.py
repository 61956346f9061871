"""`qconvd convert`."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from qconvd.cli.exits import Exit
from qconvd.cli.options import AsJson, ConfigFile, Model
from qconvd.cli.plan import Name, Profile, Recipe, To

if TYPE_CHECKING:
    from qconvd.once import Made


def convert(
    context: typer.Context,
    model: Model,
    to: To = None,
    recipe: Recipe = None,
    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", metavar="DIR", help="Where the artifacts go; not the config's `output`, which is the daemon's."
        ),
    ] = Path(),
    name: Name = None,
    names: Profile = "",
    force: Annotated[bool, typer.Option("--force", help="Make again what is there already, and replace it.")] = False,
    device: Annotated[Literal["auto", "cpu", "cuda"] | None, typer.Option("--device", help="Where to convert.")] = None,
    memory: Annotated[str | None, typer.Option("--memory", metavar="SIZE", help="Memory to use at most, e.g. 4GiB.")] = None,
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="Threads to use at most.")] = None,
    config: ConfigFile = None,
    json: AsJson = False,
) -> None:
    """Convert a model once, without the daemon.

    Interrupted, it goes on where it stopped when the same command is run again. What is there already is not made again.

    In the table that it prints, BITS/WEIGHT count all of the weights' files, and ERROR is the root mean square of what the
    weights changed by, as a share of that of the weights.
    """
    from qconvd.cli import output
    from qconvd.cli.models import hub_settings, named
    from qconvd.cli.plan import known_profile, unmistakable, wanted
    from qconvd.cli.progress import Shown
    from qconvd.errors import ConfigError, QconvdError
    from qconvd.hub.address import is_address
    from qconvd.once import Conversion

    known_profile(names)
    if not to and recipe is None:
        raise typer.BadParameter(
            "say what to make, e.g. --to fp16,q8_0,q4_0, or --recipe NAME; `qconvd formats` lists what there is"
        )
    if recipe:
        with named(model, config) as (found, _):
            targets, profile, _ = wanted(to, recipe, config, found)
    else:
        targets, profile, _ = wanted(to, recipe, config, None)
    if device is not None:
        try:
            targets = [t.on(device) for t in targets]
        except ConfigError as error:
            raise typer.BadParameter(f"--device {device}: {error.what}") from error
    unmistakable(targets, names or profile)
    limits, forks = _limits(memory, threads), bool(context.obj)
    conversion = Conversion(model, targets, out.absolute(), name, names or profile, limits, force=force, forks=forks)
    if is_address(str(model)):
        conversion.hub = hub_settings(config)
    # Stopped in whatever way, the worker must not go on alone.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with Shown(quiet=json) as shown:
            made = conversion.run(shown)
    except KeyboardInterrupt:
        output.note("\nStopped. What was done is kept: run the same command again and it goes on from there.")
        raise typer.Exit(Exit.INTERRUPTED) from None
    except OSError as error:
        raise QconvdError(f"cannot be written: {error.strerror}", where=str(error.filename or out)) from error
    finally:
        signal.signal(signal.SIGTERM, before)
    if json:
        output.as_json(
            {"model": conversion.called, "seconds": round(shown.seconds, 3), "artifacts": [_as_dict(m) for m in made]}
        )
    else:
        _report(made, shown.seconds, asked=bool(to))
    if any(m.error for m in made):
        # As `plan` would: none can be made, and somebody can mend that.
        refused = not shown.began and not any(m.log or (m.new and not m.error) for m in made)
        raise typer.Exit(Exit.REFUSED if refused else Exit.FAILED)


def _limits(memory: str | None, threads: int | None) -> Any:
    from qconvd.config import Limits
    from qconvd.quantities import size

    try:
        return Limits.model_validate(
            {"disk_reserve": 0, "jobs": 1, "memory": None if memory is None else size(memory), "threads": threads}
        )
    except ValueError as error:
        raise typer.BadParameter(f"--memory: {error}") from None


def _report(made: list[Made], seconds: float, *, asked: bool) -> None:
    """`asked`: the targets were given after `--to`."""
    from qconvd.cli import output
    from qconvd.cli.progress import bits_of, relative
    from qconvd.cli.spelled import spelled
    from qconvd.plan_words import cut_off
    from qconvd.quantities import show_duration, show_size

    there = [m for m in made if m.manifest is not None]
    if there:
        rows = [
            (m.target.label, show_size(m.manifest.nbytes), f"{m.manifest.nbytes:,}", bits_of(m), _percent(relative(m)))
            for m in there
            if m.manifest
        ]
        places = [relative_path(main_file(m)) for m in there]
        output.table(("TARGET", "SIZE", "BYTES", "BITS/WEIGHT", "ERROR"), rows, right=(1, 2, 3, 4), whole=(0,), under=places)
    for one in made:
        if one.error is not None:
            output.note(f"\n{one.target.label} was not made: {output.safe(str(one.error))}")
            if asked and (written := spelled(one.target, one.error)):
                output.note(f"  on the command line: {written}")
            if one.log is not None:
                output.note(f"  the worker's log is {one.log}")
    for one in there:
        for sentence in cut_off(one.manifest.tensors) if one.manifest else ():
            output.note("\n" + output.filled(output.safe(f"{one.target.label}: {sentence}.")))
    new = [m for m in there if m.new]
    if before := [m.target.label for m in there if not m.new]:
        verb, them = ("was", "it") if len(before) == 1 else ("were", "them")
        text = f"{', '.join(before)} {verb} there already, made from this model with these options; --force makes {them} again."
        print("\n" + output.filled(text))
    if new:
        print(f"\nMade and verified {len(new)} of {len(made)} in {show_duration(round(seconds, 1))}.")


def main_file(made: Made) -> Path:
    """What a person would point a program at: the one file in a shared folder, else the folder."""
    if made.manifest is not None and len(made.manifest.files) == 1:
        return made.folder / made.manifest.files[0].path
    return made.folder


def relative_path(path: Path) -> str:
    """Short where it is below the current folder."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _percent(value: float | None) -> str:
    return "exact" if value == 0 else "" if value is None else f"{100 * value:.2g} %"


def _as_dict(made: Made) -> dict[str, Any]:
    from qconvd.cli.progress import bits_of

    about: dict[str, Any] = {"target": made.target.label, **made.target.spec, "folder": str(made.folder), "new": made.new}
    if made.manifest is None:
        return {**about, "error": made.error.as_dict() if made.error else {}, "log": str(made.log) if made.log else None}
    return {
        **about,
        "bytes": made.manifest.nbytes,
        "bits_per_weight": float(bits_of(made) or 0),
        "errors": dict(made.manifest.errors),
        "files": [{"path": f.path, "bytes": f.bytes, "sha256": f.sha256} for f in made.manifest.files],
        "notes": list(made.manifest.notes),
    }
