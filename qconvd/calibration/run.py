"""One calibration: the statistics of a model's layers, in waves that fit into memory."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from qconvd.calibration.bfloat16 import computed_in
from qconvd.calibration.budget import budget
from qconvd.calibration.fingerprint import circumstances, fingerprint
from qconvd.calibration.gather import Gathering, Sum
from qconvd.calibration.network import Network
from qconvd.calibration.samples import tokens
from qconvd.calibration.states import States, Writer
from qconvd.calibration.stream import Stream, not_finite
from qconvd.calibration.suitable import check_suitable
from qconvd.calibration.wanted import Wave, wanted
from qconvd.calibration.weights import Weights
from qconvd.checkpoints.base import ModelInfo
from qconvd.engine.plan import CalibrationSpec, Device, StatRequest
from qconvd.engine.run import Event, Limits
from qconvd.engine.source import Source
from qconvd.errors import QconvdError
from qconvd.statistics.hessian import Hessian

FEW_TOKENS = 16
"""An expert that fewer tokens reached has no Hessian to speak of."""


class Calibration:
    """Gathers the statistics that are asked for. Not thread-safe; what it hands out may be used by any thread.

        for layer in range(calibration.position, calibration.layers):
            for wave in calibration.waves(layer):
                ...  # encode what `wave` has the statistics of, then let go of them
            calibration.finish(layer)

    After a kill the next object with the same arguments goes on at the layer where this one stopped (`position`).
    """

    def __init__(
        self,
        model: ModelInfo,
        spec: CalibrationSpec,
        requests: Collection[StatRequest],
        folder: Path,
        limits: Limits,
        device: Device,
        *,
        on_event: Callable[[Event], None],
        cancelled: Callable[[], bool],
    ) -> None:
        """Look for states of an earlier run in `folder`, and prove that every linear is reached.

        Raises `QconvdError`; `Cancelled` if `cancelled()` says so, here and in `waves` and `finish`.
        """
        check_suitable(model)
        self._spec = spec
        self._on_event = on_event
        self._next: Writer | None = None
        self.counts: dict[str, tuple[int, ...]] = {}
        """By `StatRequest.linear`, how many tokens it (each of its experts) was fed, of the layers that were gathered."""
        self._network = network = Network(model)
        self._source = Source(model)
        self._source.__enter__()
        try:
            dtype = computed_in(spec, device)
            weights = Weights(network, self._source, torch.device(device.kind), dtype)
            self._stream = Stream(network, weights, spec.length, limits.threads, on_event, cancelled)
            self._traces = self._stream.traces
            self._wanted = wanted(network, self._traces, spec, requests)
            self._budget = budget(network, self._traces, self._wanted, spec, limits.memory, dtype.itemsize)
            known = fingerprint(model, spec, device, limits.threads, self._budget.batch, dtype)
            self.about: Mapping[str, Any] = circumstances(known)
            """What its numbers depend on beside the model and the spec: device, threads, batch, dtype, versions."""
            self._states = States(folder, known, (spec.samples, spec.length, network.hidden), dtype)
        except BaseException:
            self._source.close()
            raise
        self._stream.states, self._stream.batch = self._states, self._budget.batch

    @property
    def layers(self) -> int:
        """Decoder layers; one more if something asks for what the output layer is fed (that one is the last)."""
        return len(self._wanted)

    @property
    def position(self) -> int:
        """The first layer that is not finished: where to go on."""
        return self._states.position or 0

    def layer_of(self, request: StatRequest) -> int:
        """The layer whose waves hold a request."""
        return next(i for i, layer in enumerate(self._wanted) if request in layer.requests)

    def waves(self, layer: int) -> Iterator[Mapping[str, Hessian | NDArray[np.float32]]]:
        """The statistics of a layer by `StatRequest.key`, each in one wave; the next wave is made when it is asked for.

        A layer before `position` starts the stream anew, one after it finishes those between (`original` only). A Hessian of
        an expert that hardly any token reached has `tokens == 0` and is zero; mean squares of one that none reached are ones.
        """
        self._seek(layer)
        waves = self._budget.waves[layer]
        for number, wave in enumerate(waves):
            sums = self._gathered(layer, wave, number, len(waves))
            yield self._statistics(layer, wave, sums)
            del sums
        self._source.check()

    def finish(self, layer: int, weights: Mapping[str, NDArray[Any]] | None = None) -> None:
        """Make the next layer's inputs, durably. `weights`: the layer's tensors by their names in the checkpoint, (rows,
        columns) float16 or float32, used in place of the model's own (the `quantized` stream).
        """
        if layer + 1 >= self.layers:
            return
        self._seek(layer)
        if self._next is None or weights:
            self._stream.load(layer, weights)
            self._stream.forward(layer, self._start_next(layer + 1), {})
            self._stream.unload(layer)
        assert self._next is not None
        self._next.keep()
        self._next = None
        self._states.drop(layer)

    def close(self) -> None:
        """Let go of files and memory; the folder stays."""
        self._discard_next()
        self._source.close()

    def _gathered(self, layer: int, wave: Wave, number: int, waves: int) -> Mapping[int, Sum]:
        """Run a layer and add up what some of its groups are fed. The first time its output is written as well."""
        device = self._stream.weights.device
        if layer == len(self._traces):
            sums = {group: Sum(self._network.hidden, kinds, device) for group, kinds in wave.items()}
            self._stream.leaving(sums[0].add)
            return sums
        ahead = number == 0 and self._spec.stream == "original" and layer + 1 < self.layers
        if number == 0:
            self._stream.load(layer)
        with Gathering(self._traces[layer], wave, device) as gathering:
            writer = self._start_next(layer + 1) if ahead else None
            told = {"wave": number + 1, "waves": waves}
            self._stream.forward(layer, writer, told, lambda: self._blamed(layer, gathering.sums))
        if number + 1 == waves:
            self._stream.unload(layer)
        return gathering.sums

    def _statistics(self, layer: int, wave: Wave, sums: Mapping[int, Sum]) -> dict[str, Hessian | NDArray[np.float32]]:
        """What was asked for and a wave has gathered."""
        if blamed := self._blamed(layer, sums):
            raise not_finite(self._network, blamed)
        hessians: dict[int, Hessian] = {}
        found: dict[str, Hessian | NDArray[np.float32]] = {}
        for request, groups in self._wanted[layer].requests.items():
            if not all(request.kind in wave.get(group, ()) for group in groups):
                continue
            self._count(request, layer, tuple(sums[group].tokens for group in groups))
            if request.kind == "mean_square":
                found[request.key] = np.concatenate([sums[group].mean_squares() for group in groups])
                continue
            if groups[0] not in hessians:
                hessians[groups[0]] = _hessian(sums[groups[0]])
            found[request.key] = hessians[groups[0]]
        return found

    def _blamed(self, layer: int, sums: Mapping[int, Sum]) -> str:
        """The first linear that was fed what is no number; empty if there is none."""
        for group in sorted(sums):  # in the order in which text goes through them
            if not sums[group].finite:
                linear = next(r.linear for r, groups in self._wanted[layer].requests.items() if group in groups)
                return f"{linear} (layer {layer}) is fed NaN or infinite activations"
        return ""

    def _count(self, request: StatRequest, layer: int, counts: tuple[int, ...]) -> None:
        self.counts[request.linear] = counts
        enough = FEW_TOKENS if request.kind == "hessian" else 1
        if few := [expert for expert, count in enumerate(counts) if count < enough]:
            tokens = [counts[expert] for expert in few]
            event = {"event": "not-reached", "linear": request.linear, "layer": layer, "experts": few, "tokens": tokens}
            self._on_event(event)

    def _seek(self, layer: int) -> None:
        """Come to where the inputs of a layer are there."""
        at = self._states.position
        if at is None or at > layer:
            if at is not None:
                self._only_original(layer)
                self._discard_next()
                self._states.clear()
            self._stream.embed(tokens(self._network.model, self._spec))
        while (at := self.position) < layer:
            self._only_original(layer)
            self.finish(at)

    def _only_original(self, layer: int) -> None:
        if self._spec.stream == "quantized":
            raise QconvdError(
                f"layer {layer} cannot be calibrated by itself: it is fed what the quantized layers before it give",
                where=str(self._states.folder),
                fix="remove this folder and the target's journal, so that both start over",
            )

    def _start_next(self, layer: int) -> Writer:
        self._discard_next()
        self._next = self._states.writer(layer)
        return self._next

    def _discard_next(self) -> None:
        if self._next:
            self._next.discard()
        self._next = None


def _hessian(gathered: Sum) -> Hessian:
    products = gathered.products()
    if gathered.tokens < FEW_TOKENS:
        return Hessian(np.zeros_like(products), 0)
    return Hessian(products, gathered.tokens)
