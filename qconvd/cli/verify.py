"""`qconvd verify`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qconvd.cli.exits import Exit
from qconvd.cli.options import AsJson


def verify(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="An artifact: its folder, or one of its files.")],
    json: AsJson = False,
) -> None:
    """Check that an artifact is whole and readable.

    Sizes and SHA-256 against its manifest, a parse by code that did not write it, NaN and infinities. Exit code 1 if it fails.
    """
    from qconvd.cli import output
    from qconvd.errors import QconvdError
    from qconvd.quality.verify import verify_path
    from qconvd.quantities import show_size

    try:
        reports = verify_path(path)
    except QconvdError as error:
        if json:
            output.as_json({"ok": False, **error.as_dict()})
        output.note(f"qconvd: verification failed: {error}")
        raise typer.Exit(Exit.FAILED) from None
    if json:
        output.as_json({"ok": True, "artifacts": [r.as_dict() for r in reports]})
        return
    for report in reports:
        print(f"{report.artifact}: right ({report.files} files, {report.tensors} tensors, {show_size(report.bytes)})")
        if report.sha256:
            print("  every size and SHA-256 is the manifest's; code that did not write it parses it")
        for tensor, counts in report.non_finite.items():
            found = ", ".join(f"{n} {what}" for what, n in counts.items() if n)
            print(f"  {output.safe(tensor)}: {found}; the model has them, too, or the overflow was accepted")
        for sentence in report.not_checked:
            print(f"  not checked: {sentence}")
