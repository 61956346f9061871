"""One pass over a model that makes all targets of a task.

    caller's thread: credits -> pool: read, evaluate, encode -> writer: pwrite -> syncer: fdatasync, journal
                                                                      `-> hashing, behind what is written

What needs statistics of the model's activations comes first, layer by layer (calibrated.py); all else follows in one pass.

Memory is asked for before it is used, so what is in flight is bounded. Bytes go to places that the plan fixed, so they do
not depend on which thread is first. The caller's thread only hands out work, reports progress and looks for a wish to stop.
"""

from __future__ import annotations

import resource
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from qconvd.checkpoints.base import ModelInfo
from qconvd.dtypes import FLOATS
from qconvd.engine.calibrated import Layers, said_of
from qconvd.engine.calibration_cost import largest_of, share
from qconvd.engine.calibration_needs import IDLE_SHARE
from qconvd.engine.checksum import checksum
from qconvd.engine.common_parts import CommonParts, Made
from qconvd.engine.credits import Credits
from qconvd.engine.elements import AnyArray, not_finite
from qconvd.engine.evaluate import rows as evaluate
from qconvd.engine.expr import Cast, Expr, Read, children
from qconvd.engine.gathering import Failed, Gathering, Stream
from qconvd.engine.graph import Chunk, Graph, Item, Rows, UnitKey
from qconvd.engine.journal import Record
from qconvd.engine.manifest import Manifest
from qconvd.engine.operations import Operation
from qconvd.engine.pipeline import Lease, Syncer, Write, Writer
from qconvd.engine.plan import Device, Unit, UnitReport
from qconvd.engine.regions import needs
from qconvd.engine.source import Buffers, Source, Window
from qconvd.engine.statistics import Statistics
from qconvd.engine.target import ConvertTarget, TargetRun, buffers
from qconvd.engine.writer import Hashing
from qconvd.errors import BadCheckpoint, QconvdError

__all__ = ["Cancelled", "ConvertTarget", "Limits", "convert"]

AT_ONCE = 1 << 18
"""Weights that are looked through again at a time, where some of a unit are infinite."""
TICK = 0.25
"""Seconds between two looks at progress and cancellation."""

Event: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True)
class Limits:
    """What one task may use: bytes of source and output in flight, and threads that encode."""

    memory: int
    threads: int


class Cancelled(Exception):
    """The conversion was stopped on request; the journals say where it will go on."""


def convert(
    model: ModelInfo,
    targets: Sequence[ConvertTarget],
    limits: Limits,
    *,
    operations: Mapping[str, Operation],
    on_event: Callable[[Event], None],
    cancelled: Callable[[], bool],
    device: Device = Device(),  # noqa: B008 — it is frozen
) -> dict[str, Manifest | Exception]:
    """Make all targets in one pass over the model; afterwards `<work>/files` of each is complete, with its manifest.

    Resumes from the targets' journals. A target that fails is dropped, and its reason is in the result; what was made of it
    is removed. If the model cannot be read, or changed meanwhile, that is every target's reason. Raises `Cancelled` if
    `cancelled()` says so or on KeyboardInterrupt: what was done by then is journalled. Both callbacks are called in the
    calling thread. `device` is where calibration runs.
    """
    run = _Run(model, targets, limits, operations, on_event, cancelled, device)
    try:
        return run.run()
    except KeyboardInterrupt as interrupt:
        raise Cancelled from interrupt
    finally:
        run.close()


