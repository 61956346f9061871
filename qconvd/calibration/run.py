"""One stream of activations through one model, layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qconvd.checkpoints.base import ModelInfo
from qconvd.engine.plan import CalibrationSpec, Device, StatRequest
from qconvd.engine.run import Event, Limits
from qconvd.statistics.hessian import Hessian


class Calibration:
    """Gathers the statistics that are asked for. Not thread-safe; what it hands out may be used by any thread.

        for layer in range(calibration.layers):
            for wave in calibration.waves(layer):
                ...  # encode what `wave` has the statistics of, then let go of them
            calibration.finish(layer)

    After a kill the next object with the same arguments goes on at the layer where this one stopped (`position`).
    """

    layers: int
    """Decoder layers; one more if something asks for what the output layer is fed (that one is the last)."""
    position: int
    """The first layer that is not finished."""
    counts: Mapping[str, tuple[int, ...]]
    """By `StatRequest.linear`, how many tokens it (each of its experts) was fed, of the layers that were gathered."""
    about: Mapping[str, Any]
    """What its numbers depend on beside the model and the spec, as JSON data: device, threads, batch, versions of libraries."""

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
        """Read the text, look for states of an earlier run in `folder`, and prove that every linear is reached.

        Raises `QconvdError`; `Cancelled` if `cancelled()` says so, here and in `waves` and `finish`.
        """
        raise NotImplementedError

    def layer_of(self, request: StatRequest) -> int:
        """The layer whose waves hold a request."""
        raise NotImplementedError

    def waves(self, layer: int) -> Iterator[Mapping[str, Hessian | NDArray[np.float32]]]:
        """The statistics of a layer by `StatRequest.key`, each in one wave; the next wave is made when it is asked for.

        A layer before `position` starts the stream anew (`original` only); one after it finishes those between.
        A Hessian of an expert that no token reached has `tokens == 0`; its mean squares are ones.
        """
        raise NotImplementedError

    def finish(self, layer: int, weights: Mapping[str, NDArray[Any]] | None = None) -> None:
        """Make the next layer's inputs, durably. `weights`: the layer's tensors by their names in the checkpoint, (rows,
        columns) float16 or float32, used in place of the model's own (the `quantized` stream).
        """
        raise NotImplementedError

    def close(self) -> None:
        """Let go of files and memory; the folder stays."""
        raise NotImplementedError
