"""Runs samples through one layer after the other; between layers their hidden states are in files."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from qconvd.calibration.network import Network
from qconvd.calibration.states import States, Writer
from qconvd.calibration.trace import Call, LayerTrace, calls, trace
from qconvd.calibration.weights import Weights, fill_buffers, put
from qconvd.engine.run import Cancelled, Event
from qconvd.errors import QconvdError

TICK = 0.25
"""Seconds between two events about progress."""


class Stream:
    """The forward pass of a network, a layer at a time."""

    def __init__(
        self,
        network: Network,
        weights: Weights,
        length: int,
        threads: int,
        on_event: Callable[[Event], None],
        cancelled: Callable[[], bool],
    ) -> None:
        """Load what is outside of the layers. `length`: tokens of a sample. Raises `Unsupported`."""
        self.network = network
        self.weights = weights
        self.states: States
        self.batch = 1
        self._threads = threads
        self._on_event = on_event
        self._cancelled = cancelled
        self._told = 0.0
        self._calls: dict[tuple[int, int], Sequence[Call]] = {}
        for name, module in network.outer():
            self._load_own(name, module)
        with self._computing():
            self.traces = trace(network, length, weights.device, weights.dtype)

    def load(self, layer: int, replaced: Mapping[str, NDArray[Any]] | None = None) -> None:
        """Read a layer's weights; some may be `replaced`, by their names in the checkpoint."""
        self.weights.load(self.network.layers[layer], replaced)

    def unload(self, layer: int) -> None:
        self.weights.unload(self.network.layers[layer])

    def embed(self, tokens: NDArray[np.int64]) -> None:
        """Write the first layer's inputs for `tokens`, (samples, length)."""
        embedding: Any = self.network.embedding
        name = self.network.tensor(f"{self.network.name(embedding)}.weight")
        embedding.padding_idx = None  # nothing is trained, and it need not be a row of a table of some tokens
        writer = self.states.writer(0)
        with self._computing():
            fill_buffers(self.network, embedding, self.weights.device)
            for start, end in self._batches("embedding"):
                # Only the rows of tokens that occur: the whole table may be larger than a layer.
                ids, places = np.unique(tokens[start:end], return_inverse=True)
                put(embedding, "weight", self.weights.rows(name, ids))
                table = torch.from_numpy(places.reshape(end - start, -1)).to(self.weights.device)
                writer.write(self._entering(embedding(table)))
            self.weights.unload(embedding)
        writer.keep()

    def forward(
        self, layer: int, writer: Writer | None, what: Mapping[str, Any], blamed: Callable[[], str] = lambda: ""
    ) -> None:
        """Run all samples through a layer that is loaded. `blamed`: which of its linears was fed what is no number."""
        module: Any = self.network.layers[layer]
        with self._computing():
            for start, end in self._batches("layer", layer=layer, **what):
                hidden = self._read(layer, start, end)
                out = self._called(hidden)[layer].run(module, hidden)
                if not bool(out.sum().isfinite()):
                    raise not_finite(self.network, blamed() or f"layer {layer} gives NaN or infinite activations")
                if writer:
                    writer.write(out)

    def leaving(self, see: Callable[[torch.Tensor], None]) -> None:
        """Tell what the output layer is fed, after the last layer."""
        last = len(self.network.layers)
        with self._computing():
            for start, end in self._batches("layer", layer=last):
                hidden = self._read(last, start, end)
                with self._instead([_gives(trace, hidden) for trace in self.traces]):
                    see(self.network.decoder(inputs_embeds=hidden, use_cache=False)[0])

    def _entering(self, embedded: torch.Tensor) -> torch.Tensor:
        """What the decoder makes of embedded tokens before its first layer."""
        caught: list[torch.Tensor] = []

        def catch(hidden: torch.Tensor, *_: Any, **__: Any) -> Any:
            caught.append(hidden)
            raise _Caught

        with self._instead([catch]), suppress(_Caught):
            self.network.decoder(inputs_embeds=embedded, use_cache=False)
        return caught[0]

    @contextmanager
    def _instead(self, forwards: Sequence[Callable[..., Any]]) -> Iterator[None]:
        """The first layers do something else for a while."""
        with ExitStack() as stack:
            for layer, forward in zip(self.network.layers, forwards, strict=False):
                layer.forward = forward
                stack.callback(layer.__dict__.pop, "forward")
            yield

    def _read(self, layer: int, start: int, end: int) -> torch.Tensor:
        return self.states.read(layer, start, end).to(self.weights.device)

    def _called(self, hidden: torch.Tensor) -> Sequence[Call]:
        samples, length = int(hidden.shape[0]), int(hidden.shape[1])
        if (samples, length) not in self._calls:
            self._calls[samples, length] = calls(
                self.network, self.traces, samples, length, self.weights.device, self.weights.dtype
            )
        return self._calls[samples, length]

    def _load_own(self, name: str, module: Any) -> None:
        """Load what a module outside of the layers holds itself."""
        for leaf, value in [*module.named_parameters(recurse=False)]:
            put(module, leaf, self.weights.value(f"{name}.{leaf}", tuple(value.shape)))
        fill_buffers(self.network, module, self.weights.device)

    def _batches(self, doing: str, **more: Any) -> Iterator[tuple[int, int]]:
        """Ranges of samples. Tells how far it is, and stops when asked to."""
        samples = self.states.shape[0]
        for start in range(0, samples, self.batch):
            if self._cancelled():
                raise Cancelled
            yield start, min(start + self.batch, samples)
            if (now := time.monotonic()) - self._told >= TICK:
                self._told = now
                done = min(start + self.batch, samples)
                self._on_event({"event": "calibrating", "doing": doing, **more, "done": done, "total": samples})

    @contextmanager
    def _computing(self) -> Iterator[None]:
        """All threads for torch, which else leaves them to those who encode."""
        before = torch.get_num_threads()
        torch.set_num_threads(self._threads)
        try:
            with torch.no_grad():
                yield
        finally:
            torch.set_num_threads(before)


class _Caught(Exception):
    """The first layer was reached."""


def not_finite(network: Network, what: str) -> QconvdError:
    return QconvdError(
        what, where=str(network.model.path), fix="the model or its conversion is damaged, or it needs a wider type than it has"
    )


def _gives(trace: LayerTrace, hidden: torch.Tensor) -> Callable[..., Any]:
    return lambda *_, **__: trace.returned(hidden)
