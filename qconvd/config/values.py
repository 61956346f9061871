"""Values as people write them in a config, and what its sections have in common."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, WithJsonSchema

from qconvd import quantities
from qconvd.errors import ConfigError, QconvdError
from qconvd.hub.address import Address
from qconvd.hub.address import parse as parse_address
from qconvd.naming import check_template

MOST_WORKERS = 1 << 16


def _size(value: Any) -> Any:
    return quantities.size(value)


def _duration(value: Any) -> Any:
    return quantities.duration(value)


def _long_duration(value: Any) -> Any:
    """A duration whose unit is written: days that were meant must not be taken for seconds where something is removed."""
    if not isinstance(value, str) or value.strip().replace(".", "", 1).isdigit():
        raise ValueError(f"{value} has no unit; write for example 30d or 12h")
    return quantities.duration(value)


def _count(value: Any) -> Any:
    return quantities.count(value)


def _whole_number(value: Any) -> Any:
    if isinstance(value, bool):  # an int to Python, and `yes` is true to YAML
        raise ValueError(f"{str(value).lower()} is not a number")
    return value


def _hours(value: Any) -> Any:
    """Minutes since midnight from `22:00-07:00`; 24:00 is midnight as an end."""
    if isinstance(value, tuple | list) and len(value) == 2:
        return tuple(value)
    found = re.fullmatch(r"\s*(\d{1,2}):(\d\d)\s*[-\u2013]\s*(\d{1,2}):(\d\d)\s*", value) if isinstance(value, str) else None
    if found is None:
        raise ValueError(f"{value!r} is no time of day; write for example 22:00-07:00")
    hours = [int(n) for n in found.groups()]
    start, end = 60 * hours[0] + hours[1], 60 * hours[2] + hours[3]
    if start >= 24 * 60 or end > 24 * 60 or hours[1] > 59 or hours[3] > 59:
        raise ValueError(f"{value!r} names a time that no day has; write for example 22:00-07:00")
    if start == end % (24 * 60):
        raise ValueError(f"{value!r} begins when it ends; `qconvd pause` pauses for longer")
    return start, end % (24 * 60)


def any_path(value: Any, info: ValidationInfo) -> Any:
    """Paths are relative to the config file; `~` is the home folder."""
    if isinstance(value, Path):
        value = str(value)
    if not isinstance(value, str) or not value.strip() or "\0" in value:
        raise ValueError(f"{value!r} is not a path; write for example ./inbox or /srv/models")
    try:
        place = Path((info.context or {}).get("folder", Path.cwd())) / Path(value).expanduser()
        return place.resolve() if ".." in place.parts else place
    except RuntimeError:
        raise ValueError(f"the home folder in {value!r} is not known; write the whole path") from None


def check_name(template: str) -> None:
    """Raise ValueError unless it is a template of one name."""
    try:
        check_template(template)
    except ConfigError as error:
        raise ValueError(f"{error.what}. {error.fix}") from None
    if "/" in template:
        raise ValueError(f"the name template {template!r} is not a name; write one, e.g. {{model}}-{{variant}}")


def address(value: str) -> Address:
    try:
        return parse_address(value)
    except QconvdError as error:
        raise ValueError(f"{error.what}; {error.fix}") from None


def one_or_many(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


# `format` is for people: the reference page and `qconvd formats` show it (option_table.py).
Size = Annotated[int, BeforeValidator(_size), WithJsonSchema({"type": ["string", "integer"], "format": "size"})]
Duration = Annotated[float, BeforeValidator(_duration), WithJsonSchema({"type": ["string", "number"], "format": "duration"})]
LongDuration = Annotated[float, BeforeValidator(_long_duration), WithJsonSchema({"type": "string", "format": "duration"})]
Count = Annotated[
    int, BeforeValidator(_count), WithJsonSchema({"type": ["string", "integer"], "format": "number of parameters"})
]
AnyPath = Annotated[Path, BeforeValidator(any_path), WithJsonSchema({"type": "string", "format": "path"})]
QuietHours = Annotated[tuple[int, int], BeforeValidator(_hours), WithJsonSchema({"type": "string", "format": "times of day"})]
_Workers = Annotated[int, Field(ge=1, le=MOST_WORKERS)]
Workers = Annotated[_Workers, BeforeValidator(_whole_number, json_schema_input_type=_Workers)]
Words = Annotated[tuple[str, ...], BeforeValidator(one_or_many, json_schema_input_type=str | list[str])]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, arbitrary_types_allowed=True)
