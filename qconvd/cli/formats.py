"""`qconvd formats`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from qconvd.cli.options import AsJson

if TYPE_CHECKING:
    from qconvd.formats import Format


def formats(
    name: Annotated[
        str | None, typer.Argument(metavar="[FORMAT]", help="Only this one, with the models that it can be made from.")
    ] = None,
    json: AsJson = False,
) -> None:
    """List the installed formats and their options.

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
    for format in shown:
        _print(format, details=name is not None)
    if name is None:
        print("`qconvd formats FORMAT` shows one of them, and which models it can be made from.")
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


def _print(format: Format, *, details: bool) -> None:
    from qconvd.cli import output
    from qconvd.option_table import options_of
    from qconvd.plugins import plugins

    print(f"{format.name}: {format.summary}  ({plugins().distribution(format)}; {', '.join(format.devices)})")
    if format.aliases:
        print(output.filled(", ".join(format.aliases), "  short: "))
    rows = []
    for option in options_of(format.Options, nested=details):
        default = "required" if option.required else f"default {option.default}" if option.default else "optional"
        values = option.values or "options of its own"
        rows.append((f"  {option.name}", f"{values}  ({default})\n{option.description}"))
    output.table(("  OPTION", "VALUES"), rows, whole=(0,))
    print()
    for detail in plugins().details(format.name) if details else ():
        print(f"{detail.title}:")
        indented = [(f"  {first}", *rest) for first, *rest in detail.rows]
        output.table((f"  {detail.headings[0]}", *detail.headings[1:]), indented, whole=(0,))
        print()


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