class _Run:
    def __init__(
        self,
        model: ModelInfo,
        targets: Sequence[ConvertTarget],
        limits: Limits,
        operations: Mapping[str, Operation],
        on_event: Callable[[Event], None],
        cancelled: Callable[[], bool],
        device: Device = Device(),  # noqa: B008 — likewise
    ) -> None:
        self._model = model
        self._device = device
        self._targets = targets
        self._limits = limits
        self._operations = operations
        self._on_event = on_event
        self._cancelled = cancelled
        idle = limits.memory // IDLE_SHARE
        self._credits = Credits(limits.memory - idle)
        self._source = Source(model, Buffers(idle))
        self._statistics = Statistics()
        self._runs: list[TargetRun] = []
        self._results: dict[str, Manifest | Exception] = {}
        self._gatherings: list[Gathering] = []
        self._at: Gathering | None = None
        """The calibration that is going on."""
        self._said = ""
        self._fatal: Exception | None = None
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(limits.threads, "encode")
        self._hashing = Hashing(max(1, limits.threads // 4), TargetRun.fail)
        self._syncer = Syncer()
        self._writer = Writer(self._syncer, self._hashing)
        self._began = self._ticked = time.monotonic()

    def run(self) -> dict[str, Manifest | Exception]:
        """Everything, in the order in which it happens."""
        shards = {tensor.file for tensor in self._model.stored.values()}
        _allow_files(sum(len(t.plan.files) + 1 for t in self._targets) + len(shards) + 64)
        try:
            with self._source:
                try:
                    self._start()
                    self._convert()
                finally:
                    self._stop.set()
                    self._pool.shutdown(cancel_futures=True)
                self._source.check()
        except BadCheckpoint as error:
            for run in self._runs:
                run.fail(error)
            for target in self._targets:
                if target.id not in self._results and target.id not in {run.id for run in self._runs}:
                    self._refuse(target.id, error)
        self._finish()
        return {t.id: self._results[t.id] for t in self._targets}

    def close(self) -> None:
        """Stop all threads. What was written is synced and journalled, whatever happened."""
        self._stop.set()
        for gathering in self._gatherings:
            gathering.close()
        self._pool.shutdown(cancel_futures=True)
        self._writer.close()
        self._syncer.close()
        self._hashing.close()
        self._statistics.close()
        for run in self._runs:
            if run.error:
                run.discard()
            run.close()

    def _start(self) -> None:
        """Open every target's journal; those that cannot start are dropped here."""
        identity = self._source.identity()
        self._start_calibrations()
        about = {id: g.calibration.about for g in self._gatherings for id in g.stream.targets}
        for target in self._targets:
            if target.id not in self._results:
                try:
                    self._open(target, identity, about.get(target.id, {}))
                except (OSError, QconvdError) as error:
                    self._refuse(target.id, error)

    def _open_statistics(self, run: TargetRun) -> None:
        try:
            self._statistics.open(run.asked)
        except (OSError, QconvdError) as error:
            run.fail(error)

    def _start_calibrations(self) -> None:
        """What targets ask of their calibrations, put together; those that cannot be are every such target's reason."""
        streams: dict[Path, Stream] = {}
        for target in self._targets:
            if (spec := target.plan.calibration) is None:
                continue
            try:
                if target.calibration is None:
                    raise RuntimeError(f"{target.id} has no folder for its calibration")
                self._statistics.open(target.plan)
                missing = [r for u in target.plan.units for r in self._statistics.missing(target.plan, u)]
                if missing:
                    streams.setdefault(target.calibration, Stream(target.calibration, spec)).add(target.id, spec, missing)
            except (OSError, QconvdError) as error:
                self._refuse(target.id, error)
        for stream in streams.values():
            self._at = Gathering(stream, self._model, self._share(stream), self._device, self._stop.is_set, self._tick, TICK)
            try:
                self._at.open()
            except Failed as failed:
                self._at.close()
                if isinstance(failed.error, Cancelled):
                    raise failed.error from failed
                for id in stream.targets:
                    self._refuse(id, failed.error)
            else:
                self._gatherings.append(self._at)
            self._at = None

    def _share(self, stream: Stream) -> Limits:
        """What calibrating may use: all but what encoding the largest of its units takes."""
        largest = max(largest_of(t.plan) for t in self._targets if t.id in stream.targets)
        return Limits(share(self._credits.limit, largest), self._limits.threads)

    def _open(self, target: ConvertTarget, identity: Any, about: Mapping[str, Any]) -> None:
        said = said_of(target.plan.calibration, about) if target.plan.calibration else {}
        run = TargetRun(target, self._model, identity, said)
        if manifest := run.finished():
            self._results[target.id] = manifest
            run.close()
            self._on_event({"event": "target-done", "target": target.id})
            return
        for expr in (x for unit in target.plan.units for x in unit.inputs):
            _check_expression(expr, self._source, self._operations)
        self._statistics.open(target.plan)
        self._runs.append(run)

    def _convert(self) -> None:
        plans = {i: run.target.plan for i, run in enumerate(self._runs)}
        graph = Graph(
            self._model,
            plans,
            memory=self._credits.limit // (self._limits.threads + 1),
            operations=self._operations,
            grids={i: run.grid for i, run in enumerate(self._runs)},
        )
        for i, run in enumerate(self._runs):
            try:
                self._check(run, run.begin(graph.grids[i]))
            except Exception as error:  # noqa: BLE001 — a plugin's container writes the header
                run.fail(error)
        # What an earlier run made was read back until now: time that says nothing about how long the rest takes.
        self._began = time.monotonic()
        for gathering in self._gatherings:
            self._calibrate(gathering, graph)
        if self._gatherings:
            # Nor does what was made while text was run through the model.
            self._began = time.monotonic()
            for run in self._runs:
                run.resumed_bytes = run.done_bytes
        self._make(graph)

    def _make(self, graph: Graph, units: Collection[UnitKey] | None = None) -> None:
        """Encode what is not made yet, of these units or of all; returns when it is written."""
        for item in graph.items(self._is_made, units):
            self._hand_out(item)
        while not self._credits.idle(TICK):
            self._tick()
        self._tick()

    def _is_made(self, target: int, unit: str, rows: Rows) -> bool:
        return self._runs[target].error is not None or self._runs[target].done(unit, rows)

    def _calibrate(self, gathering: Gathering, graph: Graph) -> None:
        """All layers of a calibration, and the units that wait for them. Its failure is that of the targets that need it."""
        runs = {i: run for i, run in enumerate(self._runs) if run.id in gathering.stream.targets}

        def encode(units: Collection[UnitKey], held: int) -> None:
            self._credits.hold(held)
            self._make(graph, units)
            # The calibration must not be further than the journal.
            self._syncer.flush()
            self._credits.hold(0)

        gathering.unwanted = lambda: all(run.error is not None for run in runs.values())
        self._at, began = gathering, time.monotonic()
        try:
            Layers(gathering, runs, self._statistics.missing).go(encode)
            for run in runs.values():
                if run.error is None:
                    self._open_statistics(run)
            self._on_event({"event": "calibrated", "targets": gathering.stream.targets, "seconds": time.monotonic() - began})
        except Failed as failed:
            if isinstance(failed.error, Cancelled) and any(run.error is None for run in runs.values()):
                raise failed.error from failed
            for run in runs.values():
                run.fail(failed.error)
        finally:
            self._at = None
            gathering.close()

    def _check(self, run: TargetRun, records: Sequence[Record]) -> None:
        """Hold what an earlier run recorded against what is in the files."""
        for files in self._pool.map(run.check, records):
            self._hashing.follow(run, files)
            self._tick()

    def _hand_out(self, item: Item) -> None:
        if item.memory > self._credits.limit:
            unit = max((c.part.unit for c in item.chunks), key=lambda u: u.memory.get("cpu", 0)).id
            self._on_event({"event": "oversized", "unit": unit, "needs": item.memory, "limit": self._credits.limit})
        while not self._credits.take(item.memory, TICK):
            self._tick()
        lease = Lease(self._credits, item.memory)
        self._pool.submit(self._do, item, lease)
        self._tick()

    def _do(self, item: Item, lease: Lease) -> None:
        """In the pool: one read, each expression evaluated once, and what several targets have in common encoded once."""
        try:
            if self._stop.is_set():
                return
            window = lease.window = self._source.window(item.needs)
            held: dict[tuple[int, tuple[int, int]], AnyArray] = {}
            common = CommonParts()
            for chunk in item.chunks:
                run = self._runs[chunk.part.target]
                if self._stop.is_set():
                    return
                if run.error is None:
                    keys = [(number, chunk.input_rows(i)) for i, number in enumerate(chunk.part.inputs)]
                    held = {k: a for k, a in held.items() if k in keys}
                    self._encode(run, chunk, keys, held, common, window, lease)
        except Exception as error:  # noqa: BLE001 — `_tick` raises it in the caller's thread
            self._fatal = self._fatal or error
            self._stop.set()
        finally:
            lease.release()

    def _encode(
        self,
        run: TargetRun,
        chunk: Chunk,
        keys: Sequence[tuple[int, tuple[int, int]]],
        held: dict[tuple[int, tuple[int, int]], AnyArray],
        common: CommonParts,
        window: Window,
        lease: Lease,
    ) -> None:
        unit, encoder = chunk.part.unit, run.target.encoder
        try:
            for key, expr in zip(keys, unit.inputs, strict=True):
                if key not in held:
                    held[key] = evaluate(expr, *key[1], window, self._operations)
        except BadCheckpoint as error:
            error.where = error.where or unit.id  # an operation sees numbers and no names
            raise
        except Exception as error:  # noqa: BLE001 — a plugin's operation: it fails this target, the others go on
            run.fail(error)
            return
        try:
            stats = self._statistics.of(run.asked, unit)
            stats |= {r.key: run.statistics[r.key] for r in unit.statistics if r.key in run.statistics}

            def make() -> Made:
                encoded = encoder.encode(unit, chunk.rows, [held[k] for k in keys], stats)
                report = encoded.report.plain()
                if report.inf:
                    cast = [held[k] for k in keys]
                    report = _not_the_models(report, unit, keys, cast, window, self._operations)
                data = buffers(unit, [n for _, _, n in run.layout.pieces(unit, chunk.rows)], encoded.data)
                figures = {k: float(v) for k, v in encoded.figures.items()}
                sums = tuple(checksum(d) for d in data)
                return data, Record(unit.id, chunk.rows, sums, report, figures, encoded.fallback)

            data, record = common.once(encoder, unit, chunk.rows, stats, make)
        except Exception as error:  # noqa: BLE001 — a plugin's encoder, likewise
            run.fail(error)
            return
        lease.hold()
        self._writer.put(Write(run, chunk, data, record, lease))

    def _finish(self) -> None:
        """Hash what is left, then side files and manifest, for every target that got here."""
        self._syncer.flush()
        for run in self._runs:
            if run.error is None:
                self._hashing.follow(run, run.files.files)
        while not self._hashing.settled(TICK):
            self._tick()
        for run in self._runs:
            if run.error is None:
                try:
                    self._statistics.check(run.asked)
                    self._results[run.id] = run.finish(self._tick)
                except (OSError, QconvdError) as error:
                    run.fail(error)
                    self._results.pop(run.id, None)
            if run.error is not None:
                self._drop(run, run.error)
            else:
                self._progress(run)
                self._on_event({"event": "target-done", "target": run.id})

    def _tick(self) -> None:
        """Look whether to stop, whether the files are still there, and say how far it is, a few times per second."""
        if self._fatal:
            raise self._fatal
        if self._cancelled():
            raise Cancelled
        doing = self._at.doing if self._at else ""
        if time.monotonic() - self._ticked < TICK and doing == self._said:
            return
        self._ticked, self._said = time.monotonic(), doing
        if self._at and not self._runs:
            for target in self._at.stream.targets:
                self._on_event({"event": "preparing", "target": target, "doing": self._at.doing})
        for run in self._runs:
            run.check_there()
            if run.error is None:
                self._progress(run)
            else:
                self._drop(run, run.error)

    def _progress(self, run: TargetRun) -> None:
        self._on_event(
            {
                "event": "progress",
                "target": run.id,
                "unit": run.unit,
                "done": run.done_bytes,
                "resumed": run.resumed_bytes,
                "total": run.total_bytes,
                "read": self._source.bytes_read,
                "written": self._writer.nbytes,
                "seconds": round(time.monotonic() - self._began, 3),
                **({"doing": self._at.doing} if self._at and run.id in self._at.stream.targets else {}),
            }
        )

    def _drop(self, run: TargetRun, error: Exception) -> None:
        if run.id not in self._results:
            self._refuse(run.id, error)
            run.free()

    def _refuse(self, target: str, error: Exception) -> None:
        self._results[target] = error
        self._report_failed(target, error)

    def _report_failed(self, target: str, error: Exception) -> None:
        known = error.as_dict() if isinstance(error, QconvdError) else {"error": type(error).__name__, "what": str(error)}
        self._on_event({"event": "target-failed", "target": target, **known})


def _check_expression(expr: Expr, source: Source, operations: Mapping[str, Operation]) -> None:
    """Raise now what would go wrong later for every chunk: another tensor than planned, an operation that nobody has."""
    needs(expr, 0, 1, operations)
    waiting = [expr]
    while waiting:
        x = waiting.pop()
        waiting += children(x)
        if isinstance(x, Read):
            source.tensor(x)


def _not_the_models(
    report: UnitReport,
    unit: Unit,
    keys: Sequence[tuple[int, tuple[int, int]]],
    inputs: Sequence[AnyArray],
    window: Window,
    operations: Mapping[str, Operation],
) -> UnitReport:
    """Infinities that a cast in the unit's inputs made of finite weights, counted as overflows."""
    made = 0
    for (_, (start, stop)), expr, cast in zip(keys, unit.inputs, inputs, strict=True):
        if isinstance(expr, Cast) and {expr.dtype, expr.x.dtype} <= FLOATS:
            step = max(1, AT_ONCE // max(1, cast.shape[1]))  # a part at a time, for it is in nobody's reckoning
            stored = sum(
                not_finite(evaluate(expr.x, a, min(stop, a + step), window, operations), expr.x.dtype)[1]
                for a in range(start, stop, step)
            )
            made += not_finite(cast, expr.dtype)[1] - stored
    made = max(0, min(made, report.inf))
    return report._replace(inf=report.inf - made, overflows=report.overflows + made)


def _allow_files(count: int) -> None:
    """Raise the soft limit to so many more open files: a large model has hundreds of shards, in source and targets."""
    with suppress(OSError):
        count += sum(1 for _ in Path("/proc/self/fd").iterdir())
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(count, hard) if hard != resource.RLIM_INFINITY else count, hard))
