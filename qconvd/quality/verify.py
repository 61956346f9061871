"""Whether an artifact is whole and says what the model says.

In this order: every file is there with its size; each is parsed by code other than the writer's; its SHA-256, NaN and
infinities come from one pass over its bytes; its tensors are those that were planned; sampled rows, and all rows of a tensor
with NaN or infinities, are decoded and held against the model.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from qconvd.checkpoints.base import ModelInfo, TensorInfo
from qconvd.checkpoints.files import unreadable
from qconvd.dtypes import FLOATS
from qconvd.engine.manifest import OWN_NAME, SHARED_FOLDER, Manifest, ManifestFile, manifest_paths, read_manifest
from qconvd.engine.plan import Plan
from qconvd.engine.source import Source
from qconvd.engine.written import Follow, Written
from qconvd.errors import BadCheckpoint, QconvdError
from qconvd.formats import Format
from qconvd.plugins import plugins
from qconvd.quality.parse import SUFFIXES, ranges_in, tensors_in
from qconvd.quality.report import Failure, Report
from qconvd.quality.rows import Comparison
from qconvd.quality.scan import FileScan, NonFinite, scan

__all__ = ["Failure", "Report", "verify", "verify_path"]

AGAIN = "convert it again"


def verify(
    folder: Path,
    manifest: Manifest,
    *,
    plan: Plan | None = None,
    model: ModelInfo | None = None,
    formats: Mapping[str, Format] | None = None,
    pieces: Mapping[str, Written] | None = None,
) -> Report:
    """Verify one artifact whose files lie in `folder`. Raises `QconvdError` naming the file, the tensor and the figures.

    Without `plan` and `model` (by hand), what needs them is left out and said so in the report. With `pieces`, data files are
    held against the checksum that each piece had when it was encoded, as was what their SHA-256 was taken of: that is the same
    proof in less time, and one more, that what was hashed is what was encoded.
    """
    formats = plugins().formats if formats is None else formats
    paths = {f.path: _path(folder, f.path) for f in manifest.files}
    for file in manifest.files:
        _check_size(file, paths[file.path])
    if plan:
        _check_files(manifest, plan, folder)
    scans: dict[str, FileScan] = {}
    tensors: dict[str, list[TensorInfo]] = {}
    for file in manifest.files:
        kind = _kind(file.path, manifest, plan)
        tensors[file.path] = tensors_in(paths[file.path], kind) if kind else []
        follow = Follow(paths[file.path], pieces[file.path]) if pieces and file.path in pieces else None
        scans[file.path] = scan(paths[file.path], tensors[file.path], follow, ranges_in(paths[file.path], kind) if kind else ())
        if follow:
            follow.finish()
        elif scans[file.path].sha256 != file.sha256:
            what = f"has other bytes than were written: SHA-256 {scans[file.path].sha256}, the manifest says {file.sha256}"
            raise BadCheckpoint(what, where=str(paths[file.path]), fix=AGAIN)
    if plan:
        _check_tensors(plan, tensors, folder)
    _check_indexes(folder, manifest, tensors)
    report = Report(
        artifact=manifest.artifact,
        files=len(manifest.files),
        bytes=sum(f.bytes for f in manifest.files),
        tensors=sum(len(t) for t in tensors.values()),
        sha256=True,
        non_finite=_found(scans.values()),
        not_checked=_not_checked(scans, plan, model),
    )
    _check_refusal(manifest, folder)
    if plan and model:
        return _compared(report, folder, manifest, plan, model, formats)
    _check_known(report, manifest, folder)
    return report


def verify_path(
    path: Path, *, formats: Mapping[str, Format] | None = None, begin: Callable[[str], object] = str
) -> list[Report | Failure]:
    """Verify what a person points at: an artifact's folder or file, a folder that holds several, or files without a manifest.

    Every artifact is looked at, whatever is wrong with the others; `begin` is told its name before. Raises `QconvdError` if
    there is nothing to verify.
    """
    try:
        path.stat()
    except FileNotFoundError as error:
        what = "there is no such file or folder"
        raise QconvdError(what, where=str(path), fix="look at the spelling of the path") from error
    except OSError as error:
        raise unreadable(path, error) from error
    places = manifest_paths(path if path.is_dir() else path.parent)
    if not path.is_dir():
        places = [p for p in places if _is_about(p, path)]
    files = [path] if path.is_file() else sorted(p for p in path.iterdir() if p.suffix in SUFFIXES and p.is_file())
    if path.is_dir() and not places and not files:  # the output folder: artifacts' folders stand in it
        places = [m for p in sorted(path.iterdir()) if p.is_dir() and p.name != SHARED_FOLDER for m in manifest_paths(p)]
    if places:
        return [_verified(p, formats, begin) for p in places]
    if not files or any(p.suffix not in SUFFIXES for p in files):
        known = ", ".join(SUFFIXES)
        raise QconvdError(
            f"holds no manifest of qconvd and no weights ({known})", where=str(path), fix="give an artifact's folder"
        )
    begin(path.name)
    try:
        return [_foreign(path, files)]
    except (OSError, QconvdError) as error:
        return [Failure(path.name, _told(error, path))]


def _verified(place: Path, formats: Mapping[str, Format] | None, begin: Callable[[str], object]) -> Report | Failure:
    """One artifact, by the place of its manifest."""
    own = place.name == OWN_NAME
    folder = place.parent if own else place.parent.parent
    artifact = folder.resolve().name if own else place.stem
    begin(artifact)
    try:
        return verify(folder, read_manifest(place), formats=formats)
    except (OSError, QconvdError) as error:
        return Failure(artifact, _told(error, folder))


def _is_about(place: Path, path: Path) -> bool:
    """Whether a manifest names a file. One that cannot be read is taken to, by its own name: the file is not without one."""
    try:
        return path.name in {f.path for f in read_manifest(place).files}
    except QconvdError:
        return place.name == OWN_NAME or place.stem == path.stem


def _told(error: OSError | QconvdError, where: Path) -> QconvdError:
    return unreadable(Path(error.filename or where), error) if isinstance(error, OSError) else error


def _foreign(path: Path, files: Sequence[Path]) -> Report:
    """Files that nobody described: they can be parsed and scanned, no more."""
    tensors = {p.name: tensors_in(p, SUFFIXES[p.suffix]) for p in files}
    scans = {p.name: scan(p, tensors[p.name], between=ranges_in(p, SUFFIXES[p.suffix])) for p in files}
    return Report(
        artifact=path.name,
        files=len(files),
        bytes=sum(s.nbytes for s in scans.values()),
        tensors=sum(len(t) for t in tensors.values()),
        non_finite=_found(scans.values()),
        not_checked=("sizes and SHA-256: there is no manifest of qconvd beside it", *_not_checked(scans, None, None)),
    )


def _path(folder: Path, name: str) -> Path:
    """Where a file of the manifest is; a manifest is input like any other, so it may not lead out of its folder."""
    parts = PurePosixPath(name)
    if parts.is_absolute() or ".." in parts.parts or not parts.parts:
        raise BadCheckpoint(f"the manifest names {name!r}, which is outside the folder", where=str(folder))
    return folder / parts


def _check_size(file: ManifestFile, path: Path) -> None:
    if not path.is_file():
        raise BadCheckpoint("is missing, and the manifest names it", where=str(path), fix=AGAIN)
    if path.stat().st_size != file.bytes:
        raise BadCheckpoint(f"has {path.stat().st_size} bytes, the manifest says {file.bytes}", where=str(path), fix=AGAIN)


def _check_files(manifest: Manifest, plan: Plan, folder: Path) -> None:
    planned = {f.path: f.nbytes for f in plan.files} | {f.path: f.nbytes for f in plan.side_files}
    made = {f.path: f.bytes for f in manifest.files}
    for name in sorted(planned.keys() | made.keys()):
        if planned.get(name) != made.get(name):
            what = f"{_size(planned.get(name))} was planned, {_size(made.get(name))} was made"
            raise BadCheckpoint(what, where=str(folder / name), fix=AGAIN)


def _size(nbytes: int | None) -> str:
    return "no such file" if nbytes is None else f"a file of {nbytes} bytes"


def _kind(name: str, manifest: Manifest, plan: Plan | None) -> str | None:
    """The container of a data file; None for a side file."""
    if plan:
        return plan.container.kind if name in {f.path for f in plan.files} else None
    suffix = PurePosixPath(name).suffix
    if manifest.container in SUFFIXES.values():
        return SUFFIXES.get(suffix)
    # A plugin's container has a suffix that is not known here: its largest file holds the weights.
    largest = max(manifest.files, key=lambda f: f.bytes)
    return manifest.container if suffix == PurePosixPath(largest.path).suffix else SUFFIXES.get(suffix)


def _check_tensors(plan: Plan, tensors: Mapping[str, Sequence[TensorInfo]], folder: Path) -> None:
    outputs = {t.name: t for t in plan.tensors}
    for file in plan.files:
        found = {t.name: t for t in tensors[file.path]}
        if missing := [p.tensor for p in file.tensors if p.tensor not in found]:
            raise BadCheckpoint(
                "was planned and is not in the file", where=f"{folder / file.path}, tensor {missing[0]}", fix=AGAIN
            )
        if more := sorted(found.keys() - {p.tensor for p in file.tensors}):
            raise BadCheckpoint(
                "is in the file and was not planned", where=f"{folder / file.path}, tensor {more[0]}", fix=AGAIN
            )
        for placed in file.tensors:
            planned = outputs[placed.tensor]
            there = found[placed.tensor]
            want = (planned.dtype, tuple(planned.shape), placed.offset, placed.nbytes)
            have = (there.dtype, there.shape, there.offset, there.nbytes)
            if want != have:
                what = f"{_described(have)}; {_described(want)} was planned"
                raise BadCheckpoint(what, where=f"{folder / file.path}, tensor {placed.tensor}", fix=AGAIN)


def _described(tensor: tuple[str, tuple[int, ...], int, int]) -> str:
    dtype, shape, offset, nbytes = tensor
    return f"{dtype} {list(shape)}, {nbytes} bytes at {offset}"


def _check_indexes(folder: Path, manifest: Manifest, tensors: Mapping[str, Sequence[TensorInfo]]) -> None:
    """An index of shards must send every tensor's reader to the right file."""
    where = {t.name: name for name, found in tensors.items() for t in found}
    for file in manifest.files:
        if file.path.endswith(".safetensors.index.json"):
            index = json.loads((folder / file.path).read_bytes())
            if index.get("weight_map") != where:
                raise BadCheckpoint(
                    "sends readers to other files than the tensors are in", where=str(folder / file.path), fix=AGAIN
                )


