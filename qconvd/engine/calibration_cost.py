"""What calibrating for a plan takes: what `qconvd plan` shows is what the scheduler reserves and the engine allows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from qconvd.checkpoints.base import ModelInfo
from qconvd.engine.calibration_needs import IDLE_SHARE, shared
from qconvd.engine.plan import Plan
from qconvd.engine.working_memory import piece
from qconvd.quantities import show_size

if TYPE_CHECKING:
    from qconvd.calibration.pricing import Price

PLENTY = 1 << 50


class Costs:
    """Prices of the calibrations of one model. Those that ask the same are reckoned once."""

    def __init__(self, model: ModelInfo) -> None:
        self._model = model
        self._known: dict[Any, Price] = {}

    def of(self, plan: Plan, memory: int = PLENTY) -> Price | None:
        """What the calibration of a plan takes where the engine may use `memory` bytes; None without one. Reads no weights.

        Raises `QconvdError` if it cannot be done.
        """
        if plan.calibration is None:
            return None
        from qconvd.calibration.pricing import price

        requests = tuple(dict.fromkeys(r.gathered for u in plan.units for r in u.statistics))
        allowed = share(memory - memory // IDLE_SHARE, largest_of(plan))
        key = repr((plan.calibration, requests, allowed))
        if key not in self._known:
            self._known[key] = price(self._model, plan.calibration, requests, allowed)
        return self._known[key]


def share(limit: int, largest: int) -> int:
    """What of the credits calibrating may use: all but what encoding the largest of its units takes."""
    return max(limit // 2, limit - largest)


def largest_of(plan: Plan) -> int:
    return max((piece(u) for u in plan.units if u.statistics), default=0)


def with_calibration(memory: dict[str, int], plan: Plan, price: Price | None) -> dict[str, int]:
    """`working_memory` of a plan, with what calibrating takes."""
    if price is None:
        return memory
    cost = as_data(plan, price)
    together = shared([cost])
    return {k: max(n, together.get(k, 0)) for k, n in memory.items()}


def as_data(plan: Plan, price: Price | None) -> dict[str, Any]:
    """As JSON data; empty for a plan without calibration."""
    spec = plan.calibration
    if spec is None or price is None:
        return {}
    return {
        "text": spec.name, "samples": spec.samples, "length": spec.length, "activations": spec.stream, "layers": price.layers,
        "waves": sum(price.waves), "memory": price.memory + price.statistics, "least": price.least,
        "encoding": largest_of(plan), "scratch": price.scratch, "tokens": price.tokens,
    }  # fmt: skip


def samples_in_words(about: Mapping[str, Any]) -> str:
    """What was run through a model, from what a plan or a manifest says of its calibration."""
    text = "the text that comes with qconvd" if about.get("text") == "default" else about.get("text")
    return f"{about.get('samples')} x {about.get('length')} tokens of {text}"


def in_words(data: Mapping[str, Any]) -> str:
    """A sentence for people."""
    waves, layers = data["waves"], data["layers"]
    often = "once" if waves <= layers else f"in {waves} waves, for its statistics do not fit into memory at once"
    return (
        f"calibrated on {samples_in_words(data)}, which go through {layers} layers {often}; that "
        f"takes {show_size(data['memory'])} of memory, and {show_size(data['scratch'])} of disk meanwhile"
    )
