"""Options that name files, as a manifest shows them and as they decide over what is made. The ledger asks, so this is light."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any


def published(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as manifests show them: of a named file or text its name, not where it lies on this machine."""
    return {key: _published(value) for key, value in options.items()}


def identified(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as they decide over what is made: of a named file or text its content, not what it is called or where it lies.

    The same of options as they are and of options as manifests show them.
    """
    return {key: _identified(value) for key, value in options.items()}


def _published(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    if value.keys() == {"path", "sha256"}:
        return {"file": PurePath(value["path"]).name, "sha256": value["sha256"]}
    return published(value)


def _identified(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    if value.keys() in ({"path", "sha256"}, {"file", "sha256"}):
        return {"sha256": value["sha256"]}
    return identified(value)
