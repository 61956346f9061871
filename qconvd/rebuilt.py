"""Models in other containers as checkpoints of Hugging Face's libraries.

The seam between formats that make such checkpoints and plugins that know what a GGUF or GGML file was made from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from pydantic import Field

from qconvd.checkpoints.base import ModelInfo
from qconvd.engine.expr import Expr
from qconvd.engine.plan import LeftOut, SideFile
from qconvd.errors import Unsupported
from qconvd.formats import FormatOptions


@dataclass(frozen=True)
class Rebuilt:
    """The checkpoint: tensors by the names that transformers has, made of the model's own."""

    tensors: Mapping[str, Expr]
    config: Mapping[str, Any]
    side_files: Sequence[SideFile] = ()
    """The tokenizer's files; config.json is `config`."""
    left_out: Sequence[LeftOut] = ()
    notes: Sequence[str] = ()


class Rebuilder(Protocol):
    """Registered through the `qconvd_rebuilders` hook. Reads headers and vocabulary, no weights."""

    kinds: Sequence[str]
    """Values of `ModelInfo.kind` that it knows."""

    def rebuild(self, model: ModelInfo, said: Mapping[str, Any]) -> Rebuilt:
        """Raises `Unsupported` where the original cannot be told. `said` is `GgmlSource.said`."""
        ...


class GgmlSource(FormatOptions):
    """Options of formats that can be made from a GGML file, whose header says less than they need."""

    gqa: int | None = Field(
        None, ge=1, description="Of a GGML source: query heads for each key head. Its tensors tell; this is checked."
    )
    eps: float | None = Field(None, gt=0, lt=1, description="Of a GGML source: the norms' epsilon, e.g. `1e-5` for Llama 2.")
    context_length: int | None = Field(None, ge=1, description="Of a GGML source: how many tokens the model was trained for.")
    rope_theta: float | None = Field(None, gt=0, description="Of a GGML source: the rotation's base, where it is not 10000.")

    @property
    def said(self) -> dict[str, Any]:
        """What was said of the source."""
        return {name: value for name in GgmlSource.own() if (value := getattr(self, name)) is not None}

    @staticmethod
    def own() -> tuple[str, ...]:
        """The names of these options."""
        return tuple(name for name in GgmlSource.model_fields if name not in FormatOptions.model_fields)


def rebuilt(model: ModelInfo, said: Mapping[str, Any] | None = None) -> Rebuilt:
    """The checkpoint that a model was made from. Raises `Unsupported` if no plugin knows."""
    from qconvd.plugins import plugins

    for rebuilder in plugins().rebuilders:
        if model.kind in rebuilder.kinds:
            return rebuilder.rebuild(model, said or {})
    what = f"no plugin knows what checkpoint a {model.kind} model was made from"
    raise Unsupported(what, where=str(model.path), fix="convert the checkpoint itself")
