"""`qconvd plan`."""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qconvd.cli.exits import Exit
from qconvd.cli.options import AsJson, ConfigFile, Model

if TYPE_CHECKING:
    from qconvd.config import Config
    from qconvd.hub.heads import Found
    from qconvd.preview import Preview
    from qconvd.scheduler import Policy
    from qconvd.targets import Target

To = Annotated[
    list[str] | None,
    typer.Option(
        "--to", metavar="TARGETS",
        help="What to make, e.g. fp16,q8_0,int8; with options in braces: 'gguf: {types: [q4_0], pure: true}'. "
        "May be given several times.",
    ),
]  # fmt: skip
Recipe = Annotated[
    str | None,
    typer.Option("--recipe", "-r", help="What to make: a recipe of the config file, whatever models its `match` names."),
]
Name = Annotated[str | None, typer.Option("--name", help="The model's name in the outputs; without it, the folder's.")]
Profile = Annotated[str, typer.Option("--names", metavar="PROFILE", help="How artifacts are named; see `naming` in the docs.")]


def plan(
    model: Model,
    to: To = None,
    recipe: Recipe = None,
    name: Name = None,
    names: Profile = "",
    config: ConfigFile = None,
    json: AsJson = False,
) -> None:
    """Say what would be made, to the byte, and what it takes.

    No weight is read.
    Without --to and --recipe, every recipe of the config file is looked at.
    """
    from qconvd.cli import output
    from qconvd.cli.models import named
    from qconvd.cli.options import load_config
    from qconvd.preview import preview
    from qconvd.quantities import show_count, show_size

    known_profile(names)
    with named(model, config) as (found, remote):
        targets, profile, unmatched = wanted(to, recipe, config, found)
        profile = names or profile
        if to:  # a config's recipes were held against each other when it was read
            unmistakable(targets, profile)
        policy = _policy(None if to and config is None else load_config(config))
        once = cache(output.note)  # of several targets that are calibrated the first takes the time
        doing = (lambda _: None) if json else once
        previews = [preview(found, target, policy, profile, name, doing=doing) for target in targets]
    refused = [p for p in previews if p.error]
    times = _times(found, remote, [label for p in previews for label in p.timed])
    if json:
        output.as_json({
            "model": found.name, "path": remote.address.locator if remote else found.path, "parameters": found.parameters,
            "source_bytes": found.weight_bytes, **_fetched(remote),
            "memory": max((p.memory for p in previews), default=0), "threads": policy.threads_per_job,
            "seconds": times, "artifacts": [p.as_dict() for p in previews], "not_matched": unmatched,
        })  # fmt: skip
    else:
        parameters = f"{show_count(found.parameters)} parameters, {show_size(found.weight_bytes)}"
        print(f"{output.safe(name or found.name)}: {found.architecture or found.kind}, {parameters}\n")
        if remote:
            fetched = f"{show_size(remote.nbytes)} ({remote.nbytes:,} bytes) in {len(remote.files)} files"
            print(output.filled(f"{remote.address.locator} at {remote.remote.commit[:12]}: {fetched} would be fetched.") + "\n")
        for recipe_name, reason in unmatched.items():
            print(f"The recipe {recipe_name} does not take this model: {reason}.")
        _print(previews, asked=bool(to))
        if previews:
            total = sum(p.nbytes for p in previews)
            count = f"{len(previews) - len(refused)} of {len(previews)}"
            print(f"\n{count} can be made: {show_size(total)} ({total:,} bytes) on disk.")
            if len(refused) < len(previews):
                memory = show_size(max(p.memory for p in previews))
                what = "One pass makes all of them" if len(previews) - len(refused) > 1 else "It is made in one pass"
                print(f"{what}, with {memory} of memory (threads: {policy.threads_per_job}).")
                print(_how_long(times))
    if refused:
        raise typer.Exit(Exit.REFUSED)


def _times(model: Any, remote: Found | None, labels: list[str]) -> dict[str, float | None]:
    """About how many seconds each part takes, as fast as it went here before; None where nothing like it was done yet."""
    from qconvd import rates

    fetching = {"fetch": rates.fetch_seconds(remote.nbytes)} if remote else {}
    return {**fetching, "convert": rates.conversion_seconds(labels, model.parameters)}


def _how_long(times: dict[str, float | None]) -> str:
    from qconvd.quantities import show_duration

    known = [f"{show_duration(max(1, seconds))} to {part}" for part, seconds in times.items() if seconds is not None]
    unknown = [part for part, seconds in times.items() if seconds is None]
    lines = [f"About {', '.join(known)}, going by what was done here before."] if known else []
    if unknown:
        lines.append(f"How long it takes to {' and '.join(unknown)} is known after the first time here.")
    return "\n".join(lines)


