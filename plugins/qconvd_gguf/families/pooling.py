"""How an embedding model makes one vector of a text: sentence-transformers' modules.json and what it points to."""

from __future__ import annotations

from collections.abc import Mapping

from qconvd.api import ModelInfo, Unsupported
from qconvd_gguf.families.base import Metadata

POOLINGS = {"mean": 1, "cls": 2, "lasttoken": 3}
"""llama.cpp's numbers of the ways it knows."""
FLAGS = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls", "pooling_mode_lasttoken": "lasttoken"}


def pooling(model: ModelInfo) -> Metadata:
    """The `pooling_type` key; none where the model does not say how. Raises `Unsupported` for a way llama.cpp has not."""
    path = _config_path(model)
    if path is None:
        return []
    data = model.read_json(path)
    said = data if isinstance(data, Mapping) else {}
    mode = next((mode for flag, mode in FLAGS.items() if said.get(flag)), said.get("pooling_mode"))
    if mode not in POOLINGS:
        what = "the model pools its tokens in a way that llama.cpp has not"
        raise Unsupported(what, where=str(model.path / path), fix="llama.cpp has mean, cls and lasttoken")
    return [("pooling_type", "u32", POOLINGS[mode])]


def _config_path(model: ModelInfo) -> str | None:
    modules = model.read_json("modules.json") if model.has("modules.json") else []
    for module in modules if isinstance(modules, list) else []:
        if isinstance(module, Mapping) and str(module.get("type")).endswith("Pooling"):
            path = f"{module.get('path')}/config.json"
            return path if model.has(path) else None
    return None
