"""The process that does one task: `python -m qconvd.worker SPEC.json`.

It plans, converts, or verifies and commits; says how far it is as lines of JSON on standard output; and leaves a result
beside its spec. Exit codes: 0 done (for each target the result says how), 3 a `QconvdError` (also of a single target), 4
stopped by SIGTERM or SIGINT, 5 another worker has the lock; anything else is a crash. It can be killed at any moment: what it
did is journalled.
"""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import hashlib
import json
import os
import resource
import shutil
import signal
import sqlite3
import sys
import traceback
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from math import prod
from pathlib import Path
from typing import Any

from qconvd import __version__, checkpoints
from qconvd.checkpoints.base import ModelInfo
from qconvd.engine.commit import BEGUN, commit
from qconvd.engine.durable import write_whole
from qconvd.engine.manifest import OWN_NAME, Manifest, read_manifest, write_manifest
from qconvd.engine.plan import Device, Plan, RowSplit, Unit, from_json, to_json
from qconvd.engine.run import Cancelled, ConvertTarget, convert
from qconvd.engine.run import Limits as EngineLimits
from qconvd.errors import BadCheckpoint, OutOfSpace, QconvdError, Unsupported
from qconvd.executors.base import MARK
from qconvd.formats import Format
from qconvd.ledger.needs import BASE_MEMORY, MIB
from qconvd.plugins import plugins
from qconvd.quality.verify import verify
from qconvd.quantities import show_size
from qconvd.tasks import (
    EXIT_BUSY,
    EXIT_CANCELLED,
    EXIT_ERROR,
    TargetResult,
    TargetSpec,
    TaskResult,
    TaskSpec,
    read_spec,
    result_error,
    write_result,
)

LEAST_ENGINE_MEMORY = 64 * MIB
CHUNK = 16 * MIB
"""A piece of a unit that may be cut into rows; larger ones are no quicker."""
PLAN_MEMORY_LIMIT = 4 << 30
"""Bytes of private memory that a plan task may map; the largest tokenizers take about one GiB as Python objects."""

Emit = Callable[[Mapping[str, Any]], None]


class Busy(QconvdError):
    """Another worker has the lock of a work folder."""


class Outdated(QconvdError):
    """The task was given to another attempt, or is not wanted any more."""


def main(argv: list[str]) -> int:
    """Do the task of a spec file; returns the exit code."""
    stop = _Stop()
    _prefer_to_be_killed()
    try:
        spec = read_spec(Path(argv[1]))
    except QconvdError as error:
        print(error, file=sys.stderr)
        return EXIT_ERROR
    if spec.kind == "plan":
        _limit_memory()
    try:
        result = run(spec, emit, stop)
    except Cancelled:
        return EXIT_CANCELLED
    except (Busy, Outdated) as error:
        return _refuse(spec, error, EXIT_BUSY if isinstance(error, Busy) else EXIT_CANCELLED)
    except QconvdError as error:
        return _refuse(spec, error, EXIT_ERROR)
    except Exception as error:  # noqa: BLE001 — the process ends here; the log keeps the traceback, the result one line
        if isinstance(error, MemoryError) and spec.kind == "plan":
            return _refuse(spec, _too_much(spec), EXIT_ERROR)
        traceback.print_exc()
        write_result(spec, TaskResult(ok=False, error=dict(result_error(error))))
        return 1
    write_result(spec, result)
    return 0 if result.ok else EXIT_ERROR


def run(spec: TaskSpec, on_event: Emit, cancelled: Callable[[], bool]) -> TaskResult:
    """Do a task in this process. Raises what concerns the task as a whole, and `Cancelled`."""
    do = {"plan": plan_task, "convert": convert_task, "verify": verify_task}[spec.kind]
    return do(spec, on_event, cancelled)


def plan_task(spec: TaskSpec, on_event: Emit, cancelled: Callable[[], bool]) -> TaskResult:
    """Plan every target: headers and tokenizer are read, no weights. Plans are kept under `<state>/plans`."""
    model = _model(spec)
    results: dict[str, TargetResult] = {}
    for target in spec.targets:
        if cancelled():
            raise Cancelled
        try:
            results[target.id] = _planned(spec, target, model)
        except MemoryError:
            results[target.id] = _failed(_too_much(spec))
        except Exception as error:  # noqa: BLE001 — a plugin's planning: it fails this target, the others go on
            results[target.id] = _failed(error)
        on_event({"event": "planned", "target": target.id, "ok": results[target.id].ok})
    return _together(results)


