"""`qconvd formats`."""

from __future__ import annotations

from qconvd.cli.options import AsJson


def formats(json: AsJson = False) -> None:
    """List the installed formats and their options.

    Also the short names that `--to` and recipes may use, and plugins that could not be loaded.
    """
    from qconvd.cli import output
    from qconvd.plugins import plugins

    found = plugins()
    if json:
        output.as_json({
            "formats": [
                {
                    "name": f.name, "version": f.version, "summary": f.summary, "devices": list(f.devices),
                    "aliases": {k: dict(v) for k, v in f.aliases.items()}, "distribution": found.distribution(f),
                    "options": f.Options.model_json_schema(),
                }
                for f in found.formats.values()
            ],
            "broken": [{"name": b.name, "distribution": b.distribution, "reason": b.reason} for b in found.broken],
        })  # fmt: skip
        return
    for format in found.formats.values():
        print(f"{format.name}: {format.summary}  ({found.distribution(format)}; {', '.join(format.devices)})")
        if format.aliases:
            print(f"  short: {', '.join(format.aliases)}")
        rows = [(f"  {name}", field.description or "") for name, field in format.Options.model_fields.items()]
        output.table(("  OPTION", ""), rows, whole=(0,))
        print()
    for broken in found.broken:
        output.note(f"The plugin {broken.name} ({broken.distribution}) cannot be loaded and is skipped: {broken.reason}")
