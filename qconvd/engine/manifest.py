"""The manifest of an artifact: where it came from, what it holds, how exact it is. Its presence says that all is there.

It lies beside the data as `qconvd.json`, or as `.qconvd/<artifact>.json` where several artifacts share a folder. It
holds no time and no machine's name: equal artifacts have equal manifests. The control side reads these, so no numpy here.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from qconvd.engine.durable import make_folders, write_whole
from qconvd.errors import QconvdError

SCHEMA = 1
MARK = "qconvd"
OWN_NAME = "qconvd.json"
SHARED_FOLDER = ".qconvd"


@dataclass(frozen=True, slots=True)
class ManifestFile:
    """A file of the artifact: path relative to the artifact's folder, size, SHA-256 in hex."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """What is known of one artifact."""

    artifact: str
    format: str
    container: str
    plan: str
    """SHA-256 of the plan, as `sha256:…`."""
    files: tuple[ManifestFile, ...]
    source: Mapping[str, Any] = field(default_factory=dict)
    """name, locator, identity, revision."""
    recipe: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    errors: Mapping[str, Any] = field(default_factory=dict)
    """relative_rms, max_error, weights, overflows, underflows, nan, inf, and the worst units, over all units."""
    tensors: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Counts per tensor, for those that have overflows, underflows, NaN or infinities."""
    left_out: tuple[Mapping[str, str], ...] = ()
    loads_with: tuple[Mapping[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    statistics: tuple[Mapping[str, Any], ...] = ()
    """Files that errors were weighed with (an imatrix): kind, file, sha256, and the tensors it held nothing for."""
    calibration: Mapping[str, Any] = field(default_factory=dict)
    """What statistics were gathered from, and on what: text, sha256, samples, length, …, device, threads, batch, versions;
    `linears` holds the encoder's figures of each unit, `fallbacks` why one was made without its statistics."""
    verification: Mapping[str, Any] | None = None
    """What verifying found; None until it was done."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Whatever else was known beforehand."""

    @property
    def nbytes(self) -> int:
        return sum(f.bytes for f in self.files)

    def to_json(self) -> bytes:
        """The manifest as indented UTF-8 JSON with sorted keys: equal manifests give equal bytes."""
        data = {MARK: "manifest", "schema": SCHEMA, **dataclasses.asdict(self)}
        return (json.dumps(data, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode()


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Write the manifest so that it appears whole or not at all, and is on disk when this returns."""
    make_folders(path.parent, path.parent.parent)
    write_whole(path, manifest.to_json())


def read_manifest(path: Path) -> Manifest:
    """The manifest in a file. Raises `QconvdError` if it is not one, or one of a later version."""
    try:
        text = path.read_bytes()
    except OSError as error:
        raise QconvdError(f"cannot be read: {os.strerror(error.errno or 0)}", where=str(path)) from error
    return parse_manifest(text, str(path))


def parse_manifest(text: bytes, where: str) -> Manifest:
    """The manifest that a file at `where` holds. Raises `QconvdError` as `read_manifest` does."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        fix = "remove it and the files that it was about, and convert again"
        raise QconvdError(f"is not valid JSON: {error}", where=where, fix=fix) from error
    if not isinstance(data, dict) or data.pop(MARK, None) != "manifest":
        raise QconvdError("is no manifest of qconvd", where=where)
    if data.pop("schema", None) != SCHEMA:
        fix = "use that version, or convert again"
        raise QconvdError("is a manifest of another version of qconvd", where=where, fix=fix)
    try:
        data["files"] = tuple(ManifestFile(**f) for f in data["files"])
        # Manifests of the first versions have no statistics.
        data.update({key: tuple(data.get(key, ())) for key in ("left_out", "loads_with", "notes", "statistics")})
        manifest = Manifest(**data)
    except (KeyError, TypeError) as error:
        raise QconvdError(f"is a damaged manifest: {error}", where=where) from error
    if wrong := _wrong(manifest):
        raise QconvdError(f"is a damaged manifest: {wrong} is of another type", where=where)
    if leaving := next(
        (f.path for f in manifest.files if PurePosixPath(f.path).is_absolute() or ".." in f.path.split("/")), None
    ):
        raise QconvdError(f"is a damaged manifest: the path {leaving!r} leaves the folder", where=where)
    return manifest


def _wrong(manifest: Manifest) -> str:
    """The name of a field that is not of its type; whoever tampered with the file may have put anything there."""
    for file in manifest.files:
        if not (isinstance(file.path, str) and isinstance(file.bytes, int) and isinstance(file.sha256, str)):
            return "files"
    tables = ["source", "options", "versions", "errors", "tensors", "calibration", "extra"]
    if manifest.verification is not None:
        tables.append("verification")
    found = [name for name in tables if not isinstance(getattr(manifest, name), Mapping)]
    texts = ("artifact", "format", "container", "plan", "recipe")
    found += [name for name in texts if not isinstance(getattr(manifest, name), str)]
    return found[0] if found else ""


def manifest_paths(folder: Path) -> list[Path]:
    """The files in a folder that are named as manifests are, whatever is in them."""
    own = folder / OWN_NAME
    return [p for p in (own, *sorted((folder / SHARED_FOLDER).glob("*.json"))) if p.is_file()]


def manifests_in(folder: Path) -> list[Manifest]:
    """The manifests of a folder; what is named like one and is not is passed over."""
    found = []
    for path in manifest_paths(folder):
        try:
            found.append(read_manifest(path))
        except QconvdError:
            continue
    return found


def is_ours(folder: Path) -> bool:
    """Whether qconvd made this folder: it then is no source, and may be replaced."""
    return bool(manifests_in(folder))
