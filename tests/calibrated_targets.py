"""Calibrated targets of real formats, converted by the engine in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qconvd.api import Device, ModelInfo, Prepares
from qconvd.calibration_folders import folder_name
from qconvd.engine.run import ConvertTarget, Limits, convert
from qconvd.plugins import plugins
from qconvd.targets import resolve_list

LIMITS = Limits(1 << 30, 2)


def targets_of(model: ModelInfo, text: str, output: Path) -> list[ConvertTarget]:
    """What a worker makes of `--to`, for the engine in this process."""
    made = []
    for wanted in resolve_list(text):
        form = plugins().formats[wanted.format]
        plan = form.plan(model, wanted.options).named(model.name)
        encoder = form.encoder(plan, Device())
        for _ in encoder.prepare(plan) if isinstance(encoder, Prepares) else ():
            pass
        work = output / "work" / wanted.label.replace(" ", "-")
        folder = work.parent / folder_name(plan.calibration, "m", target=work.name) if plan.calibration else None
        about = {"artifact": "a", "format": wanted.format}
        made.append(ConvertTarget(wanted.label, plan, encoder, work, about, None, folder, form.decode))
    return made


def go(model: ModelInfo, targets: list[ConvertTarget]) -> dict[str, Any]:
    made = convert(model, targets, LIMITS, operations=plugins().operations, on_event=lambda _: None, cancelled=lambda: False)
    for error in made.values():
        if isinstance(error, Exception):
            raise error
    return made
