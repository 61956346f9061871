"""How to write on the command line what a refusal asks for in a recipe's words."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qconvd.errors import QconvdError
    from qconvd.targets import Target

_ASKED = re.compile(r"`(\w+: [^`]+)` under (\w+)\b")
"""As plugins write it: say `allow_requantize: true` under gguf."""


def spelled(target: Target, error: QconvdError) -> str:
    """The target with the option that its refusal asks for, after `--to`; empty where it asks for none."""
    import yaml

    asked = _ASKED.search(error.fix)
    if asked is None or asked[2] != target.format:
        return ""
    try:
        return spelled_with(target, yaml.safe_load(f"{{{asked[1]}}}"))
    except yaml.YAMLError:
        return ""


def spelled_with(target: Target, more: Mapping[str, Any]) -> str:
    """The target with further options, after `--to`; empty where it cannot have them."""
    import yaml

    from qconvd.errors import QconvdError
    from qconvd.ledger.records import options_of
    from qconvd.targets import resolve_list

    try:
        options = {**options_of(target), **more}
        text = f"{target.format}: {yaml.safe_dump(options, default_flow_style=True, sort_keys=False, width=10_000).strip()}"
        resolve_list(text)
    except (QconvdError, ValueError, TypeError, yaml.YAMLError):
        return ""
    return f"--to {shlex.quote(text)}"
