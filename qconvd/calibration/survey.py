"""Which linears text goes through, without a weight: what is outside of the layers is zeros for that."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from qconvd.calibration.network import Network
from qconvd.calibration.trace import LayerTrace, trace
from qconvd.calibration.weights import fill_buffers, put


def survey(network: Network, length: int) -> Sequence[LayerTrace]:
    """The traces of a network that nothing was loaded into. Raises `Unsupported`."""
    for _, module in network.outer():
        for name, value in [*module.named_parameters(recurse=False)]:
            put(module, name, torch.zeros_like(value, device="cpu"))
        fill_buffers(network, module, torch.device("cpu"))
    network.origins(network.embedding)
    for layer in network.layers:  # a checkpoint that lacks a weight is found now, and not in the middle
        network.origins(layer)
    return trace(network, length, torch.device("cpu"), torch.float32)
