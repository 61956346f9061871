"""What calibration will take, from headers alone."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from qconvd.checkpoints.base import ModelInfo
from qconvd.engine.plan import CalibrationSpec, StatRequest


@dataclass(frozen=True, slots=True)
class Price:
    """What a calibration takes. Bytes, and tokens that are run through the model."""

    layers: int
    waves: tuple[int, ...]
    """Per layer, how often the text is run through it: its statistics do not always fit into memory at once."""
    memory: int
    """The most RAM that is held at once: a layer's weights, a batch's activations and a wave of statistics."""
    scratch: int
    """Bytes of hidden states in the work folder."""
    tokens: int


def price(model: ModelInfo, spec: CalibrationSpec, requests: Collection[StatRequest], memory: int) -> Price:
    """What gathering `requests` takes where `memory` bytes may be used.

    Raises `QconvdError` if it cannot be done: not enough memory, no tokenizer, no causal language model, or a linear that text
    does not go through.
    """
    raise NotImplementedError
