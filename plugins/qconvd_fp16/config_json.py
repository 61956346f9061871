"""config.json with another element type, and nothing else changed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from qconvd.api import SideFile

KEYS = ("dtype", "torch_dtype")
"""transformers reads `dtype` since 4.56 and `torch_dtype` before; vLLM and others follow the version they know."""


def with_dtype(config: Mapping[str, Any], name: str) -> SideFile:
    """config.json with `name` (`float16`, …) under both keys, also in the parts of a multimodal model that say theirs.

    Keys keep their order; a key that was not there goes to the end.
    """
    changed = {**_parts(config, name), **dict.fromkeys(KEYS, name)}
    text = json.dumps(changed, indent=2, ensure_ascii=False) + "\n"
    return SideFile("config.json", len(text.encode()), text=text)


def _parts(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    changed: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and key.endswith("_config"):
            changed[key] = _parts(value, name)
        else:
            changed[key] = name if key in KEYS and value is not None else value
    return changed
