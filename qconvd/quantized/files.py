"""The files beside quantized weights."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

from qconvd.checkpoints.base import ModelInfo
from qconvd.engine.plan import SideFile

INDEX = ".safetensors.index.json"


def json_file(path: str, content: Mapping[str, Any]) -> SideFile:
    """A file that is written as JSON."""
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    return SideFile(path, len(text.encode()), text=text)


def config_with(config: Mapping[str, Any], quantization: Mapping[str, Any], dtype: str | None) -> SideFile:
    """config.json with `quantization_config`, and with `dtype` if it is not the config's own (the rest was cast)."""
    changed = {**config, "quantization_config": dict(quantization)}
    if dtype:
        changed |= dict.fromkeys([key for key in ("dtype", "torch_dtype") if key in config] or ["torch_dtype"], dtype)
    return json_file("config.json", changed)


def carried_files(model: ModelInfo, ours: Collection[str]) -> list[SideFile]:
    """The model's own files that go along: all but `ours`, which are written anew, and its index of shards."""
    return [
        SideFile(f.path, f.size, source=f.path)
        for f in model.files
        if f.role == "side" and f.path not in ours and not f.path.endswith(INDEX)
    ]
