"""What calibration will take, without reading a weight."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from qconvd.calibration.errors import not_installed
from qconvd.calibration.suitable import check_suitable
from qconvd.checkpoints.base import ModelInfo
from qconvd.engine.plan import CalibrationSpec, Device, StatRequest


@dataclass(frozen=True, slots=True)
class Price:
    """What a calibration takes. Bytes, and tokens that are run through the model."""

    layers: int
    waves: tuple[int, ...]
    """Per layer, how often the text is run through it: its statistics do not always fit into memory at once."""
    memory: int
    """The most RAM that is held at once: a layer's weights, a batch's activations, a wave of statistics, and torch."""
    statistics: int
    """Of `memory`, those of the largest wave; what encoders derive from them takes about as much again."""
    least: int
    """RAM that it can do with: one sample at a time, and one statistic."""
    scratch: int
    """Bytes of hidden states in the work folder: a layer's inputs and its outputs."""
    tokens: int


def price(model: ModelInfo, spec: CalibrationSpec, requests: Collection[StatRequest], memory: int) -> Price:
    """What gathering `requests` on the CPU takes where `memory` bytes may be used.

    Reads no weights, but the text. Raises `QconvdError` if it cannot be done: not enough memory or text, torch or transformers
    not installed, no tokenizer, no causal language model, or a linear that text does not go through.
    """
    check_suitable(model)
    try:
        from qconvd.calibration.bfloat16 import computed_in
        from qconvd.calibration.budget import budget
        from qconvd.calibration.network import Network
        from qconvd.calibration.samples import tokens
        from qconvd.calibration.states import DIGEST
        from qconvd.calibration.survey import survey
        from qconvd.calibration.wanted import wanted
    except ModuleNotFoundError as error:
        raise not_installed(error) from error
    element = computed_in(spec, Device()).itemsize
    network = Network(model)
    traces = survey(network, spec.length)
    layers = wanted(network, traces, spec, requests)
    fitted = budget(network, traces, layers, spec, memory, element)
    tokens(model, spec)  # a text that is too short is better known now
    states = spec.samples * spec.length * network.hidden * element
    return Price(
        layers=len(layers),
        waves=tuple(len(waves) for waves in fitted.waves),
        memory=fitted.memory,
        statistics=fitted.statistics,
        least=fitted.least,
        scratch=2 * (states + DIGEST),
        tokens=spec.samples * spec.length,
    )
