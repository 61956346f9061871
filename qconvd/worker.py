"""The process that does one task: `python -m qconvd.worker SPEC.json`.

It plans, fetches, converts, verifies and commits, or publishes; says how far it is as lines of JSON on standard output; and
leaves a result beside its spec. Exit codes: 0 done (for each target the result says how), 3 a `QconvdError` (also of a single
target), 4 stopped by SIGTERM or SIGINT, 5 another worker has the lock; anything else is a crash. It can be killed at any
moment: what it did is journalled.
"""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import hashlib
import importlib
import json
import os
import shutil
import sqlite3
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from qconvd import __version__, checkpoints, rates
from qconvd.calibration_folders import folder_name, need, need_no_more, remove_unneeded
from qconvd.checkpoints.base import ModelInfo
from qconvd.engine.calibration_cost import Costs, as_data, in_words, with_calibration
from qconvd.engine.commit import BEGUN, commit
from qconvd.engine.durable import make_folders, write_whole
from qconvd.engine.journal import JOURNAL
from qconvd.engine.manifest import OWN_NAME, Manifest, read_manifest, write_manifest
from qconvd.engine.place import check_place
from qconvd.engine.plan import Device, Plan, Prepares, from_json, to_json
from qconvd.engine.run import Cancelled, ConvertTarget, convert
from qconvd.engine.run import Limits as EngineLimits
from qconvd.engine.target import with_kept
from qconvd.engine.working_memory import LEAST_ENGINE_MEMORY, working_memory
from qconvd.engine.written import written
from qconvd.errors import BadCheckpoint, Busy, OutOfSpace, QconvdError, TakenAway, Unsupported
from qconvd.executors.base import MARK
from qconvd.formats import Format, planned
from qconvd.ledger.needs import BASE_MEMORY
from qconvd.memory_limit import keep_freed_arrays, keep_freed_memory, limit_memory, too_much
from qconvd.named_files import identified, published
from qconvd.plan_words import cut_off, told
from qconvd.plugins import plugins
from qconvd.quality.verify import verify
from qconvd.quantities import show_size
from qconvd.stopping import Stop, ends_at_once
from qconvd.tasks import (
    EXIT_BUSY,
    EXIT_CANCELLED,
    EXIT_ERROR,
    SourceSpec,
    TargetResult,
    TargetSpec,
    TaskResult,
    TaskSpec,
    read_spec,
    result_error,
    write_result,
)

SHOWN = 3
"""Units that are named of each kind of exception."""
Emit = Callable[[Mapping[str, Any]], None]


class Outdated(QconvdError):
    """The task was given to another attempt, or is not wanted any more."""


def main(argv: list[str]) -> int:
    """Do the task of a spec file; returns the exit code."""
    stop = Stop()
    _prefer_to_be_killed()
    try:
        spec = read_spec(Path(argv[1]))
    except QconvdError as error:
        print(error, file=sys.stderr)
        return EXIT_ERROR
    limit_memory(spec)
    if spec.kind == "verify":
        keep_freed_memory()
    try:
        result = run(spec, emit, stop)
    except Cancelled:
        return EXIT_CANCELLED
    except (Busy, Outdated) as error:
        return _refuse(spec, error, EXIT_BUSY if isinstance(error, Busy) else EXIT_CANCELLED)
    except QconvdError as error:
        return _refuse(spec, error, EXIT_ERROR)
    except Exception as error:  # noqa: BLE001 — the process ends here; the log keeps the traceback, the result one line
        traceback.print_exc()
        if isinstance(error, MemoryError):
            return _refuse(spec, too_much(spec), EXIT_ERROR)
        write_result(spec, TaskResult(ok=False, error=dict(result_error(error))))
        return 1
    write_result(spec, result)
    return 0 if result.ok else EXIT_ERROR


def run(spec: TaskSpec, on_event: Emit, cancelled: Callable[[], bool]) -> TaskResult:
    """Do a task in this process. Raises what concerns the task as a whole, and `Cancelled`."""
    if spec.kind == "fetch":
        from qconvd.fetching import fetch_task

        return fetch_task(spec, on_event, cancelled)
    if spec.kind == "publish":
        from qconvd.publish.task import publish_task

        return publish_task(spec, on_event, cancelled)
    do = {"plan": plan_task, "convert": convert_task, "verify": verify_task}[spec.kind]
    return do(spec, on_event, cancelled)


