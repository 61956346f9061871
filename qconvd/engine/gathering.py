"""One calibration of a run: who asks it for what, and the thread that it has to itself.

Running text through a layer takes long and holds its thread. Meanwhile the caller's thread goes on reporting what the
calibration says, and looks for a wish to stop.
"""

from __future__ import annotations

import errno
import queue
import shutil
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from qconvd.checkpoints.base import ModelInfo
from qconvd.engine.plan import CalibrationSpec, Device, StatRequest
from qconvd.errors import OutOfSpace, QconvdError, TakenAway, Unsupported

if TYPE_CHECKING:
    from qconvd.calibration.run import Calibration
    from qconvd.engine.run import Limits

T = TypeVar("T")
Wave: TypeAlias = Mapping[str, Any]
"""By `StatRequest.key`: a Hessian, or mean squares."""

STATES = "states"
"""In a calibration's folder: what is the calibration's own."""


class Failed(Exception):
    """Calibrating cannot go on, for the reason `error`: a `QconvdError`, `Cancelled`, or a defect."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


@dataclass
class Stream:
    """What the targets that share a folder ask for, taken together."""

    folder: Path
    spec: CalibrationSpec
    requests: dict[str, StatRequest] = field(default_factory=dict)
    targets: list[str] = field(default_factory=list)

    def add(self, target: str, spec: CalibrationSpec, requests: Collection[StatRequest]) -> None:
        """One more target. Raises `Unsupported` if it calls other tensors by a name that is taken."""
        both = {**self.spec.linears, **spec.linears}
        if any(both[name] != tensors for name, tensors in self.spec.linears.items()):
            raise Unsupported("calls other tensors by a name that another target uses", where=target)
        self.spec = replace(self.spec, linears=both)
        self.requests |= {r.key: r for r in requests}
        self.targets.append(target)

    def tensors(self, linear: str) -> tuple[str, ...]:
        """The checkpoint's tensors behind a name."""
        return tuple(self.spec.linears.get(linear, (linear,)))


class Gathering:
    """A `Calibration` in a thread of its own. `tick` is called in the caller's thread all the while, and may raise.

    Every method may raise `Failed`, too.
    """

    def __init__(
        self,
        stream: Stream,
        model: ModelInfo,
        limits: Limits,
        device: Device,
        stopped: Callable[[], bool],
        tick: Callable[[], None],
        pause: float,
    ) -> None:
        self.stream = stream
        self._arguments = model, limits, device
        self.doing = ""
        """What it is at, in words."""
        self._tick = tick
        self._pause = pause
        self._stopped = stopped
        self.unwanted: Callable[[], bool] = lambda: False
        """Whether nobody waits for it any more."""
        self._left = threading.Event()
        self._said: queue.SimpleQueue[Mapping[str, Any]] = queue.SimpleQueue()
        self._thread = ThreadPoolExecutor(1, "calibrate")
        self._calibration: Calibration | None = None

    def open(self) -> None:
        """Read the text and look what an earlier run left."""
        self.doing = "preparing calibration"
        model, limits, device = self._arguments

        def make() -> Calibration:
            from qconvd.calibration.run import Calibration

            folder = self.stream.folder / STATES
            folder.mkdir(parents=True, exist_ok=True)
            return Calibration(
                model, self.stream.spec, self.stream.requests.values(), folder, limits, device,
                on_event=self._said.put, cancelled=self._cancelled,
            )  # fmt: skip

        self._calibration = self._do(make)

    def anew(self) -> None:
        """Forget how far it was."""
        self._do(self.calibration.close)
        with self.blamed():
            shutil.rmtree(self.stream.folder / STATES)
        self.open()

    @property
    def calibration(self) -> Calibration:
        assert self._calibration is not None, "it is not open"
        return self._calibration

    def waves(self, layer: int) -> Iterator[Wave]:
        """The waves of a layer; each is let go of when the next is asked for."""
        self.doing = f"calibrating layer {layer + 1} of {self.calibration.layers}"
        waves = iter(self.calibration.waves(layer))
        while (wave := self._do(lambda: next(waves, None))) is not None:
            yield wave
            del wave

    def finish(self, layer: int, weights: Mapping[str, Any] | None) -> None:
        """Make the next layer's inputs."""
        self._do(lambda: self.calibration.finish(layer, weights))

    def lacks(self, requests: Collection[StatRequest]) -> Failed:
        """A layer is over, and it had nothing of what was asked."""
        what = f"no statistics came of {', '.join(r.linear for r in requests)}"
        return Failed(QconvdError(what, fix="this is a defect of calibration, please report it"))

    def close(self) -> None:
        """Stop and let go of everything; the folder stays."""
        self._left.set()
        if self._calibration is not None:
            self._thread.submit(self._calibration.close)
        self._thread.shutdown()
        self._calibration = None
        self.doing = ""

    def _cancelled(self) -> bool:
        return self._left.is_set() or self._stopped() or self.unwanted()

    def _do(self, call: Callable[[], T]) -> T:
        future = self._thread.submit(call)
        while not wait([future], self._pause).done:
            self._hear()
            self._tick()
        self._hear()
        try:
            return future.result()
        except Exception as error:
            raise Failed(self._reason(error)) from error

    @contextmanager
    def blamed(self) -> Iterator[None]:
        """What goes wrong with the calibration's files is its failure, and not that of the whole run."""
        try:
            yield
        except (OSError, QconvdError) as error:
            raise Failed(self._reason(error)) from error

    def _reason(self, error: Exception) -> Exception:
        """A full disk and a folder that somebody removed pass by, so both are tried again."""
        where = str(self.stream.folder)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            fix = "make room there, or choose an output folder on another disk"
            return OutOfSpace("the disk is full, and text is being run through the model", where=where, fix=fix)
        if isinstance(error, FileNotFoundError) and str(error.filename).startswith(where):
            fix = "leave the folder .qconvd alone while targets are converted"
            return TakenAway("was removed while text was being run through the model", where=where, fix=fix)
        return error

    def _hear(self) -> None:
        with suppress(queue.Empty):
            while True:
                self.doing = self._worded(self._said.get_nowait()) or self.doing

    def _worded(self, event: Mapping[str, Any]) -> str:
        """`calibrating layer 3 of 30, wave 1 of 2, 40 %`."""
        if event.get("event") != "calibrating" or self._calibration is None or "layer" not in event:
            return ""
        wave = f", wave {event['wave']} of {event['waves']}" if event.get("waves", 1) > 1 else ""
        percent = 100 * event["done"] // event["total"]
        return f"calibrating layer {event['layer'] + 1} of {self._calibration.layers}{wave}, {percent} %"
