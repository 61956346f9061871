"""One target while it is converted: its work folder, its journal, its files, and the manifest at the end."""

from __future__ import annotations

import base64
import errno
import hashlib
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np

from qconvd import __version__
from qconvd.calibration_folders import need_no_more
from qconvd.checkpoints.base import ModelInfo
from qconvd.engine.commit import BEGUN
from qconvd.engine.durable import sync_folder, write_whole
from qconvd.engine.figures import counts, error_figures, said_of
from qconvd.engine.graph import Grid, Rows, ranges
from qconvd.engine.journal import JOURNAL, Header, Journal, Record
from qconvd.engine.layout import Layout
from qconvd.engine.manifest import OWN_NAME, SHARED_FOLDER, Manifest, ManifestFile, read_manifest, write_manifest
from qconvd.engine.plan import Encoder, Plan, SideFile, StatisticsFile, Unit, UnitReport, to_json
from qconvd.engine.writer import DataFile, DataFiles, no_space
from qconvd.errors import BadCheckpoint, QconvdError

COPY_BLOCK = 1 << 20
KEPT = "statistics.json"
"""In a target's work folder: the files of statistics that calibration made for it."""
Decode: TypeAlias = Callable[[Unit, Rows, Sequence[Any]], Sequence[Any]]


@dataclass(frozen=True)
class ConvertTarget:
    """One artifact to make: what, with which arithmetic, and where it is put together."""

    id: str
    plan: Plan
    encoder: Encoder
    work: Path
    """Folder of its own on the output's filesystem: journal.jsonl, and files/ with the artifact."""
    about: Mapping[str, Any]
    """Manifest fields known beforehand: artifact, source, recipe, format, options, versions."""
    manifest: str | None = None
    """The manifest's path in the artifact; None: `qconvd.json`, or `.qconvd/<artifact>.json` in a shared folder."""
    calibration: Path | None = None
    """The folder of the calibration that its plan asks for; targets with one folder share it."""
    decode: Decode | None = None
    """The format's `decode`; needed where a layer is fed what the quantized layers before it give."""


def with_kept(plan: Plan, work: Path) -> Plan:
    """A plan that names the files of statistics, too, that calibration made for the target of this work folder."""
    try:
        kept = json.loads((work / KEPT).read_bytes())
    except FileNotFoundError:
        return plan
    return replace(plan, statistics=(*plan.statistics, *(StatisticsFile(**{**f, "kinds": tuple(f["kinds"])}) for f in kept)))