def plan_task(spec: TaskSpec, on_event: Emit, cancelled: Callable[[], bool]) -> TaskResult:
    """Plan every target: headers and tokenizer are read, no weights. Plans are kept under `<state>/plans`."""
    model = _model(spec)
    costs = Costs(model)
    results: dict[str, TargetResult] = {}
    for target in spec.targets:
        if cancelled():
            raise Cancelled
        try:
            results[target.id] = _planned(spec, target, model, costs, cancelled)
        except Cancelled:
            raise
        except Exception as error:  # noqa: BLE001 — a plugin's planning: it fails this target, the others go on
            results[target.id] = _failed(spec, target, error)
        else:
            plan = results[target.id].data
            say(target, f"planned, {show_size(plan['nbytes'])} ({plan['nbytes']:,} bytes)", *told(plan))
        on_event({"event": "planned", "target": target.id, "ok": results[target.id].ok})
    return _together(results)


def convert_task(spec: TaskSpec, on_event: Emit, cancelled: Callable[[], bool]) -> TaskResult:
    """Make the files of every target in one pass, each in its work folder."""
    results: dict[str, TargetResult] = {}
    with ExitStack() as locks:
        for target in spec.targets:
            locks.callback(os.close, _lock(target.work))
        locks.callback(_remove_unneeded, spec)
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
                results[target.id] = _failed(spec, target, error)
        calibrations = sorted({one.calibration for one in wanted if one.calibration is not None})
        if calibrations:
            keep_freed_arrays()
        for folder in calibrations:
            locks.callback(os.close, _lock(folder))
        targets = {t.id: t for t in spec.targets}
        for one in list(wanted):
            try:
                _prepare(targets[one.id], one, on_event, cancelled)
            except Cancelled:
                raise
            except Exception as error:  # noqa: BLE001 — likewise
                results[one.id] = _failed(spec, targets[one.id], error)
                wanted.remove(one)
        fresh = not any((t.work / JOURNAL).exists() for t in wanted)
        timed = _Timed(on_event)
        made = _converted(model, wanted, spec, timed, cancelled)
        if fresh and not any(isinstance(manifest, Exception) for manifest in made.values()):
            timed.note({targets[one.id].label: one.plan for one in wanted}, model.parameters)
        for id, manifest in made.items():
            if isinstance(manifest, Exception):
                results[id] = _failed(spec, targets[id], manifest)
                need_no_more(targets[id].work)
            else:
                results[id] = TargetResult(ok=True, data={"nbytes": manifest.nbytes, "errors": dict(manifest.errors)})
                say(targets[id], f"converted, {show_size(manifest.nbytes)}{_error_in_words(manifest)}")
                say(targets[id], *cut_off(manifest.tensors), *_without(manifest))
    return _together(results)


class _Timed:
    """Passes events on, and knows how long converting took and which part of that was calibrating."""

    def __init__(self, on_event: Emit) -> None:
        self._on_event = on_event
        self._began = time.monotonic()
        self._calibrating = 0.0

    def __call__(self, event: Mapping[str, Any]) -> None:
        if event.get("event") == "calibrated":
            self._calibrating += float(event["seconds"])
        self._on_event(event)

    def note(self, plans: Mapping[str, Plan], weights: int) -> None:
        """Both parts, by the targets' labels."""
        seconds = time.monotonic() - self._began
        rates.note_conversion(plans, weights, seconds - self._calibrating)
        specs = {label: plan.calibration for label, plan in plans.items() if plan.calibration is not None}
        rates.note_conversion([rates.calibrating(*one) for one in specs.items()], weights, self._calibrating)


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
            results[target.id] = _failed(spec, target, error)
        else:
            say(target, f"verified and in its place, {target.folder}")
            on_event({"event": "committed", "target": target.id, "folder": str(target.folder)})
    return _together(results)


def emit(event: Mapping[str, Any]) -> None:
    """Say something to whoever watches: one line, in one write."""
    sys.stdout.write(f"{MARK}{json.dumps(event, ensure_ascii=False)}\n")
    sys.stdout.flush()


def say(target: TargetSpec, *sentences: str) -> None:
    """Tell who reads the log how a target fares."""
    for sentence in sentences:
        print(f"{target.label or target.id}: {sentence}", flush=True)


def load_plan(target: TargetSpec) -> Plan:
    """The plan of a target, with its names filled in. Raises `QconvdError` if it is gone or damaged."""
    if target.plan_path is None:
        raise QconvdError("the target was not planned", where=target.id)
    try:
        return from_json(target.plan_path.read_bytes()).named(target.stem)
    except (OSError, ValueError) as error:
        what = f"the plan cannot be read: {error}"
        raise QconvdError(what, where=str(target.plan_path), fix="`qconvd reconvert JOB` plans anew") from error


def _refuse(spec: TaskSpec, error: QconvdError, code: int) -> int:
    print(error, file=sys.stderr)
    write_result(spec, TaskResult(ok=False, error=error.as_dict()))
    return code


