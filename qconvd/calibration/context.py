"""How long a sample may be: what a model's config.json says of its context, known before transformers is imported."""

from __future__ import annotations

from collections.abc import Mapping

from qconvd.checkpoints.base import ModelInfo
from qconvd.errors import QconvdError

USUAL, LEAST = 512, 16
"""Tokens of a sample: where a recipe says nothing, and at the least."""
KEYS = ("max_position_embeddings", "n_positions", "max_seq_len")


def sample_length(asked: int | None, model: ModelInfo) -> int:
    """Tokens of a sample: those that are asked for, else `USUAL` or as many as the model's context has.

    Raises `QconvdError` if they are more than the context has, or if it has too few to calibrate with.
    """
    key, context = _context(model)
    if context is None:
        return asked or USUAL
    where = str(model.path)
    if context < LEAST:
        what = f"its config.json says a context of {context} tokens ({key}), and calibration needs {LEAST} at least"
        fix = f"put the model's real {key} into config.json, or choose a format that needs no calibration"
        raise QconvdError(what, where=where, fix=fix)
    return checked(asked or min(USUAL, context), context, where)


def checked(length: int, context: int, where: str) -> int:
    """`length`. Raises `QconvdError` if it is more than the context has."""
    if length > context:
        what = f"samples of {length} tokens are longer than the model's context of {context}"
        raise QconvdError(what, where=where, fix=f"say `length: {context}` or less under `calibration`, or leave it out")
    return length


def _context(model: ModelInfo) -> tuple[str, int | None]:
    """The key that says it, and the context in tokens; None where the config does not say."""
    inner = model.config.get("text_config")
    for config in (inner if isinstance(inner, Mapping) else {}, model.config):
        for key in KEYS:
            if isinstance(config.get(key), int):
                return key, int(config[key])
    return "", None