class TargetRun:
    """The state of a target in a run. `error` is set once, by whichever thread first sees it fail."""

    def __init__(
        self, target: ConvertTarget, model: ModelInfo, source: Any, calibration: Mapping[str, Any] = MappingProxyType({})
    ) -> None:
        """`calibration` is what statistics are gathered from, and on what: with another, other bytes come of it."""
        self.target = target
        self.calibration = calibration
        self.layout = Layout(target.plan)
        self.error: Exception | None = None
        self.done_bytes = 0
        self.resumed_bytes = 0
        """Of `done_bytes`, those that were made before the pass: by an earlier run, or layer by layer."""
        self.total_bytes = sum(t.nbytes for t in target.plan.tensors)
        self.unit = ""
        """The unit last written, for progress."""
        self.statistics: Mapping[str, Any] = {}
        """By `StatRequest.key`, what calibration has just gathered; each is there only while its wave is."""
        self.unreached: Mapping[str, int] = {}
        """Units of which some experts saw no token while mean squares were gathered, and how many."""
        self.asked = target.plan
        """The plan, with the files of statistics that calibration made."""
        self.digest = f"sha256:{hashlib.sha256(_fingerprint(target, calibration)).hexdigest()}"
        self.artifact = str(target.about.get("artifact") or _stem(target))
        self.folder = target.work / "files"
        self.files = DataFiles(self.folder, self.layout)
        self._model = model
        self._source = source
        self._records: dict[tuple[str, Rows], Record] = {}
        self._cut: Mapping[str, Grid] = {}
        self._lock = threading.Lock()
        self._journal: Journal | None = None
        target.work.mkdir(parents=True, exist_ok=True)
        self._resume()

    @property
    def id(self) -> str:
        return self.target.id

    @property
    def manifest_path(self) -> Path:
        own = f"{SHARED_FOLDER}/{self.artifact}.json" if self.target.plan.name.shared else OWN_NAME
        return self.folder / (self.target.manifest or own)

    @property
    def grid(self) -> Mapping[str, Grid] | None:
        """How an earlier run cut the units; None at a first start."""
        return self._journal.header.grid if self._journal else None

    def finished(self) -> Manifest | None:
        """The manifest, if an earlier run got that far."""
        if not self._journal or not self.manifest_path.exists():
            return None
        try:
            manifest = read_manifest(self.manifest_path)
        except QconvdError:
            return None
        sizes = [_size(self.folder / f.path) for f in manifest.files]
        return manifest if sizes == [f.bytes for f in manifest.files] else None

    def begin(self, grid: Mapping[str, Grid]) -> list[Record]:
        """Reserve the disk and open the journal. Returns what an earlier run wrote, to be checked by `check`."""
        self.files.reserve()
        self._cut = grid
        if self._journal is None:
            self._journal = Journal.create(self.target.work / JOURNAL, Header(self.digest, self._source, grid))
        last = {(r.unit, r.rows): r for r in self._journal.records}
        return [r for r in last.values() if r.unit in grid and _on_grid(r.rows, grid[r.unit], self.layout.units[r.unit])]

    def check(self, record: Record) -> set[DataFile]:
        """Read rows back that an earlier run recorded; if they are right, they need not be made again."""
        unit = self.layout.units[record.unit]
        if self.files.sums(unit, record.rows) != record.sums:
            return set()
        grown = self.note(unit, record)
        with self._lock:
            self.resumed_bytes += self._nbytes(unit, record.rows)
        return grown

    def done(self, unit: str, rows: Rows) -> bool:
        return (unit, rows) in self._records

    def read_also(self, files: tuple[StatisticsFile, ...]) -> None:
        """Files that calibration made are read like those that the plan names."""
        self.asked = replace(self.target.plan, statistics=(*self.target.plan.statistics, *files))
        write_whole(self.target.work / KEPT, json.dumps([asdict(f) for f in files]).encode())

    def is_done(self, unit: Unit) -> bool:
        """Whether all rows of a unit are written."""
        return all(self.done(unit.id, rows) for rows in ranges(unit.shape[0], self._cut[unit.id]))

    def dequantized(self, unit: Unit) -> Any:
        """(rows, columns): what a unit that is written stands for.

        Always decoded from the files, whether this run wrote them or an earlier one: the next layer must be fed the same.
        """
        assert self.target.decode is not None, "a stream of quantized activations needs the format's decode"
        whole = (0, unit.shape[0])
        data = [self.files.files[i].read(offset, nbytes) for i, offset, nbytes in self.layout.pieces(unit, whole)]
        return self.target.decode(unit, whole, data)[0]

    def note(self, unit: Unit, record: Record) -> set[DataFile]:
        """Rows are written; returns the files that grew."""
        with self._lock:
            self._records[unit.id, record.rows] = record
            self.unit = unit.id
            self.done_bytes += self._nbytes(unit, record.rows)
            return self.files.written(unit, record.rows)

    def record(self, records: Iterable[Record], files: Iterable[DataFile]) -> None:
        """Sync the files and journal the rows that were written to them."""
        for file in files:
            os.fdatasync(file.descriptor)
        if self._journal:
            self._journal.append(records)

    def fail(self, error: Exception) -> None:
        """Drop this target for the first reason given."""
        with self._lock:
            if self.error is None:
                self.error = self._worded(error)

    def check_there(self) -> None:
        """Drop this target if its files were taken away: what is written goes nowhere."""
        if self.error is None and self.files.files:
            try:
                self.files.check_there()
            except QconvdError as error:
                self.fail(error)

    def free(self) -> None:
        """Give the disk back at once, while other threads may still hold the files."""
        self.files.discard()

    def discard(self) -> None:
        """Remove what was made: nobody will go on with it. All threads must be done with it."""
        self.files.discard()
        self._close_journal()
        (self.target.work / JOURNAL).unlink(missing_ok=True)
        need_no_more(self.target.work)
        shutil.rmtree(self.folder, ignore_errors=True)

    def finish(self, progress: Callable[[], None]) -> Manifest:
        """Write the side files and, last, the manifest. The data files must be written and hashed."""
        plan = self.target.plan
        self.files.check_there(every=True)
        if any(f.hashed != f.nbytes for f in self.files.files):
            raise RuntimeError(f"{self.id}: the pass is over and parts were not written")
        files = zip(plan.files, self.files.files, strict=True)
        entries = [ManifestFile(f.path, d.nbytes, d.digest.hexdigest()) for f, d in files]
        for side in plan.side_files:
            entries.append(ManifestFile(side.path, side.nbytes, self._write_side(side)))
            progress()
        manifest = self._manifest(tuple(entries))
        write_manifest(self.manifest_path, manifest)
        return manifest

    def close(self) -> None:
        self.files.close()
        self._close_journal()

    def _nbytes(self, unit: Unit, rows: Rows) -> int:
        return sum(nbytes for _, _, nbytes in self.layout.pieces(unit, rows))

    def _resume(self) -> None:
        """Open the journal of an earlier run, or clear the ground if it was about something else."""
        path = self.target.work / JOURNAL
        journal = Journal.open(path)
        if journal and (journal.header.digest, journal.header.source) == (self.digest, self._source):
            self._journal = journal
            return
        if journal:
            journal.close()
        for stale in (path, self.target.work / BEGUN):
            stale.unlink(missing_ok=True)
        if self.folder.exists():
            shutil.rmtree(self.folder)

    def _write_side(self, side: SideFile) -> str:
        path = self.folder / side.path
        path.parent.mkdir(parents=True, exist_ok=True)
        digest, size = hashlib.sha256(), 0
        with path.open("wb") as out:
            for block in self._side_blocks(side):
                out.write(block)
                digest.update(block)
                size += len(block)
            out.flush()
            os.fsync(out.fileno())
        if size != side.nbytes:
            raise BadCheckpoint(
                f"has {size} bytes, the plan says {side.nbytes}",
                where=str(self._model.path / (side.source or side.path)),
                fix="the model changed after it was planned; plan again",
            )
        sync_folder(path.parent)
        return digest.hexdigest()

    def _side_blocks(self, side: SideFile) -> Iterable[bytes]:
        if side.source is None:
            yield (side.text or "").encode() if side.data is None else base64.b64decode(side.data)
            return
        path = self._model.path / side.source
        try:
            with path.open("rb") as file:
                while block := file.read(COPY_BLOCK):
                    yield block
        except OSError as error:
            raise BadCheckpoint(f"cannot be read: {os.strerror(error.errno or 0)}", where=str(path)) from error

    def _manifest(self, files: tuple[ManifestFile, ...]) -> Manifest:
        plan, about = self.target.plan, dict(self.target.about)
        records = self._by_unit()
        reports = {name: sum((r.report for r in of_unit), UnitReport()) for name, of_unit in records.items()}
        return Manifest(
            artifact=self.artifact,
            format=str(about.pop("format", plan.name.format)),
            container=plan.container.kind,
            plan=self.digest,
            files=files,
            source=about.pop("source", {}),
            recipe=about.pop("recipe", None) or "",
            options=about.pop("options", {}),
            versions={"qconvd": __version__, "numpy": np.__version__, **about.pop("versions", {})},
            errors=error_figures(reports),
            tensors={name: found for name, r in reports.items() if (found := counts(r))},
            left_out=tuple(asdict(x) for x in plan.left_out),
            loads_with=tuple(asdict(x) for x in plan.loads_with),
            notes=plan.notes,
            statistics=tuple(
                {"kind": f.kind, "file": PurePosixPath(f.path).name, "sha256": f.sha256, "without": list(f.without)}
                for f in plan.statistics
            ),
            calibration=said_of(self.calibration, records, self.unreached),
            extra={k: v for k, v in about.items() if k != "artifact"},
        )

    def _by_unit(self) -> dict[str, list[Record]]:
        """The records of each unit in the order of rows, so that those of a resumed run add up to the same."""
        found: dict[str, list[Record]] = {u.id: [] for u in self.target.plan.units}
        for (unit, _), record in sorted(self._records.items()):
            found[unit].append(record)
        return {(u.outputs[0].name if len(u.outputs) == 1 else u.id): found[u.id] for u in self.target.plan.units}

    def _worded(self, error: Exception) -> Exception:
        if not isinstance(error, OSError) or error.errno is None:
            return error
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            status = os.statvfs(self.target.work)
            return no_space(self.folder, self.target.plan.nbytes, status.f_bavail * status.f_frsize)
        reason = os.strerror(error.errno)
        where = str(error.filename or self.folder)
        return QconvdError(f"cannot be written: {reason}", where=where, fix="look at the disk and its permissions")

    def _close_journal(self) -> None:
        if self._journal:
            self._journal.close()
            self._journal = None