def convert_task(spec: TaskSpec, on_event: Emit, cancelled: Callable[[], bool]) -> TaskResult:
    """Make the files of every target in one pass, each in its work folder."""
    results: dict[str, TargetResult] = {}
    with ExitStack() as locks:
        for target in spec.targets:
            locks.callback(os.close, _lock(target.work))
        model = _model(spec)
        device = Device(spec.device.kind, spec.device.id)
        wanted: list[ConvertTarget] = []
        for target in spec.targets:
            if (target.work / BEGUN).exists():
                # Its commit was cut short, so it was verified: the verify task will finish that.
                results[target.id] = TargetResult(ok=True)
                continue
            try:
                wanted.append(_convert_target(target, model, spec, device))
            except Exception as error:  # noqa: BLE001 — a plugin's encoder: it fails this target, the others go on
                results[target.id] = _failed(error)
        for id, manifest in _converted(model, wanted, spec, on_event, cancelled).items():
            if isinstance(manifest, Exception):
                results[id] = _failed(manifest)
            else:
                results[id] = TargetResult(ok=True, data={"nbytes": manifest.nbytes, "errors": dict(manifest.errors)})
    return _together(results)


def verify_task(spec: TaskSpec, on_event: Emit, cancelled: Callable[[], bool]) -> TaskResult:
    """Verify each target and put it into its place. May be run again after a crash at any point."""
    results: dict[str, TargetResult] = {}
    for target in spec.targets:
        if cancelled():
            raise Cancelled
        try:
            results[target.id] = TargetResult(ok=True, data=_in_its_place(spec, target))
        except (Busy, Outdated):
            raise
        except Exception as error:  # noqa: BLE001 — told in the result; a defect's traceback is printed with it
            results[target.id] = _failed(error)
        else:
            on_event({"event": "committed", "target": target.id, "folder": str(target.folder)})
    return _together(results)


def emit(event: Mapping[str, Any]) -> None:
    """Say something to whoever watches: one line, in one write."""
    sys.stdout.write(f"{MARK}{json.dumps(event, ensure_ascii=False)}\n")
    sys.stdout.flush()


def load_plan(target: TargetSpec) -> Plan:
    """The plan of a target, with its names filled in. Raises `QconvdError` if it is gone or damaged."""
    if target.plan_path is None:
        raise QconvdError("the target was not planned", where=target.id)
    try:
        return named(from_json(target.plan_path.read_bytes()), target.stem)
    except (OSError, ValueError) as error:
        what = f"the plan cannot be read: {error}"
        raise QconvdError(what, where=str(target.plan_path), fix="`qconvd reconvert` plans anew") from error


def named(plan: Plan, stem: str) -> Plan:
    """The plan with `{stem}` filled in."""
    return dataclasses.replace(
        plan,
        files=tuple(dataclasses.replace(f, path=f.path.replace("{stem}", stem)) for f in plan.files),
        side_files=tuple(dataclasses.replace(f, path=f.path.replace("{stem}", stem)) for f in plan.side_files),
    )


def working_memory(plan: Plan, threads: int) -> dict[str, int]:
    """Bytes that converting keeps in flight: `cpu` with all threads at work, `least` with one; `cuda` per GPU.

    As the engine counts: each of `threads + 1` pieces holds source, outputs and scratch, and an eighth is idle buffers.
    """
    cpu = max((_piece(u) for u in plan.units), default=0)
    gpu = max((_piece(u) - u.memory.get("cpu", 0) + u.memory.get("cuda", 0) for u in plan.units), default=0)
    return {
        "cpu": max(LEAST_ENGINE_MEMORY, cpu * (threads + 1) * 8 // 7),
        "least": max(LEAST_ENGINE_MEMORY, cpu * 2 * 8 // 7),
        "cuda": gpu if any("cuda" in u.memory for u in plan.units) else 0,
    }


def _piece(unit: Unit) -> int:
    """Bytes of the smallest sensible piece: a unit that may be cut counts as a chunk of it, or one row if that is more."""
    whole = sum(4 * prod(x.shape) for x in unit.inputs) + sum(o.nbytes for o in unit.outputs)
    if isinstance(unit.rows, RowSplit):
        least = whole // max(1, unit.shape[0]) * unit.rows.multiple
        whole = min(whole, max(CHUNK, least))
    return whole + int(unit.memory.get("cpu", 0))


def _refuse(spec: TaskSpec, error: QconvdError, code: int) -> int:
    print(error, file=sys.stderr)
    write_result(spec, TaskResult(ok=False, error=error.as_dict()))
    return code


class _Stop:
    """Whether SIGTERM or SIGINT came."""

    def __init__(self) -> None:
        self._asked = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._ask)

    def __call__(self) -> bool:
        return self._asked

    def _ask(self, *_: object) -> None:
        self._asked = True


def _prefer_to_be_killed() -> None:
    """When memory runs out the kernel shall take this process, not the daemon."""
    try:
        Path("/proc/self/oom_score_adj").write_text("500")
    except OSError as error:
        print(f"cannot raise the OOM score: {error}", file=sys.stderr)


def _limit_memory() -> None:
    """A hostile file must not eat the machine. RLIMIT_DATA, not _AS: libraries reserve far more than they use."""
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = PLAN_MEMORY_LIMIT if hard == resource.RLIM_INFINITY else min(hard, PLAN_MEMORY_LIMIT)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))


