"""How a calibration fits into memory: samples that are run at once, and waves of statistics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from torch import nn

from qconvd.calibration.context import checked
from qconvd.calibration.network import Network
from qconvd.calibration.trace import LayerTrace
from qconvd.calibration.wanted import Layer, Wave, nbytes, packed
from qconvd.calibration.weights import TYPES
from qconvd.engine.plan import CalibrationSpec
from qconvd.errors import QconvdError
from qconvd.quantities import show_size

TOKENS = 4096
"""Tokens that are run at once at the most: enough for every matrix product to be efficient."""
LIBRARIES = 480 << 20
"""What torch and transformers take themselves, measured."""
BATCH_SHARE = 4
"""One part in this many of the memory limit may be activations, if more than one sample is run at once."""


@dataclass(frozen=True, slots=True)
class Budget:
    """Bytes, and the samples of a batch."""

    batch: int
    weights: int
    activations: int
    waves: Sequence[Sequence[Wave]]
    """Per layer."""
    statistics: int
    """Of the largest wave."""
    least: int
    """Bytes that would do: one sample at a time, and one statistic."""

    @property
    def memory(self) -> int:
        return LIBRARIES + self.weights + self.activations + self.statistics


def budget(
    network: Network, traces: Sequence[LayerTrace], layers: Sequence[Layer], spec: CalibrationSpec, memory: int, element: int
) -> Budget:
    """Fit into `memory` bytes; `element`: bytes of a computed number. Raises `QconvdError` if even the least is too much."""
    # Also where config.json leaves it to transformers.
    if isinstance(context := getattr(network.text, "max_position_embeddings", None), int):
        checked(spec.length, context, str(network.model.path))
    stored = max((TYPES[t.dtype].itemsize for t in network.model.tensors.values() if t.dtype in TYPES), default=element)
    weights = max(_weights(layer, element, stored) for layer in network.layers)
    weights += sum(_own(module, element) for _, module in network.outer())
    sample = max(_sample(network, trace, spec.length, element) for trace in traces)
    batch = max(1, min(spec.samples, TOKENS // spec.length, memory // BATCH_SHARE // sample))
    activations = batch * sample
    free = memory - LIBRARIES - weights - activations
    columns = [trace.columns for trace in traces] + [[network.hidden]]
    largest = max((nbytes(k, columns[i][g]) for i, layer in enumerate(layers) for g, k in layer.kinds.items()), default=0)
    if free < largest:
        least = LIBRARIES + weights + activations + largest
        raise QconvdError(
            f"calibration needs at least {show_size(least)} of memory, and limits.memory allows {show_size(memory)}: "
            f"{show_size(weights)} for the weights of a layer, {show_size(activations)} for {batch * spec.length} tokens, "
            f"{show_size(largest)} for the largest statistic, {show_size(LIBRARIES)} for torch",
            where=str(network.model.path),
            fix="raise limits.memory (--memory), or calibrate with shorter samples",
        )
    # Whoever encodes needs memory beside the statistics, so these take half of what there is if that is enough for one.
    room = max(largest, free // 2)
    waves = [packed(layer.kinds, columns[i], room) for i, layer in enumerate(layers)]
    held = [sum(nbytes(w[g], columns[i][g]) for g in w) for i, of_layer in enumerate(waves) for w in of_layer]
    fixed = LIBRARIES + weights + largest
    # More than one sample is run at once where there is memory, up to a whole batch or their share of it.
    whole = max(1, min(spec.samples, TOKENS // spec.length)) * sample
    least = min(fixed + whole, max(fixed + sample, fixed * BATCH_SHARE // (BATCH_SHARE - 1) + 1))
    return Budget(batch, weights, activations, waves, max(held, default=0), least)


def _weights(layer: nn.Module, element: int, stored: int) -> int:
    """A layer as it is computed with, and the largest tensor once more as it is read: `stored` bytes a weight, at the most."""
    read = max((prod(p.shape) for p in layer.parameters()), default=0)
    return sum(_own(module, element) for module in layer.modules()) + read * max(element, stored)


def _own(module: nn.Module, element: int) -> int:
    return sum(prod(p.shape) * element for p in module.parameters(recurse=False))


def _sample(network: Network, trace: LayerTrace, length: int, element: int) -> int:
    """Activations of one sample: all that the linears are fed and give, the residual stream, and attention."""
    eager = getattr(network.text, "_attn_implementation", "") == "eager"
    heads = int(getattr(network.text, "num_attention_heads", 1))
    attention = 3 * heads * length * length * 4 if eager else length * length * 4
    return length * (trace.width + 6 * network.hidden) * element + attention