def _fingerprint(target: ConvertTarget, calibration: Mapping[str, Any]) -> bytes:
    """What decides over the bytes. Where a file of statistics lies does not."""
    versions = json.dumps(target.about.get("versions", {}), sort_keys=True)
    if calibration:
        versions += json.dumps(calibration, sort_keys=True)
    placeless = tuple(replace(f, path=PurePosixPath(f.path).name) for f in target.plan.statistics)
    return to_json(replace(target.plan, statistics=placeless)) + versions.encode()


def _stem(target: ConvertTarget) -> str:
    files = target.plan.files
    return PurePosixPath(files[0].path).stem if files else target.id


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return -1


def _on_grid(rows: Rows, grid: Grid, unit: Unit) -> bool:
    (first, last), (step, again) = rows, grid
    base = first // again * again
    return (first - base) % step == 0 and last == min(first + step, base + again, unit.shape[0])


def buffers(unit: Unit, sizes: Sequence[int], data: Sequence[Any]) -> list[memoryview]:
    """An encoder's outputs as bytes. Raises `QconvdError` if they are not what the plan says."""
    if len(data) != len(sizes):
        raise _wrong(unit, f"{len(data)} outputs instead of {len(sizes)}")
    result = []
    for output, size, given in zip(unit.outputs, sizes, data, strict=True):
        if isinstance(given, np.ndarray):
            view = np.ascontiguousarray(given).reshape(-1).view(np.uint8).data
        else:
            view = memoryview(given).cast("B")
        if view.nbytes != size:
            raise _wrong(unit, f"{view.nbytes} bytes instead of {size} for {output.name}")
        result.append(view)
    return result


def _wrong(unit: Unit, what: str) -> QconvdError:
    return QconvdError(f"the encoder returned {what}", where=unit.id, fix="this is a defect of the format's plugin")
