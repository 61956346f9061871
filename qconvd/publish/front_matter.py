"""The YAML at the head of a model card: read, and brought up to date without a change to what people wrote there by hand.

What qconvd wrote the last time is known (the card carries it along), so a key is ours exactly as long as its value is the
one that we gave it. Of lists (`tags`, `language`) the same is true of every item.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml

from qconvd.errors import QconvdError

FENCE = "---"


def decoded(content: bytes, where: str) -> str:
    """The text of a card. Raises `QconvdError` for one in another encoding: what people wrote there would be lost."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise QconvdError("the card is not UTF-8", where=where, fix="save it as UTF-8, then `qconvd retry`") from error


def split(text: str) -> tuple[str, str]:
    """A card's YAML, without its fences, and all that comes after it. A card without YAML has an empty one."""
    lines = text.splitlines(keepends=True)
    if not lines or lines[0].rstrip() != FENCE:
        return "", text
    for number, line in enumerate(lines[1:], 1):
        if line.rstrip() == FENCE:
            return "".join(lines[1:number]), "".join(lines[number + 1 :])
    return "", text


def read(text: str, where: str) -> dict[str, Any]:
    """The keys of a card's YAML. Raises `QconvdError` with line and column if it is none."""
    try:
        data = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, LookupError, RecursionError) as error:
        # Beside its own errors PyYAML lets out those of Python: for the date 2023-99-99, for 0b_, for a thousand brackets.
        mark = getattr(error, "problem_mark", None)
        place = f"{where}:{mark.line + 2}:{mark.column + 1}" if mark else where
        problem = getattr(error, "problem", None) or "it cannot be read"
        raise QconvdError(f"the card's metadata is not YAML: {problem}", where=place, fix="mend the card by hand") from error
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise QconvdError("the card's metadata is no mapping of keys", where=where, fix="mend the card by hand")
    return data


def update(text: str, wanted: Mapping[str, Any], last: Mapping[str, Any], where: str) -> str:
    """The YAML of a card with the keys that are `wanted` now. `last` is what was wanted when qconvd last wrote it.

    A key that a person has changed, added or removed stays as it is, and so do comments and the order of keys.
    Raises `QconvdError` if the YAML cannot be read.
    """
    there = read(text, where)
    for key in dict.fromkeys([*wanted, *last]):
        now, merged = there.get(key), _merged(there.get(key), wanted.get(key), last.get(key))
        if merged != now:
            text = _with(text, key, merged)
    return text


def _merged(now: Any, wanted: Any, last: Any) -> Any:
    """One key by three: what stands there, what shall, and what we put there the last time; None is its absence."""
    if isinstance(now, list) and isinstance(wanted, list):
        before = last if isinstance(last, list) else []
        kept = [item for item in now if item in wanted or item not in before]
        removed = [item for item in before if item not in now]
        return kept + [item for item in wanted if item not in kept and item not in removed]
    return wanted if now == last else now


def _with(text: str, key: str, value: Any) -> str:
    """The text with one key at its top level set, or taken away if the value is None."""
    fresh = "" if value is None else yaml.safe_dump({key: value}, allow_unicode=True, sort_keys=False, width=1 << 20)
    lines = text.splitlines(keepends=True)
    node: Any = yaml.compose(text, Loader=yaml.SafeLoader)
    starts = [name.start_mark.line for name, _ in node.value] if node else []
    for number, (name, held) in enumerate(node.value if node else ()):
        if name.value == key:
            if node.flow_style:
                break
            end = starts[number + 1] if number + 1 < len(starts) else _end_of(held, lines)
            return "".join([*lines[: starts[number]], fresh, *lines[_last_own(lines, starts[number], end) :]])
    if node is not None and node.flow_style:
        data = {**yaml.safe_load(text), key: value}
        held_now = {name: item for name, item in data.items() if item is not None}
        return str(yaml.safe_dump(held_now, allow_unicode=True, sort_keys=False, width=1 << 20))
    ending = "" if not text or text.endswith("\n") else "\n"
    return f"{text}{ending}{fresh}"


def _end_of(node: Any, lines: list[str]) -> int:
    """The line after a value. A block's mark stands behind it, at the start of a line."""
    mark = node.end_mark
    stop: int = mark.line if mark.column == 0 and mark.line > node.start_mark.line else mark.line + 1
    return min(len(lines), stop)


def _last_own(lines: list[str], start: int, end: int) -> int:
    """Blank lines and comments before the next key belong to that."""
    while end > start + 1 and re.match(r"\s*(#|$)", lines[end - 1]):
        end -= 1
    return end
