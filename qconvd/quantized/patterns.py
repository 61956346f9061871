"""Patterns for names of linears, as a recipe says them: regular expressions, the first that is found decides."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from qconvd.checkpoints.base import ModelInfo


def module_patterns(given: Any, example: str) -> tuple[tuple[str, Any], ...]:
    """Pairs of a regular expression and what is said of it, in their order. Raises ValueError with a sentence."""
    listed = list(given.items()) if isinstance(given, Mapping) else given
    if not isinstance(listed, list | tuple) or any(not isinstance(p, list | tuple) or len(p) != 2 for p in listed):
        raise ValueError(f"modules is a mapping from patterns, e.g. {example}")
    for pattern, _ in listed:
        if not isinstance(pattern, str) or not pattern:
            raise ValueError(f"{pattern!r} is no pattern; write part of a linear's name, e.g. down_proj")
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"{pattern!r} is no regular expression: {error}") from None
    return tuple((pattern, what) for pattern, what in listed)


def decided_by(modules: Sequence[tuple[str, Any]], module: str) -> Any:
    """What the first pattern that is found in a linear's name says; None if none is."""
    return next((what for pattern, what in modules if re.search(pattern, module)), None)


def unmatched_patterns(modules: Sequence[tuple[str, Any]], model: ModelInfo) -> tuple[str, ...]:
    """A sentence for every pattern that no tensor's name has."""
    names = [name.removesuffix(".weight") for name in model.tensors]
    return tuple(
        f"`modules`: {p!r} is found in no linear's name, so it changes nothing" for p, _ in modules if not _found(p, names)
    )


def _found(pattern: str, names: Iterable[str]) -> bool:
    return any(re.search(pattern, name) for name in names)
