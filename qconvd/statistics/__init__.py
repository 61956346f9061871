"""Statistics of activations that encoders weigh errors with, read from files that other programs made.

A plan names such files (`Plan.statistics`) and its units say what they need of them (`Unit.statistics`). Nothing here imports
numpy before an array is asked for: planning reads names and counts only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from qconvd.errors import QconvdError
from qconvd.statistics.imatrix import Imatrix, open_imatrix

__all__ = ["Imatrix", "open_imatrix", "open_statistics"]

READERS: Mapping[str, Callable[[Path], Imatrix]] = {"imatrix": open_imatrix}
"""What reads a kind of file."""


def open_statistics(kind: str, path: Path, sha256: str) -> Imatrix:
    """Open a file of statistics if it still is the one that was planned with. Raises `QconvdError` otherwise."""
    if kind not in READERS:
        raise QconvdError(
            f"nothing reads statistics of the kind {kind!r}", where=str(path), fix=f"there are: {', '.join(READERS)}"
        )
    found = READERS[kind](path)
    if found.sha256 != sha256:
        found.close()
        raise changed(path)
    return found


def changed(path: Path) -> QconvdError:
    return QconvdError(
        "changed since the recipe was read",
        where=str(path),
        fix="reload the daemon (SIGHUP, or `systemctl reload qconvd`) or run the command again: "
        "another content makes a new version",
    )
