"""A calibration that takes no torch, for tests of the engine: the models of tiny.py as networks of one product per linear.

It keeps to the interface of `qconvd.calibration.run.Calibration`, states on disk included; what the numbers mean is nothing.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from qconvd.api import CalibrationSpec, Device, ModelInfo, StatRequest
from qconvd.checkpoints.base import TensorInfo
from qconvd.engine.durable import write_whole
from qconvd.engine.run import Cancelled, Limits
from qconvd.statistics.hessian import Hessian

STATE = "state.json"


class NumpyCalibration:
    """Hidden states (samples, 64); the inputs of `down_proj` have 96 columns."""

    made: ClassVar[list[NumpyCalibration]] = []
    """Every one since the list was last cleared."""
    at: ClassVar[Callable[[int], None]] = lambda _layer: None
    """Called for every layer that is run, before its first wave."""
    slow: ClassVar[bool] = False
    """Whether a layer lasts until it is cancelled."""

    def __init__(
        self, model: ModelInfo, spec: CalibrationSpec, requests: Collection[StatRequest], folder: Path, limits: Limits,
        device: Device, *, on_event: Callable[[Mapping[str, Any]], None], cancelled: Callable[[], bool],
    ) -> None:  # fmt: skip
        self.made.append(self)
        self.model, self.spec, self.requests, self.limits = model, spec, list(requests), limits
        self.about = {"device": device.kind, "threads": limits.threads, "batch": [1, spec.length], "versions": {"numpy": "any"}}
        self.layers = 1 + max(int(t.split(".")[2]) for t in model.tensors if "layers" in t)
        self.calls: list[tuple[str, int]] = []
        self.counts: dict[str, tuple[int, ...]] = {}
        self.weights: list[Mapping[str, Any]] = []
        self._folder, self._cancelled, self._on_event = folder, cancelled, on_event
        self._states = np.random.default_rng(spec.seed).standard_normal((spec.samples, 64)).astype(np.float32)
        self.position = 0
        if (folder / STATE).exists() and (found := json.loads((folder / STATE).read_bytes()))["about"] == self.about:
            self.position, self._states = found["position"], np.array(found["states"], np.float32)

    def layer_of(self, request: StatRequest) -> int:
        return int(self._tensors(request)[0].split(".")[2])

    def waves(self, layer: int) -> Iterator[Mapping[str, Any]]:
        """Two waves: what has 64 columns, and what has 96."""
        self.calls.append(("waves", layer))
        assert self.spec.stream == "original" or layer == self.position
        while self.position < layer:
            self.finish(self.position)
        type(self).at(layer)
        while self.slow:
            if self._cancelled():
                raise Cancelled
            time.sleep(0.01)
        self._on_event({"event": "calibrating", "layer": layer, "wave": 2, "waves": 2, "done": 4, "total": 8})
        mine = [r for r in self.requests if self.layer_of(r) == layer]
        for columns in (64, 96):
            wave: dict[str, Any] = {}
            for request in mine:
                if self.model.tensors[self._tensors(request)[0]].columns != columns:
                    continue
                x = [self._inputs(t) for t in self._tensors(request)]
                self.counts[request.linear] = (len(x[0]),) * len(x)
                if request.kind == "hessian":
                    reached = 0 if "unreached" in self.spec.text else len(x[0])
                    wave[request.key] = Hessian(x[0].T @ x[0] * np.float32(bool(reached)), reached)
                else:
                    wave[request.key] = np.concatenate([(a.astype(np.float64) ** 2).mean(axis=0) for a in x]).astype(np.float32)
            if wave:
                yield wave

    def finish(self, layer: int, weights: Mapping[str, Any] | None = None) -> None:
        self.calls.append(("finish", layer))
        self.weights.append(weights or {})
        name = f"model.layers.{layer}.self_attn.q_proj.weight"
        weight = (weights or {}).get(name)
        if weight is None:
            weight = self._read(self.model.tensors[name])
        self._states = np.tanh(self._states @ np.asarray(weight, np.float32).T)
        self.position = layer + 1
        state = {"about": self.about, "position": self.position, "states": self._states.tolist()}
        write_whole(self._folder / STATE, json.dumps(state).encode())

    def close(self) -> None:
        self.calls.append(("close", -1))

    def _tensors(self, request: StatRequest) -> tuple[str, ...]:
        return tuple(self.spec.linears.get(request.linear, (request.linear,)))

    def _inputs(self, tensor: str) -> Any:
        return self._states if self.model.tensors[tensor].columns == 64 else np.tile(self._states, 2)[:, :96] * np.float32(2)

    def _read(self, tensor: TensorInfo) -> Any:
        data = (self.model.path / tensor.file).read_bytes()[tensor.offset : tensor.offset + tensor.nbytes]
        return (np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4").reshape(tensor.shape)