def _prefer_to_be_killed() -> None:
    """When memory runs out the kernel shall take this process, not the daemon."""
    try:
        Path("/proc/self/oom_score_adj").write_text("500")
    except OSError as error:
        print(f"cannot raise the OOM score: {error}", file=sys.stderr)


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


def _planned(spec: TaskSpec, target: TargetSpec, model: ModelInfo, costs: Costs, cancelled: Callable[[], bool]) -> TargetResult:
    form = _format(target)
    path = _plan_path(spec, target, form)
    plan = _kept_plan(path)
    if plan is None or plan.calibration is not None:  # whose text may have changed
        plan = planned(form, model, form.Options.model_validate(target.options))
        make_folders(path.parent)
        write_whole(path, to_json(plan))
    plan = plan.named(target.stem)
    _check_place(target, plan)
    with ends_at_once(cancelled):
        price = costs.of(plan)
    calibration = as_data(plan, price)
    if plan.calibration is not None:
        calibration["folder"] = folder_name(plan.calibration, spec.source.known_as, target=target.id)
    data_files = [{"path": f.path, "nbytes": f.nbytes} for f in plan.files]
    side_files = [{"path": f.path, "nbytes": f.nbytes} for f in plan.side_files]
    return TargetResult(ok=True, data={
        "plan_path": str(path),
        "files": data_files + side_files,
        "nbytes": plan.nbytes,
        "memory": with_calibration(working_memory(plan, spec.limits.threads), plan, price),
        "calibration": calibration,
        "left_out": [dataclasses.asdict(x) for x in plan.left_out],
        "notes": [*([in_words(calibration)] if calibration else []), *plan.notes],
        "loads_with": [dataclasses.asdict(x) for x in plan.loads_with],
        "variant": plan.name.variant,
        "devices": list(form.devices),
        "measured_on": list(plan.measured_on),
        "version": form.version,
    })  # fmt: skip


def _check_place(target: TargetSpec, plan: Plan) -> None:
    """Raise `QconvdError` now if what lies in the target's place would be found in the way when it is made."""
    if not (target.work / BEGUN).exists():  # otherwise what lies there is this one, half moved in
        paths = [f.path for f in plan.files] + [f.path for f in plan.side_files]
        check_place(target.folder, target.manifest_name, paths, laid=target.laid)


def _plan_path(spec: TaskSpec, target: TargetSpec, form: Format) -> Path:
    """A plan depends on the source, the options and the code; and on the model's name, which goes into GGUF metadata."""
    about = [
        spec.source.known_as + spec.source.revision,
        spec.source.name,
        target.format,
        target.options,
        form.version,
        __version__,
    ]
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
    _check_place(target, plan)
    write_whole(target.work / "plan.json", to_json(plan))
    about = {
        # In a folder of its own the file is called `model` whatever the model is; the folder has the name.
        "artifact": target.folder.name if target.manifest_name == OWN_NAME else target.stem,
        "format": target.format,
        "recipe": target.recipe,
        "options": published(target.options),
        "source": _about(spec.source, model),
        "variant": plan.name.variant,
        "versions": {form.name: form.version},
        # The bytes of a GPU need not be those of a CPU.
        **({} if device.kind == "cpu" else {"device": device.kind}),
    }
    calibration = None
    if plan.calibration is not None:
        name = folder_name(plan.calibration, spec.source.known_as, target=target.work.name, device=device.kind)
        need(target.work, name)
        calibration = target.work.parent / name
    return ConvertTarget(
        target.id, plan, form.encoder(plan, device), target.work, about, target.manifest_name, calibration, form.decode
    )


def _remove_unneeded(spec: TaskSpec) -> None:
    """Calibrations that were for targets of this task, and are for nobody now."""
    for root in {t.work.parent for t in spec.targets}:
        remove_unneeded(root)


def _about(source: SourceSpec, model: ModelInfo) -> dict[str, Any]:
    """What a manifest says of the source. A path on this machine is nobody's business; a repository and its commit are."""
    remote = {"locator": source.locator, "revision": source.revision} if source.locator else {}
    quantized = {"quantization": model.quantization} if model.quantization else {}
    return {"name": model.name, "identity": source.known_as, **remote, **quantized}


def _prepare(target: TargetSpec, wanted: ConvertTarget, on_event: Emit, cancelled: Callable[[], bool]) -> None:
    """What has to be done first. It is told of, and no part of the time that speed is reckoned by."""
    if wanted.plan.calibration is not None:
        with ends_at_once(cancelled), suppress(ImportError):  # what is missing is told by who needs it
            importlib.import_module("qconvd.calibration.run")
    if not isinstance(wanted.encoder, Prepares):
        return
    for doing in wanted.encoder.prepare(wanted.plan):
        if cancelled():
            raise Cancelled
        say(target, doing)
        on_event({"event": "preparing", "target": target.id, "doing": doing})


