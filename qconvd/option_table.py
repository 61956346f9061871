"""What a section of the config or a format takes: each option's values, default and meaning, as people write them.

Read off the JSON Schema that editors get, so that the reference page, `qconvd formats` and the schema cannot disagree.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from pydantic import BaseModel

from qconvd.quantities import write_duration, write_size

WORDS = {"string": "text", "integer": "whole number", "number": "number", "object": "mapping"}


@dataclass(frozen=True, slots=True)
class Option:
    """One option. `values` and `default` are empty where there is nothing to say."""

    name: str
    values: str
    default: str
    required: bool
    description: str


def options_of(model: type[BaseModel], *, nested: bool = False) -> list[Option]:
    """The options of a pydantic model, in its order. With `nested`, those of its sections too, as `section.option`."""
    schema = model.model_json_schema()
    found = []
    for name, field in model.model_fields.items():
        about = schema["properties"][field.alias or name]
        required = field.is_required()
        default = "" if required else _default(about.get("default"), _format(about))
        found.append(Option(field.alias or name, _values(about), default, required, field.description or ""))
        if nested and isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            found += [replace(o, name=f"{field.alias or name}.{o.name}") for o in options_of(field.annotation)]
    return found


def _values(about: Mapping[str, Any]) -> str:
    """`report, refuse`, `size`, `list of text`; empty for sections, which have a table of their own."""
    if "format" in about:
        return str(about["format"])
    if "enum" in about:
        return _choices(about["enum"])
    if "const" in about:
        return str(about["const"])
    if "anyOf" in about:
        parts = dict.fromkeys(_values(one) for one in about["anyOf"] if one.get("type") != "null")
        return " or ".join(part for part in parts if part)
    kind = about.get("type")
    if isinstance(kind, list):
        # `q8_0, q4_0` for a list is a courtesy of some options, and goes without saying.
        kind = "array" if "array" in kind else kind[0]
    if kind == "boolean":
        return "true, false"
    if kind == "array":
        inner = _values(about.get("items", {}))
        return f"list of {inner}" if inner else ""
    return WORDS.get(str(kind), "")


def _choices(values: list[Any]) -> str:
    """Each once, however its letters may be written."""
    return ", ".join(dict.fromkeys(str(v).lower() for v in values if v is not None))


def _format(about: Mapping[str, Any]) -> str:
    return str(about.get("format") or next((one["format"] for one in about.get("anyOf", ()) if "format" in one), ""))


def _default(value: Any, format: str) -> str:
    if value is None or value in ([], {}):
        return ""
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if format == "size":
        return write_size(value)
    if format == "duration":
        return write_duration(value)
    if format == "path":
        return str(value) if str(value).startswith("/") else f"./{value}"
    return str(value).lower() if isinstance(value, bool) else str(value)
