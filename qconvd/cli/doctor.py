"""`qconvd doctor`."""

from __future__ import annotations

from typing import Annotated

import typer

from qconvd.cli.exits import Exit
from qconvd.cli.options import AsJson, ConfigFile


def doctor(
    config: ConfigFile = None,
    warm: Annotated[
        bool, typer.Option("--warm", help="Compile the kernels now, so that the first conversion need not.")
    ] = False,
    json: AsJson = False,
) -> None:
    """Look at this machine for what could go wrong.

    Devices, folders with their permissions and filesystems, inotify's limits, plugins, compiled kernels, what calibration
    needs, disk space. Exit code 1 if something is bad.
    """
    from qconvd.cli import output
    from qconvd.examination import examine

    if warm:
        output.note("getting ready what the first conversions would; all kernels together take some minutes of one core, once")
    findings = examine(config, warm=warm)
    bad = [f for f in findings if f.state == "bad"]
    if json:
        output.as_json([{"what": f.what, "state": f.state, "found": f.found, "fix": f.fix} for f in findings])
    else:
        marks = {"good": "ok", "note": "--", "bad": "BAD"}
        output.table(("", "WHAT", "FOUND"), [(marks[f.state], f.what, f.found) for f in findings], whole=(0, 1))
        for finding in findings:
            if finding.fix:
                print("\n" + "\n".join(output.filled(line) for line in f"{finding.what}: {finding.fix}".splitlines()))
    if bad:
        raise typer.Exit(Exit.FAILED)
