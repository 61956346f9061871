"""What hidden states depend on: anything else here, and they are not those of this calibration."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
import transformers

from qconvd import __version__
from qconvd.calibration.bfloat16 import multiplies_bfloat16
from qconvd.calibration.kernels import tiled
from qconvd.checkpoints.base import ModelInfo
from qconvd.checkpoints.identity import identity
from qconvd.engine.plan import CalibrationSpec, Device


def fingerprint(
    model: ModelInfo, spec: CalibrationSpec, device: Device, threads: int, batch: int, dtype: torch.dtype
) -> dict[str, Any]:
    """As JSON data."""
    text = {name: value for name, value in asdict(spec).items() if name not in ("linears", "text")}
    on_gpu = device.kind == "cuda"
    return {
        "model": identity(model),
        "calibration": text,
        "qconvd": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "device": torch.cuda.get_device_name() if on_gpu else _processor(),
        "threads": threads,
        "batch": batch,
        "dtype": str(dtype),
    }


def _processor() -> str:
    """What its sums depend on."""
    bfloat16 = (" AMX" if tiled() else " BF16") if multiplies_bfloat16() else ""
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}{bfloat16}"


def circumstances(known: Mapping[str, Any]) -> dict[str, Any]:
    """What of a fingerprint is neither the model's nor the spec's, as manifests say it."""
    about = {name: known[name] for name in ("device", "threads", "batch", "dtype")}
    return {**about, "versions": {name: known[name] for name in ("torch", "transformers")}}