def _found(scans: Any) -> dict[str, dict[str, int]]:
    return {name: counts._asdict() for s in scans for name, counts in sorted(s.non_finite.items())}


def _not_checked(scans: Mapping[str, FileScan], plan: Plan | None, model: ModelInfo | None) -> tuple[str, ...]:
    types = sorted({dtype for s in scans.values() for dtype in s.not_scanned.values()})
    said = [f"NaN and infinities in tensors of type {', '.join(types)}"] if types else []
    if not plan:
        said.append("names, shapes and places of the tensors: there is no plan to hold them against")
    if not model:
        said.append("the weights themselves: the model they came from is not at hand")
    return tuple(said)


def _check_refusal(manifest: Manifest, folder: Path) -> None:
    """`non_finite: refuse` for every format, also for one whose encoder does not look."""
    if manifest.options.get("non_finite") != "refuse":
        return
    for name, counts in sorted(manifest.tensors.items()):
        if counts.get("nan") or counts.get("inf"):
            raise QconvdError(
                f"the model has {counts.get('nan', 0)} NaN and {counts.get('inf', 0)} infinite weights there, "
                "and `non_finite: refuse` is set",
                where=f"{folder}, tensor {name}",
                fix="mend the model, or convert it with `non_finite: report`",
            )


def _check_known(report: Report, manifest: Manifest, folder: Path) -> None:
    """Without the model: a NaN is accepted only where converting or verifying reported what it came from."""
    units = {name for name, counts in manifest.tensors.items() if counts.keys() & {"nan", "inf", "overflows"}}
    known = units | set((manifest.verification or {}).get("non_finite", ()))
    for name, counts in report.non_finite.items():
        if name not in known:
            raise BadCheckpoint(_made(NonFinite(**counts)), where=f"{folder}, tensor {name}", fix=AGAIN)


def _made(counts: NonFinite) -> str:
    return f"holds {counts.nan} NaN and {counts.inf} infinite values, and the model has none there"


def _compared(
    report: Report, folder: Path, manifest: Manifest, plan: Plan, model: ModelInfo, formats: Mapping[str, Format]
) -> Report:
    if manifest.format not in formats:
        raise QconvdError(f"no plugin provides the format {manifest.format!r}", where=str(folder), fix="install it again")
    with (
        Source(model) as source,
        Comparison(folder, plan, source, formats[manifest.format], plugins().operations) as comparison,
    ):
        try:
            for unit in plan.units:
                odd = [t.name for t in unit.outputs if t.name in report.non_finite]
                if odd and any(x.dtype in FLOATS for x in unit.inputs):
                    comparison.full(unit)
                else:
                    comparison.sample(unit)
        except Exception:
            # A model that changed meanwhile is the reason of whatever else was found.
            source.check()
            raise
        source.check()
        worst = comparison.worst
    return replace(report, rows=worst.rows, max_error=worst.error, worst=worst.share, worst_tensor=worst.tensor)
