"""Small models, texts and calibrations for the tests."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

import family_models
import gguf_models
from qconvd import checkpoints
from qconvd.calibration import sources
from qconvd.calibration.options import CalibrationOptions, calibration_spec
from qconvd.calibration.run import Calibration
from qconvd.checkpoints import ModelInfo
from qconvd.engine.plan import CalibrationSpec, Device, StatRequest
from qconvd.engine.run import Limits

MEMORY = 2 << 30
GPT2 = "gpt2"
"""Among the families, but made without a record."""
SAME = {"command-r-plus": "command-r", "deepseek2-lite": "deepseek2-plain"}
"""Records with many layers; the code is that of another's."""
FAMILIES = (GPT2, *(n for n in family_models.NAMES if n not in {"internlm2", *SAME}))
"""Those that are calibrated: transformers has no InternLM2."""


def family(folder: Path, name: str) -> ModelInfo:
    """A tiny model of a family."""
    if name == GPT2:
        return gpt2(folder / name)
    record = family_models.record(name)
    return checkpoints.inspect(family_models.make(folder / name, record["config"], record["checkpoint"]))


def gpt2(folder: Path) -> ModelInfo:
    """A tiny GPT-2, whose linears lie as (in, out)."""
    config = gguf_models.CONFIGS["gpt2"] | dict(n_embd=64, n_head=4, n_layer=2, n_positions=256, n_ctx=256)
    config |= dict(vocab_size=family_models.VOCAB, bos_token_id=257, eos_token_id=258, pad_token_id=256, torch_dtype="float32")
    return checkpoints.inspect(family_models.make(folder, config, gguf_models.shapes(config)))


def small_text(folder: Path) -> Path:
    """A few pages of the novel that comes with qconvd: a tiny model's tokenizer takes long over all of it."""
    path = folder / "text.txt"
    path.write_text((sources.BUNDLED / "novel.txt").read_text()[:6000])
    return path


def spec_of(
    model: ModelInfo, *, text: str | Path = "", samples: int = 3, length: int | None = 24, **more: Any
) -> CalibrationSpec:
    """In float32 unless said otherwise, so that figures are the same on every machine."""
    linears = more.pop("linears", None)
    options = {"text": str(text or small_text(model.path.parent)), "samples": samples, "length": length, "dtype": "float32"}
    return calibration_spec(CalibrationOptions(**options | more), model, linears)


def calibration(
    model: ModelInfo,
    requests: Collection[StatRequest],
    folder: Path,
    spec: CalibrationSpec | None = None,
    *,
    memory: int = MEMORY,
    threads: int = 1,
    on_event: Callable[[Any], None] = lambda _: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Calibration:
    limits = Limits(memory, threads)
    return Calibration(
        model, spec or spec_of(model), requests, folder, limits, Device(), on_event=on_event, cancelled=cancelled
    )


def gathered(calibration: Calibration) -> dict[str, Any]:
    """All statistics by `StatRequest.key`."""
    found: dict[str, Any] = {}
    for layer in range(calibration.layers):
        for wave in calibration.waves(layer):
            found |= wave
        calibration.finish(layer)
    return found


def linears(model: ModelInfo) -> list[str]:
    """Every matrix of the decoder's layers that is fed activations."""
    from qconvd.calibration.network import Network
    from qconvd.calibration.survey import survey

    return [tensor for trace in survey(Network(model), 24) for tensor in trace.groups]


def read(model: ModelInfo, name: str) -> np.ndarray:
    """A float32 tensor of a tiny model."""
    tensor = model.tensors[name]
    return np.fromfile(model.path / tensor.file, "<f4", tensor.nbytes // 4, offset=tensor.offset).reshape(tensor.shape)


def rewritten(model: ModelInfo, folder: Path, tensors: Mapping[str, np.ndarray]) -> ModelInfo:
    """A copy of a tiny model with other values of some tensors."""
    shutil.copytree(model.path, folder)
    for name, values in tensors.items():
        tensor = model.tensors[name]
        with (folder / tensor.file).open("r+b") as file:
            file.seek(tensor.offset)
            file.write(np.ascontiguousarray(values, "<f4").tobytes())
    return checkpoints.inspect(folder)


def reconfigured(model: ModelInfo, **changes: Any) -> ModelInfo:
    """The model with other words in its config.json; None removes one."""
    path = model.path / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    return checkpoints.inspect(model.path)


def with_tensors(model: ModelInfo, tensors: Mapping[str, Any]) -> ModelInfo:
    return dataclasses.replace(model, tensors=tensors)
