"""`<output>/<model>.status.txt`: what the person who only drops files gets to see, in sentences."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from qconvd.naming import file_name
from qconvd.quantities import show_size

ENDING = ".status.txt"
SIGNATURE = "This file is written by qconvd and follows the model; it is safe to delete."
WIDTH = 100
"""Columns of a long sentence; paths are never broken."""


@dataclass(frozen=True)
class ArtifactStatus:
    """One artifact of a model: what it is called, how far it is, and where it lies once it is done.

    `notes` are what its plan has to say: tensors that fall back to another type, what the format cannot hold.
    """

    label: str
    state: str
    reason: str = ""
    nbytes: int = 0
    place: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class ModelStatus:
    """One model at one place. `remedy` says what the person can do; it is empty when nothing is to be done."""

    name: str
    place: Path
    state: str
    reason: str
    remedy: str = ""
    artifacts: tuple[ArtifactStatus, ...] = ()


def text(statuses: Sequence[ModelStatus]) -> str:
    """The file's content; several models of one file name stand below each other."""
    return "\n".join([*map(_section, statuses), SIGNATURE, ""])


def write(path: Path, statuses: Sequence[ModelStatus]) -> None:
    """Put the status in place atomically, if it says anything new. Raises OSError if the output cannot be written."""
    content = text(statuses)
    if _read(path) == content:
        return
    draft = path.parent / ".qconvd" / path.name
    draft.parent.mkdir(parents=True, exist_ok=True)
    draft.write_text(content, encoding="utf-8")
    draft.replace(path)


def remove(path: Path) -> None:
    """Take a status away, if it is one of ours."""
    if _ours(path):
        path.unlink(missing_ok=True)


def written(output: Path) -> set[Path]:
    """The status files of ours in the output folder."""
    try:
        with os.scandir(output) as entries:
            found = [Path(e.path) for e in entries if e.name.endswith(ENDING)]
    except OSError:
        return set()
    return {path for path in found if _ours(path)}


def path_of(output: Path, name: str) -> Path:
    """Where the status of a model is: under its name as far as that is one for a file; a long one is cut short."""
    return output / f"{file_name(name)}{ENDING}"


def _section(status: ModelStatus) -> str:
    lines = [f"{status.name}: {status.state}", ""]
    lines += [f"  {line}" for line in status.reason.splitlines()]
    if status.remedy:
        lines += ["", "What to do:", *(f"  {line.strip()}" for line in status.remedy.splitlines())]
    if status.artifacts:
        width = max(len(a.label) for a in status.artifacts)
        lines += ["", "Artifacts:", *(_line(a, width) for a in status.artifacts)]
    if notes := _notes(status.artifacts):
        lines += ["", "Worth knowing:", *notes]
    return "\n".join([*lines, "", f"Source: {status.place}", ""])


def _line(artifact: ArtifactStatus, width: int) -> str:
    size = show_size(artifact.nbytes) if artifact.nbytes else ""
    line = f"  {artifact.label:<{width}} {artifact.state:<11} {size:>10}  {artifact.place}".rstrip()
    return "\n    ".join(filter(None, [line, artifact.reason]))


def _notes(artifacts: Sequence[ArtifactStatus]) -> list[str]:
    """Each note once, with the artifacts that it is about."""
    about: dict[str, list[str]] = {}
    for artifact in artifacts:
        for note in artifact.notes:
            about.setdefault(note, []).append(artifact.label)
    return [_filled(f"{', '.join(labels)}: {note}") for note, labels in about.items()]


def _filled(text: str) -> str:
    """A sentence below its heading, in lines that an editor shows whole."""
    return textwrap.fill(
        text, WIDTH, initial_indent="  ", subsequent_indent="    ", break_long_words=False, break_on_hyphens=False
    )


def _ours(path: Path) -> bool:
    return _read(path).rstrip().endswith(SIGNATURE)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
