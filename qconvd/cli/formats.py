"""`qconvd formats`."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qconvd.cli.options import AsJson

if TYPE_CHECKING:
    from qconvd.formats import Format
    from qconvd.option_table import Option


def formats(
    name: Annotated[
        str | None,
        typer.Argument(metavar="FORMAT", help="This one: its options with values, and the models it can be made from."),
    ] = None,
    json: AsJson = False,
) -> None:
    """List what can be made; of one format, all its options.

    Also the short names that `--to` and recipes may use, and plugins that could not be loaded.
    """
    from qconvd.cli import output
    from qconvd.plugins import plugins

    found = plugins()
    shown = list(found.formats.values()) if name is None else [_named(name)]
    if json:
        broken = [{"name": b.name, "distribution": b.distribution, "reason": b.reason} for b in found.broken]
        output.as_json({"formats": [_as_dict(f) for f in shown], "broken": broken})
        return
    if name is None:
        _list(shown)
    else:
        _print(shown[0])
    for one in found.broken:
        output.note(f"The plugin {one.name} ({one.distribution}) cannot be loaded and is skipped: {one.reason}")


def _named(name: str) -> Format:
    """The format of this name, or of this short name. Raises `QconvdError`."""
    from qconvd.errors import QconvdError
    from qconvd.plugins import plugins
    from qconvd.suggest import did_you_mean

    known = plugins().formats
    short = {alias: f for f in known.values() for alias in f.aliases}
    if name not in known | short:
        hint = did_you_mean(name, [*known, *short])
        raise QconvdError(f"there is no format {name!r}{hint}", fix=f"there are: {', '.join(known)}")
    return (short | known)[name]


def _list(formats: Sequence[Format]) -> None:
    """One paragraph each: what it is, its short names, the names of its options."""
    from qconvd.cli import output
    from qconvd.plugins import plugins

    common = _common()
    width = max((len(format.name) for format in formats), default=0) + 2
    indent = " " * width
    for format in formats:
        package = plugins().distribution(format)
        by = "" if package.startswith("qconvd ") else f" ({package})"
        print(output.filled(f"{format.summary}{by}", f"{format.name:<{width}}"))
        if format.aliases:
            print(output.filled(", ".join(format.aliases), f"{indent}short: "))
        if own := _own(format):
            named = ", ".join(f"{option.name} (required)" if option.required else option.name for option in own)
            print(output.filled(named, f"{indent}options: "))
        print()
    print(output.filled(f"Each also takes {', '.join(common[:-1])} and {common[-1]}."))
    last = "`qconvd formats FORMAT` says what a format's options mean, how to write them, and which models it can be made from."
    print(output.filled(last))


def _print(format: Format) -> None:
    from qconvd.cli import output
    from qconvd.formats import FormatOptions
    from qconvd.option_table import options_of
    from qconvd.plugins import plugins

    about = f"{format.name}: {format.summary} ({plugins().distribution(format)}; {', '.join(format.devices)})"
    print(output.filled(about))
    if format.aliases:
        print(output.filled(", ".join(format.aliases), "  short: "))
    rows = []
    for option in (*_own(format, nested=True), *options_of(FormatOptions)):
        default = "required" if option.required else f"default {option.default}" if option.default else "optional"
        values = option.values or "options of its own"
        rows.append((f"  {option.name}", f"{values}  ({default})\n{option.description}"))
    output.table(("  OPTION", "VALUES"), rows, whole=(0,))
    print()
    if written := _example(format):
        print(f"In a recipe:          - {written}\nOn the command line:  --to {shlex.quote(written)}\n")
    for detail in plugins().details(format.name):
        print(f"{detail.title}:")
        indented = [(f"  {first}", *rest) for first, *rest in detail.rows]
        output.table((f"  {detail.headings[0]}", *detail.headings[1:]), indented, whole=(0,))
        print()


def _common() -> list[str]:
    """The options of every format."""
    from qconvd.formats import FormatOptions
    from qconvd.option_table import options_of

    return [option.name for option in options_of(FormatOptions)]


def _own(format: Format, *, nested: bool = False) -> list[Option]:
    """A format's own options: what it needs first, what it shares with its kin last."""
    from qconvd.option_table import options_of

    common, fields = _common(), format.Options.model_fields
    here = {fields[name].alias or name for name in vars(format.Options).get("__annotations__", {}) if name in fields}
    own = [option for option in options_of(format.Options, nested=nested) if option.name not in common]
    return sorted(own, key=lambda option: (not option.required, option.name.partition(".")[0] not in here))


def _example(format: Format) -> str:
    """A target with what it needs and one more option; empty where that cannot be told from the options themselves."""
    from qconvd.errors import QconvdError
    from qconvd.targets import EXAMPLE, resolve_list

    own = _own(format)
    given = {o.name: found[1] for o in own if o.required and (found := EXAMPLE.search(o.description))}
    for option in own:
        values = option.values.removeprefix("list of ").split(", ")
        if len(values) > 1 and option.default in values:
            given[option.name] = (values * 2)[values.index(option.default) + 1]
            break
    written = f"{format.name}: {{{', '.join(f'{name}: {value}' for name, value in given.items())}}}"
    try:
        resolve_list(written)
    except QconvdError:
        return ""
    return written if given else ""


def _as_dict(format: Format) -> dict[str, Any]:
    from qconvd.plugins import plugins

    found = plugins()
    return {
        "name": format.name,
        "version": format.version,
        "summary": format.summary,
        "devices": list(format.devices),
        "aliases": {k: dict(v) for k, v in format.aliases.items()},
        "distribution": found.distribution(format),
        "options": format.Options.model_json_schema(),
        "details": [{"title": d.title, "headings": d.headings, "rows": d.rows} for d in found.details(format.name)],
    }
