"""Units that need statistics of the model's activations: encoded layer by layer, as the statistics come.

A unit that asks for a Hessian is encoded as soon as its wave is there, since Hessians are too large to keep. Mean squares are
small: those of every layer are gathered first, kept in files beside the states of the calibration, and read from there by
whoever needs them, in the pass over all other units and when the artifact is verified.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from qconvd.engine.expr import Transpose
from qconvd.engine.gathering import Gathering
from qconvd.engine.graph import UnitKey
from qconvd.engine.mean_squares import MeanSquareFiles
from qconvd.engine.plan import CalibrationSpec, Plan, StatRequest, Unit
from qconvd.engine.target import TargetRun

Encode: TypeAlias = Callable[[Collection[UnitKey], int], None]
"""Encodes units, and returns when they are written and journalled; so many bytes are taken by statistics meanwhile."""


@dataclass(frozen=True)
class Asking:
    """A unit that waits for statistics from calibration."""

    key: UnitKey
    unit: Unit
    layer: int
    requests: tuple[StatRequest, ...]

    @property
    def at_once(self) -> bool:
        """Whether it must be encoded while the statistics are there."""
        return any(r.kind == "hessian" for r in self.requests)

    @property
    def linears(self) -> set[str]:
        return {r.linear for r in self.requests}


class Layers:
    """The layers of one calibration that something is left to do for. `runs` are those of its targets."""

    def __init__(
        self, gathering: Gathering, runs: Mapping[int, TargetRun], missing: Callable[[Plan, Unit], tuple[StatRequest, ...]]
    ) -> None:
        self._gathering = gathering
        self._runs = runs
        with gathering.blamed():
            self._kept = MeanSquareFiles(gathering.stream, gathering.calibration.about)
        self._asking = [
            Asking((index, unit.id), unit, max(gathering.calibration.layer_of(r) for r in requests), requests)
            for index, run in runs.items()
            for unit in run.target.plan.units
            if (requests := missing(run.target.plan, unit))
        ]

    def go(self, encode: Encode) -> None:
        """Gather and encode all that is left. Targets that fail drop out on the way; raises `Failed` if calibrating does."""
        original = self._gathering.stream.spec.stream == "original"
        left = sorted({a.layer for a in self._asking if self._is_left(a)})
        if left and not original and left[0] < self._gathering.calibration.position:
            self._gathering.anew()
        first = left[0] if original and left else self._gathering.calibration.position
        for layer in range(first, left[-1] + 1) if left else ():
            if layer in left:
                self._layer(layer, encode)
            if not self._alive():
                return
            # An original layer that nothing is left to do for is passed when the next one is asked for.
            if layer != left[-1] and (layer in left or not original):
                self._gathering.finish(layer, None if original else self._weights(layer))
        for index, run in self._alive().items():
            of_linear = {n: a.unit for a in self._asking if a.key[0] == index and not a.at_once for n in a.linears}
            with self._gathering.blamed():
                run.read_also(self._kept.files(of_linear))
                run.unreached = {of_linear[name].id: count for name, count in self._kept.unused(of_linear).items()}

    def _layer(self, layer: int, encode: Encode) -> None:
        waiting = [a for a in self._asking if a.layer == layer and self._is_left(a)]
        held: dict[str, Any] = {}
        means: dict[str, Any] = {}
        for wave in self._gathering.waves(layer):
            held |= wave
            means |= {r.linear: held[r.key] for a in waiting if not a.at_once for r in a.requests if r.key in held}
            ready = [a for a in waiting if all(r.key in held for r in a.requests)]
            waiting = [a for a in waiting if a not in ready]
            self._encode([a for a in ready if a.at_once], held, encode)
            if not self._alive():
                return
            held = {r.key: held[r.key] for a in waiting for r in a.requests if r.key in held}
            del wave
        if waiting:
            raise self._gathering.lacks(waiting[0].requests)
        if means:
            with self._gathering.blamed():
                self._kept.write(layer, means, self._gathering.calibration.counts)

    def _encode(self, ready: Collection[Asking], held: Mapping[str, Any], encode: Encode) -> None:
        if not ready:
            return
        keys = {r.key for a in ready for r in a.requests}
        for run in self._runs.values():
            run.statistics = {key: held[key] for key in keys}
        # What encoders derive from a statistic lives as long as it does, and takes about as much.
        encode([a.key for a in ready], 2 * sum({id(s): _nbytes(s) for s in held.values()}.values()))
        for run in self._runs.values():
            run.statistics = {}

    def _alive(self) -> dict[int, TargetRun]:
        return {i: run for i, run in self._runs.items() if run.error is None}

    def _is_left(self, asking: Asking) -> bool:
        run = self._runs[asking.key[0]]
        if run.error is not None:
            return False
        return not (run.is_done(asking.unit) if asking.at_once else self._kept.has(asking.linears))

    def _weights(self, layer: int) -> dict[str, Any]:
        """What the target's bytes of a layer stand for, by the tensors' names in the checkpoint, and as they lie there."""
        return {
            self._gathering.stream.tensors(a.requests[0].linear)[0]: _stored(a.unit, self._runs[a.key[0]].dequantized(a.unit))
            for a in self._asking
            if a.layer == layer and a.at_once
        }


def said_of(spec: CalibrationSpec, about: Mapping[str, Any]) -> dict[str, Any]:
    """What a manifest says of a calibration."""
    return {
        "text": spec.name, "sha256": spec.sha256, "samples": spec.samples, "length": spec.length, "seed": spec.seed,
        "chat": spec.chat, "activations": spec.stream, **about,
    }  # fmt: skip


def _stored(unit: Unit, weights: Any) -> Any:
    """(rows, columns) of a unit turned to how its tensor is stored: GPT-2's linears are (in, out)."""
    return weights.T if isinstance(unit.inputs[0], Transpose) else weights


def _nbytes(statistic: Any) -> int:
    return int(getattr(statistic, "array", statistic).nbytes)
