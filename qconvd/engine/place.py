"""Whether an artifact may be put where it is to go: there must be nothing, or what it may replace.

Asked before anything is converted, so that nobody waits hours for a refusal, and again before the artifact is moved there.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from qconvd.engine.manifest import OWN_NAME, SHARED_FOLDER, Manifest, manifests_in, read_manifest
from qconvd.errors import QconvdError


def check_place(
    folder: Path,
    manifest: str,
    paths: Iterable[str],
    *,
    laid: Iterable[str] | None = None,
    digests: Mapping[str, str] | None = None,
) -> None:
    """Raise `QconvdError` if an artifact with these `paths` and this manifest, all relative to `folder`, may not go there.

    An older version of the artifact may be replaced. Its manifest tells it; where that is damaged, `laid` does: the files that
    the ledger knows to have put there, None if it knows of none. `digests` (SHA-256 by path) say which files are the same as
    those of other artifacts in a shared folder; without them (nothing is made yet) such files are let pass.
    """
    if manifest == OWN_NAME:
        _check_own(folder, laid is not None)
    else:
        _check_shared(folder, manifest, paths, laid, digests)


def readable(path: Path) -> Manifest | None:
    """The manifest in a file, or None if there is none or it is damaged."""
    try:
        return read_manifest(path)
    except QconvdError:
        return None


def _check_own(folder: Path, laid: bool) -> None:
    if not os.path.lexists(folder) or (folder.is_dir() and not any(folder.iterdir())):
        return
    known = folder / OWN_NAME
    if not folder.is_dir() or not (readable(known) or (laid and known.is_file())):
        raise _theirs(folder)


def _check_shared(
    folder: Path, manifest: str, paths: Iterable[str], laid: Iterable[str] | None, digests: Mapping[str, str] | None
) -> None:
    if not os.path.lexists(folder):
        return
    if not folder.is_dir():
        raise QconvdError("is there already and is no folder", where=str(folder), fix="move it away")
    if (folder / OWN_NAME).exists() and not (folder / SHARED_FOLDER).is_dir():
        raise _theirs(folder)  # one artifact's own folder, which a newer version of that artifact replaces as a whole
    replaced = readable(folder / manifest)
    before = {f.path for f in replaced.files} if replaced else set()
    if laid is not None and (digests is None or (folder / manifest).is_file()):
        # Beforehand an older version may just be moving in, its manifest last; in the end a manifest must say that it is one.
        before |= set(laid)
    elsewhere = {f.path: f.sha256 for m in manifests_in(folder) if m != replaced for f in m.files}
    for path in paths:
        if path in elsewhere:
            theirs = digests is not None and digests[path] != elsewhere[path]
        else:
            theirs = path not in before and os.path.lexists(folder / path)
        if theirs:
            raise _theirs(folder / path, "belongs to something else")


def _theirs(place: Path, why: str = "was not made by qconvd") -> QconvdError:
    return QconvdError(
        f"is there already and {why}; it is left as it is",
        where=str(place),
        fix="move it away, or give the target another name",
    )
