"""`qconvd verify`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qconvd.cli.exits import Exit
from qconvd.cli.options import AsJson

if TYPE_CHECKING:
    from qconvd.quality.verify import Failure, Report


def verify(
    path: Annotated[
        Path, typer.Argument(metavar="PATH", help="An artifact: its folder, or one of its files; or a folder of artifacts.")
    ],
    json: AsJson = False,
) -> None:
    """Check that artifacts are whole and readable.

    Sizes and SHA-256 against the manifest, a parse by code that did not write it, NaN and infinities. Every artifact of the
    folder is checked; exit code 1 if one of them fails.
    """
    from qconvd.cli import output
    from qconvd.quality.verify import Failure, verify_path

    found = verify_path(path)
    wrong = [f for f in found if isinstance(f, Failure)]
    if json:
        output.as_json({"ok": not wrong, "artifacts": [_as_dict(f) for f in found]})
    else:
        for one in found:
            if isinstance(one, Failure):
                print(f"{output.safe(one.artifact)}: WRONG", flush=True)
                output.note(f"qconvd: {output.safe(f'{one.artifact} failed verification: {one.error}')}")
            else:
                _print(one)
        if len(found) > 1:
            print(f"\n{len(found) - len(wrong)} of {len(found)} artifacts are right.")
    if wrong:
        raise typer.Exit(Exit.FAILED)


def _print(report: Report) -> None:
    from qconvd.cli import output
    from qconvd.quantities import show_size

    files = f"{report.files} {'file' if report.files == 1 else 'files'}"
    print(f"{output.safe(report.artifact)}: right ({files}, {report.tensors} tensors, {show_size(report.bytes)})")
    if report.sha256:
        print("  every size and SHA-256 is the manifest's; code that did not write it parses it")
    for tensor, counts in report.non_finite.items():
        odd = ", ".join(f"{n} {what}" for what, n in counts.items() if n)
        print(f"  {output.safe(tensor)}: {odd}; the model has them, too, or the overflow was accepted")
    for sentence in report.not_checked:
        print(f"  not checked: {sentence}")


def _as_dict(one: Report | Failure) -> dict[str, Any]:
    from qconvd.quality.verify import Failure

    if isinstance(one, Failure):
        return {"artifact": one.artifact, "ok": False, "error": one.error.as_dict()}
    return {"ok": True, **one.as_dict()}