def _converted(
    model: ModelInfo, wanted: list[ConvertTarget], spec: TaskSpec, on_event: Emit, cancelled: Callable[[], bool]
) -> dict[str, Manifest | Exception]:
    if not wanted:
        return {}
    limits = EngineLimits(max(LEAST_ENGINE_MEMORY, spec.limits.memory - BASE_MEMORY), spec.limits.threads)
    device = Device(spec.device.kind, spec.device.id)
    return convert(
        model, wanted, limits, operations=plugins().operations, on_event=on_event, cancelled=cancelled, device=device
    )


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
            commit(target.work, target.folder, target.laid)
        finally:
            os.close(lock)
    _remove_unneeded(spec)
    manifest = read_manifest(place)
    return {
        "folder": str(target.folder),
        "manifest": str(place),
        "files": [f.path for f in manifest.files],
        "nbytes": manifest.nbytes,
        "report": dict(manifest.verification or {}),
    }


def _verify(spec: TaskSpec, target: TargetSpec) -> None:
    """Verify what is in the work folder, and write into its manifest what was found."""
    files = target.work / "files"
    place = files / target.manifest_name
    if not place.exists():
        raise QconvdError(
            "there is no finished artifact to verify", where=str(target.work), fix="`qconvd retry JOB` converts again"
        )
    manifest = dataclasses.replace(read_manifest(place), verification=None)
    model = _model(spec)
    try:
        plan = with_kept(load_plan(target), target.work)
        report = verify(files, manifest, plan=plan, model=model, formats=plugins().formats, pieces=written(target.work, plan))
    except QconvdError as error:
        if error.where.startswith(str(files)):
            # A journal that says "all is done" would only bring the same bytes back.
            (target.work / JOURNAL).unlink(missing_ok=True)
            shutil.rmtree(files, ignore_errors=True)
        raise
    write_manifest(place, dataclasses.replace(manifest, verification=report.as_dict()))


def _committed(spec: TaskSpec, target: TargetSpec) -> bool:
    """Whether the artifact is in its place already, put there by an attempt that could not say so any more."""
    try:
        manifest: Manifest = read_manifest(target.folder / target.manifest_name)
    except QconvdError:
        return False
    return (manifest.source.get("identity"), manifest.format, identified(manifest.options)) == (
        spec.source.known_as, target.format, identified(target.options),
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
            make_folders(work)
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


def _error_in_words(manifest: Manifest) -> str:
    relative = manifest.errors.get("relative_rms")
    return "" if relative is None else ", exact" if relative == 0 else f", error {100 * float(relative):.2g} %"


def _without(manifest: Manifest) -> list[str]:
    """Which units did without statistics, in sentences: those of one reason together."""
    units: dict[str, list[str]] = {}
    for name, why in manifest.calibration.get("fallbacks", {}).items():
        units.setdefault(why, []).append(name)
    return [
        f"{', '.join(names[:SHOWN])}{f' and {len(names) - SHOWN} more' if len(names) > SHOWN else ''}: {why}"
        for why, names in units.items()
    ]


def _unwritable(work: Path, error: OSError) -> QconvdError:
    output = work.parents[2]  # <output>/.qconvd/work/<target>
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return OutOfSpace("the output's disk is full", where=str(output), fix="make room, or choose another output")
    return QconvdError(
        f"the output cannot be written: {os.strerror(error.errno or 0)}",
        where=str(output),
        fix="give the user that runs qconvd write permission there, then `qconvd retry JOB`",
    )


def _failed(spec: TaskSpec, target: TargetSpec, error: Exception) -> TargetResult:
    """A refusal is for good, a full disk or a work folder that was removed is not.

    Anything else is a defect or a passing trouble and keeps its traceback.
    """
    if isinstance(error, MemoryError):
        traceback.print_exception(error)
        error = too_much(spec)
    if isinstance(error, QconvdError):
        print(f"{target.label or target.id}: {error}", file=sys.stderr, flush=True)
        return TargetResult(ok=False, error=error.as_dict(), retry=isinstance(error, OutOfSpace | TakenAway))
    print(f"{target.label or target.id} met a defect:", file=sys.stderr, flush=True)
    traceback.print_exception(error)
    data = dict(result_error(error))
    data["what"] = f"{data['error']}: {data['what']} (the log has the traceback)"
    return TargetResult(ok=False, error=data, retry=True)


def _together(results: Mapping[str, TargetResult]) -> TaskResult:
    return TaskResult(ok=all(r.ok for r in results.values()), targets=dict(results))


if __name__ == "__main__":
    sys.exit(main(sys.argv))