def _fetched(remote: Found | None) -> dict[str, Any]:
    """What would be fetched, as JSON data; nothing for a model that is here."""
    if remote is None:
        return {}
    files = [{"path": f.path, "bytes": f.size} for f in remote.files]
    return {"commit": remote.remote.commit, "bytes_to_fetch": remote.nbytes, "fetch": files}


def _policy(config: Config | None) -> Policy:
    """What a conversion may use: of the daemon, as its config says; of `qconvd convert`, half the memory and every core."""
    from qconvd.config import Devices as DeviceSettings
    from qconvd.config import Limits
    from qconvd.devices import Devices
    from qconvd.scheduler import policy_of

    limits = config.limits if config else Limits.model_validate({"jobs": 1})
    settings = config.devices if config else DeviceSettings.model_validate({})
    return policy_of(limits, settings, Devices("none").snapshot())


def known_profile(names: str) -> None:
    """Raise `BadParameter` for a profile of names that there is not."""
    from qconvd.naming import PROFILES

    if names and names not in PROFILES:
        raise typer.BadParameter(f"--names: there is no profile {names!r}; there are {', '.join(PROFILES)}")


def wanted(
    to: list[str] | None, recipe: str | None, config: Path | None, model: Any
) -> tuple[list[Target], str, dict[str, str]]:
    """The targets that the options mean, the profile of names, and recipes that do not take the model with the reason."""
    from qconvd.cli.options import load_config
    from qconvd.errors import ConfigError, QconvdError
    from qconvd.suggest import did_you_mean
    from qconvd.targets import resolve_list

    if to:
        if recipe is not None:
            raise typer.BadParameter("give --to or --recipe, not both")
        profile = load_config(config).names if config else "default"
        try:
            return resolve_list(",".join(to)), profile, {}
        except ConfigError as error:
            raise typer.BadParameter(f"--to: {str(error).removeprefix('--to: ')}") from None
    try:
        found = load_config(config)
    except ConfigError as error:
        if recipe is None and error.where == "" and config is None:
            raise ConfigError(error.what, fix=f"say what to make with --to, e.g. --to q8_0; {error.fix}") from None
        raise
    if recipe is not None and recipe not in found.recipes:
        raise QconvdError(
            f"there is no recipe {recipe!r}{did_you_mean(recipe, found.recipes)}",
            where=str(found.path), fix=f"its recipes: {', '.join(found.recipes)}",
        )  # fmt: skip
    targets: dict[str, Target] = {}
    unmatched = {}
    for name, one in found.recipes.items():
        if recipe not in (None, name):
            continue
        # A recipe that is asked for by name is made whatever its `match` says.
        if recipe is None and (reason := one.match.why_not(model)):
            unmatched[name] = reason
            continue
        targets |= {t.digest: t for t in one.targets}
    return list(targets.values()), found.names, unmatched


def unmistakable(targets: Any, profile: str) -> None:
    """Raise `QconvdError` if two of the targets would get one name."""
    from qconvd.cli.spelled import spelled_with
    from qconvd.errors import QconvdError
    from qconvd.naming import collisions

    named = [(f"{number} {t.label}", t.names("model", profile)) for number, t in enumerate(targets)]
    for first, second, place in collisions(named):
        both = f"{first.partition(' ')[2]} and {second.partition(' ')[2]}"
        example = spelled_with(targets[int(second.partition(" ")[0])], {"name": "{model}-{variant}-2"})
        remedy = "give one of them a `name:`, e.g. " + (example or "name: '{model}-{variant}-2'")
        raise QconvdError(f"{both} would both be called {place.replace('model', '<model>', 1)}", fix=remedy)


def _print(previews: list[Preview], *, asked: bool) -> None:
    """`asked`: the targets were given after `--to`."""
    from qconvd.cli import output
    from qconvd.cli.spelled import spelled
    from qconvd.plan_words import told_once
    from qconvd.quantities import show_size

    good = [p for p in previews if not p.error]
    if good:
        rows = [
            (p.target.label, show_size(p.nbytes), f"{p.nbytes:,}", f"{p.bits:.2f}" if p.bits else "", show_size(p.memory))
            for p in good
        ]
        headings = ("TARGET", "SIZE", "BYTES", "BITS/WEIGHT", "MEMORY")
        output.table(headings, rows, right=(1, 2, 3, 4), whole=(0,), under=[p.place for p in good])
    for number, p in enumerate([p for p in previews if p.error]):
        blank = "\n" if good or number else ""
        print(output.fitting(f"{blank}{p.target.label} cannot be made: {output.safe(str(p.error))}", sys.stdout))
        if asked and p.error and (written := spelled(p.target, p.error)):
            print(f"  on the command line: {written}")
    for labels, sentences in told_once({p.target.label: p.sentences for p in good}).items():
        print(f"\n{output.filled(', '.join(labels))}:")
        for sentence in sentences:
            print(output.filled(sentence, "  - "))