def _too_much(spec: TaskSpec) -> QconvdError:
    what = f"planning needs more than the {show_size(PLAN_MEMORY_LIMIT)} of memory that it may take"
    return QconvdError(what, where=str(spec.source.path), fix="look at the sizes of the tokenizer and of the header")


def _model(spec: TaskSpec) -> ModelInfo:
    """The model, if it still is the one that the task is about."""
    model = checkpoints.inspect(spec.source.path)
    if spec.source.digest and checkpoints.identity(model) != spec.source.digest:
        raise BadCheckpoint(
            "the model changed after it was taken",
            where=str(spec.source.path),
            fix="the new version is converted when it has come to rest",
        )
    return dataclasses.replace(model, name=spec.source.name)


def _planned(spec: TaskSpec, target: TargetSpec, model: ModelInfo) -> TargetResult:
    form = _format(target)
    path = _plan_path(spec, target, form)
    plan = _kept_plan(path)
    if plan is None:
        plan = form.plan(model, form.Options.model_validate(target.options))
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, to_json(plan))
    plan = named(plan, target.stem)
    data_files = [{"path": f.path, "nbytes": f.nbytes} for f in plan.files]
    side_files = [{"path": f.path, "nbytes": f.nbytes} for f in plan.side_files]
    return TargetResult(ok=True, data={
        "plan_path": str(path),
        "files": data_files + side_files,
        "nbytes": plan.nbytes,
        "memory": working_memory(plan, spec.limits.threads),
        "left_out": [dataclasses.asdict(x) for x in plan.left_out],
        "notes": list(plan.notes),
        "loads_with": [dataclasses.asdict(x) for x in plan.loads_with],
        "variant": plan.name.variant,
        "devices": list(form.devices),
        "version": form.version,
    })  # fmt: skip


def _plan_path(spec: TaskSpec, target: TargetSpec, form: Format) -> Path:
    """A plan depends on the source, the options and the code; and on the model's name, which goes into GGUF metadata."""
    about = [spec.source.digest, spec.source.name, target.format, target.options, form.version, __version__]
    key = hashlib.sha256(json.dumps([*about, plugins().distribution(form)], sort_keys=True).encode()).hexdigest()
    return spec.state / "plans" / f"{key}.json"


def _kept_plan(path: Path) -> Plan | None:
    try:
        return from_json(path.read_bytes())
    except (OSError, ValueError):
        return None


def _format(target: TargetSpec) -> Format:
    known = plugins().formats
    if target.format not in known:
        broken = "".join(f"; the plugin {b.name} cannot be loaded: {b.reason}" for b in plugins().broken)
        raise QconvdError(f"no plugin provides the format {target.format!r}{broken}", fix=f"there are: {', '.join(known)}")
    return known[target.format]


def _convert_target(target: TargetSpec, model: ModelInfo, spec: TaskSpec, device: Device) -> ConvertTarget:
    form = _format(target)
    if device.kind not in form.devices:
        raise Unsupported(
            f"the format {form.name} has no kernels for {device.kind}",
            where=target.stem,
            fix="set `device: auto` or `device: cpu`",
        )
    plan = load_plan(target)
    write_whole(target.work / "plan.json", to_json(plan))
    about = {
        # In a folder of its own the file is called `model` whatever the model is; the folder has the name.
        "artifact": target.folder.name if target.manifest_name == OWN_NAME else target.stem,
        "format": target.format,
        "recipe": target.recipe,
        "options": target.options,
        "source": {"name": model.name, "identity": spec.source.digest},
        "versions": {form.name: form.version},
    }
    return ConvertTarget(target.id, plan, form.encoder(plan, device), target.work, about, target.manifest_name)


def _converted(
    model: ModelInfo, wanted: list[ConvertTarget], spec: TaskSpec, on_event: Emit, cancelled: Callable[[], bool]
) -> dict[str, Manifest | Exception]:
    if not wanted:
        return {}
    limits = EngineLimits(max(LEAST_ENGINE_MEMORY, spec.limits.memory - BASE_MEMORY), spec.limits.threads)
    return convert(model, wanted, limits, operations=plugins().operations, on_event=on_event, cancelled=cancelled)


