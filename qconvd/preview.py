"""What one target would become, known from the model's headers alone; behind `qconvd plan`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod
from typing import Any

from qconvd import rates
from qconvd.checkpoints.base import ModelInfo
from qconvd.engine.calibration_cost import Costs, as_data, in_words, with_calibration
from qconvd.engine.plan import Plan
from qconvd.engine.working_memory import working_memory
from qconvd.errors import QconvdError
from qconvd.formats import planned
from qconvd.ledger.needs import BASE_MEMORY
from qconvd.plan_words import sentences
from qconvd.plugins import plugins
from qconvd.quantities import show_size
from qconvd.scheduler import Policy
from qconvd.targets import Target


@dataclass(frozen=True)
class Preview:
    """A target, held against a model: its plan and where it would lie, or the error that says why it cannot be made."""

    target: Target
    place: str
    plan: Plan | None = None
    error: QconvdError | None = None
    memory: int = 0
    """Bytes that the scheduler reserves to convert it alone; with others the largest counts, not their sum."""
    calibration: dict[str, Any] = field(default_factory=dict)
    """What calibrating for it takes; empty where nothing is calibrated."""

    @property
    def nbytes(self) -> int:
        """Bytes on disk, without the manifest."""
        return self.plan.nbytes if self.plan else 0

    @property
    def bits(self) -> float:
        """Bits per weight, headers and scales included; 0 for what holds no weights."""
        return bits_per_weight(self.plan) if self.plan else 0.0

    @property
    def timed(self) -> tuple[str, ...]:
        """What its time is reckoned by (see rates.py)."""
        if self.plan is None:
            return ()
        spec = self.plan.calibration
        return (self.target.label, *([rates.calibrating(self.target.label, spec)] if spec else []))

    @property
    def sentences(self) -> list[str]:
        """What there is to say of it."""
        said = (in_words(self.calibration),) if self.calibration else ()
        return sentences((*said, *self.plan.notes), self.plan.left_out) if self.plan else []

    def as_dict(self) -> dict[str, Any]:
        """As JSON data: exact bytes, every file."""
        about: dict[str, Any] = {"target": self.target.label, **self.target.spec, "artifact": self.place}
        if self.plan is None:
            return {**about, "error": self.error.as_dict() if self.error else {}}
        files = {f.path: f.nbytes for f in self.plan.files} | {f.path: f.nbytes for f in self.plan.side_files}
        return {
            **about,
            "bytes": self.nbytes,
            "bits_per_weight": round(self.bits, 4),
            "memory": self.memory,
            "files": [{"path": path, "bytes": nbytes} for path, nbytes in files.items()],
            "left_out": [{"tensor": o.tensor, "became": o.became, "reason": o.reason} for o in self.plan.left_out],
            "loads_with": [{"name": r.name, "note": r.note} for r in self.plan.loads_with],
            "notes": list(self.plan.notes),
            **({"calibration": self.calibration} if self.calibration else {}),
        }


def preview(
    model: ModelInfo,
    target: Target,
    policy: Policy,
    profile: str = "default",
    name: str | None = None,
    *,
    doing: Callable[[str], None] = lambda _: None,
) -> Preview:
    """Plan one target. A refusal is part of the result; what is wrong with the model itself raises `QconvdError`.

    `policy` is what the conversion may use of the machine; `doing` is told what takes seconds before it begins.
    """
    names = target.names(name or model.name, profile)
    place = f"{names.folder}/"
    format = plugins().formats[target.format]
    try:
        plan = planned(format, model, target.options).named(names.stem)
    except QconvdError as error:
        return Preview(target, place, error=error)
    place = f"{place}{plan.files[0].path}" if names.shared and len(plan.files) == 1 else place
    if plan.calibration is not None:
        doing("finding out how text goes through the model, for calibration; loading torch for that takes some seconds")
    try:
        price = Costs(model).of(plan, policy.memory - BASE_MEMORY)
    except QconvdError as error:
        return Preview(target, place, error=error)
    working = with_calibration(working_memory(plan, policy.threads_per_job), plan, price)
    need = {k: BASE_MEMORY + n for k, n in working.items()}
    if need["least"] > policy.memory:
        what = f"needs {show_size(need['least'])} of memory; limits.memory allows {show_size(policy.memory)}"
        return Preview(target, place, error=QconvdError(what, fix="raise limits.memory, or give convert a larger --memory"))
    return Preview(target, place, plan, memory=min(need["cpu"], policy.memory), calibration=as_data(plan, price))


def bits_per_weight(plan: Plan) -> float:
    """Bits of the weight files over the weights in them."""
    # What is read counts: a linear of GPTQ is several tensors, of which none has its shape.
    weights = sum(prod(u.shape) for u in plan.units if u.inputs)
    return 8 * sum(f.nbytes for f in plan.files) / weights if weights else 0.0
