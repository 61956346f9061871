"""Artifacts made by the real engine without a daemon: inspect, plan, convert, for tests that look at what came out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from qconvd.api import Device, Format, ModelInfo, Plan
from qconvd.checkpoints import inspect
from qconvd.engine.manifest import Manifest, ManifestFile
from qconvd.engine.run import Limits, convert
from qconvd.engine.target import ConvertTarget
from qconvd.formats import planned
from qconvd.plugins import plugins
from qconvd.quality.verify import Report, verify

LIMITS = Limits(memory=256 << 20, threads=2)


@dataclass(frozen=True)
class Converted:
    """An artifact in its work folder, and what it was made from."""

    folder: Path
    model: ModelInfo
    plan: Plan
    manifest: Manifest
    format: Format

    def verify(self, **changes: Any) -> Report:
        """Verify as the worker does."""
        more = {"plan": self.plan, "model": self.model, "formats": {self.format.name: self.format}} | changes
        return verify(self.folder, more.pop("manifest", self.manifest), **more)


def converted(source: Path, out: Path, fmt: Format | str = "fp16", **options: Any) -> Converted:
    """Convert a model to one target in `out`. Raises what the engine says of the target."""
    fmt = plugins().formats[fmt] if isinstance(fmt, str) else fmt
    model = inspect(source)
    chosen = fmt.Options(**options)
    plan = planned(fmt, model, chosen)
    plan = replace(plan, files=tuple(replace(f, path=f.path.replace("{stem}", model.name)) for f in plan.files))
    about = {"artifact": model.name, "format": fmt.name, "options": chosen.model_dump(mode="json")}
    target = ConvertTarget("t1", plan, fmt.encoder(plan, Device()), out, about)
    result = convert(
        model, [target], LIMITS, operations=plugins().operations, on_event=lambda _: None, cancelled=lambda: False
    )["t1"]
    if isinstance(result, Exception):
        raise result
    return Converted(out / "files", model, plan, result, fmt)


def rehashed(made: Converted) -> Converted:
    """The manifest as if the files had been written as they are now: so that later checks are reached."""
    files = []
    for file in made.manifest.files:
        data = (made.folder / file.path).read_bytes()
        files.append(ManifestFile(file.path, len(data), sha256(data).hexdigest()))
    return replace(made, manifest=replace(made.manifest, files=tuple(files)))