def _in_its_place(spec: TaskSpec, target: TargetSpec) -> dict[str, Any]:
    """Verify and commit one artifact, from wherever an earlier attempt got to."""
    place = target.folder / target.manifest_name
    if target.work.exists() or not _committed(spec, target):
        lock = _lock(target.work)
        try:
            begun = (target.work / BEGUN).exists()
            if not begun and ((target.work / "files" / target.manifest_name).exists() or not _committed(spec, target)):
                _verify(spec, target)
            _still_mine(spec, target)
            commit(target.work, target.folder)
        finally:
            os.close(lock)
    manifest = read_manifest(place)
    return {
        "folder": str(target.folder),
        "manifest": str(place),
        "nbytes": manifest.nbytes,
        "report": dict(manifest.verification or {}),
    }


def _verify(spec: TaskSpec, target: TargetSpec) -> None:
    """Verify what is in the work folder, and write into its manifest what was found."""
    files = target.work / "files"
    place = files / target.manifest_name
    if not place.exists():
        raise QconvdError(
            "there is no finished artifact to verify", where=str(target.work), fix="`qconvd retry` converts again"
        )
    manifest = dataclasses.replace(read_manifest(place), verification=None)
    model = _model(spec)
    try:
        report = verify(files, manifest, plan=load_plan(target), model=model, formats=plugins().formats)
    except QconvdError as error:
        if error.where.startswith(str(files)):
            # A journal that says "all is done" would only bring the same bytes back.
            (target.work / "journal.jsonl").unlink(missing_ok=True)
            shutil.rmtree(files, ignore_errors=True)
        raise
    write_manifest(place, dataclasses.replace(manifest, verification=report.as_dict()))


def _committed(spec: TaskSpec, target: TargetSpec) -> bool:
    """Whether the artifact is in its place already, put there by an attempt that could not say so any more."""
    try:
        manifest: Manifest = read_manifest(target.folder / target.manifest_name)
    except QconvdError:
        return False
    return (manifest.source.get("identity"), manifest.format, dict(manifest.options)) == (
        spec.source.digest, target.format, target.options,
    )  # fmt: skip


def _still_mine(spec: TaskSpec, target: TargetSpec) -> None:
    """Ask the ledger, if there is one, whether this attempt may still finish. Raises `Outdated`."""
    path = spec.state / "ledger.sqlite"
    if not path.exists():
        return
    ledger = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=30)
    try:
        row = ledger.execute(
            "SELECT task.fence, task.state, target.state FROM task, target WHERE task.id = ? AND target.id = ?",
            (spec.task, target.id),
        ).fetchone()
    finally:
        ledger.close()
    if row != (spec.fence, "running", "verifying"):
        raise Outdated(
            f"task {spec.task} is not this attempt's any more; the artifact is left to whoever has it now", where=target.id
        )


def _lock(work: Path) -> int:
    """Lock a work folder for this process and its children; the lock ends with the last of them.

    Raises `Busy`, and `QconvdError` if nothing can be written there.
    """
    while True:
        try:
            work.mkdir(parents=True, exist_ok=True)
            lock = os.open(work / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except FileNotFoundError:
            continue  # whoever had it has just removed the folder
        except OSError as error:
            raise _unwritable(work, error) from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(lock), (work / "lock").stat()):
                return lock
        except BlockingIOError as error:
            os.close(lock)
            what = "another worker is at this target"
            raise Busy(what, where=str(work), fix="it is tried again when that one has ended") from error
        except FileNotFoundError:
            pass
        # Whoever had it has just committed and removed the folder: what was locked is no longer the lock.
        os.close(lock)


def _unwritable(work: Path, error: OSError) -> QconvdError:
    output = work.parents[2]  # <output>/.qconvd/work/<target>
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return OutOfSpace("the output's disk is full", where=str(output), fix="make room, or choose another output")
    return QconvdError(
        f"the output cannot be written: {os.strerror(error.errno or 0)}",
        where=str(output),
        fix="give the user that runs qconvd write permission there, then `qconvd retry`",
    )


def _failed(error: Exception) -> TargetResult:
    """A refusal is for good, a full disk is not; anything else is a defect or a passing trouble and keeps its traceback."""
    if isinstance(error, QconvdError):
        print(error, file=sys.stderr)
        return TargetResult(ok=False, error=error.as_dict(), retry=isinstance(error, OutOfSpace))
    traceback.print_exception(error)
    data = dict(result_error(error))
    data["what"] = f"{data['error']}: {data['what']} (the log has the traceback)"
    return TargetResult(ok=False, error=data, retry=True)


def _together(results: Mapping[str, TargetResult]) -> TaskResult:
    return TaskResult(ok=all(r.ok for r in results.values()), targets=dict(results))


if __name__ == "__main__":
    sys.exit(main(sys.argv))
