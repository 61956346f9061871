"""`qconvd verify`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qconvd.cli.exits import Exit
from qconvd.cli.options import AsJson

if TYPE_CHECKING:
    from qconvd.quality.verify import Failure, Report


_CHECKED = "every size and SHA-256 is the manifest's; code that did not write it parses it"


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

    # Large artifacts take minutes; who looks on is told at which it is.
    found = verify_path(path, begin=_watched if sys.stderr.isatty() and not json else str)
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
        _print_common([one for one in found if not isinstance(one, Failure)])
        if len(found) > 1:
            print(f"\n{len(found) - len(wrong)} of {len(found)} artifacts are right.")
    if wrong:
        raise typer.Exit(Exit.FAILED)


def _print(report: Report) -> None:
    from qconvd.cli import output
    from qconvd.quantities import show_size

    files = f"{report.files} {'file' if report.files == 1 else 'files'}"
    print(f"{output.safe(report.artifact)}: right ({files}, {report.tensors} tensors, {show_size(report.bytes)})")
    for tensor, counts in report.non_finite.items():
        odd = ", ".join(f"{n} {what}" for what, n in counts.items() if n)
        print(output.filled(f"{tensor}: {odd}; the model has them, too, or the overflow was accepted", "  "))


def _print_common(reports: Sequence[Report]) -> None:
    """What was checked and what could not be: each sentence once, with the artifacts that it is about unless it is all."""
    from qconvd.cli import output
    from qconvd.plan_words import told_once

    said = {
        number: [*([_CHECKED] if one.sha256 else []), *(f"not checked: {sentence}" for sentence in one.not_checked)]
        for number, one in enumerate(reports)
    }
    for numbers, sentences in told_once(said).items():
        names = ", ".join(reports[number].artifact for number in numbers)
        if len(reports) > 1:
            print(output.filled(f"{'All of them' if len(numbers) == len(reports) else names}:", "\n"))
        for sentence in sentences:
            print(output.filled(sentence, "  "))


def _watched(artifact: str) -> None:
    from qconvd.cli import output

    output.note(f"checking {output.safe(artifact)}")


def _as_dict(one: Report | Failure) -> dict[str, Any]:
    from qconvd.quality.verify import Failure

    if isinstance(one, Failure):
        return {"artifact": one.artifact, "ok": False, "error": one.error.as_dict()}
    return {"ok": True, **one.as_dict()}
