"""A model as this format copies it: named tensors, config.json and the files beside it, from whatever container it is in."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qconvd.api import BLOCKS, Expr, LeftOut, ModelInfo, Read, SideFile, TensorInfo, reads, rebuilt

LAYER = re.compile(r"(?:^|\.)(?:layers?|blocks?|h)\.(\d+)\.")
OWN_CONTAINERS = ("gguf", "ggml")
"""Kinds whose tensors have other names and another order than transformers' checkpoints."""


@dataclass(frozen=True)
class Seen:
    """`tensors` in the order of the layers."""

    tensors: Sequence[tuple[str, Expr]]
    config: Mapping[str, Any]
    side_files: Sequence[SideFile] = ()
    left_out: Sequence[LeftOut] = ()
    notes: Sequence[str] = ()


def seen(model: ModelInfo, said: Mapping[str, Any]) -> Seen:
    """Raises `Unsupported` for a GGUF or GGML whose checkpoint nobody can tell."""
    if model.kind not in OWN_CONTAINERS:
        tensors = [(t.name, Read.of(t)) for t in sorted(model.tensors.values(), key=_order)]
        return Seen(tensors, model.config, _side_files(model, ""))
    made = rebuilt(model, said)
    infos = {name: max((model.tensors[n] for n in reads(x)), key=lambda t: t.offset) for name, x in made.tensors.items()}
    order = sorted(made.tensors, key=lambda name: _place(name, infos[name]))
    beside = _side_files(model, "README.md")
    own = {f.path for f in beside}
    files = [f for f in made.side_files if not own & {"tokenizer.json", "tokenizer.model"}]
    return Seen(
        [(name, made.tensors[name]) for name in order],
        made.config,
        [*files, *beside],
        made.left_out,
        [*made.notes, *_rounded(model)],
    )


def _rounded(model: ModelInfo) -> Sequence[str]:
    types = sorted({t.dtype for t in model.tensors.values() if t.dtype in BLOCKS})
    if not types:
        return ()
    return (f"the weights were rounded to {', '.join(types)} before: these are the rounded values, not the original's",)


def _side_files(model: ModelInfo, without: str) -> list[SideFile]:
    return [
        SideFile(f.path, f.size, source=f.path)
        for f in model.files
        if f.role == "side" and f.path not in ("config.json", without) and not f.path.endswith(".safetensors.index.json")
    ]


def _order(tensor: TensorInfo) -> tuple[int, int, str, int]:
    return _place(tensor.name, tensor)


def _place(name: str, tensor: TensorInfo) -> tuple[int, int, str, int]:
    """Embedding, layers by number, head; as stored within each, so that a pass reads and writes from front to back."""
    layer = LAYER.search(name)
    if layer:
        return 1, int(layer[1]), tensor.file, tensor.offset
    return (0 if re.search(r"embed|wte|wpe", name) else 2), 0, tensor.file, tensor.offset
