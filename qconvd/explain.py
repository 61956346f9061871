"""pydantic's findings as sentences for people, with suggestions for misspelt words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, TypeAlias, get_args, get_origin

from pydantic import ValidationError

from qconvd.suggest import did_you_mean

KeyPath: TypeAlias = tuple[str | int, ...]

_SENTENCES = {
    "missing": "this key is missing",
    "int_parsing": "{input} is not a whole number",
    "int_type": "{input} is not a whole number",
    "int_from_float": "{input} is not a whole number",
    "float_parsing": "{input} is not a number",
    "float_type": "{input} is not a number",
    "bool_parsing": "{input} is neither true nor false",
    "bool_type": "{input} is neither true nor false",
    "string_type": "this must be text, not {input}",
    "model_type": "this must be a mapping of keys, not {input}",
    "dict_type": "this must be a mapping of keys, not {input}",
    "list_type": "this must be a list, not {input}",
    "tuple_type": "this must be a list, not {input}",
    "too_short": "this is empty; name at least one",
    "greater_than": "{input} is too little; it must be more than {gt}",
    "greater_than_equal": "{input} is too little; it must be at least {ge}",
    "less_than": "{input} is too much; it must be less than {lt}",
    "less_than_equal": "{input} is too much; it may be {le} at most",
}


def explain(error: ValidationError, model: Any, *, described: bool = False) -> Iterator[tuple[KeyPath, str, bool]]:
    """Every finding as (path, sentence, whether the key is meant rather than its value). `model` is what was validated.

    With `described`, what a missing key is for is said as well: its name alone may tell nothing.
    """
    errors = error.errors(include_url=False)
    misspelt = {
        (*loc[:-1], key)
        for loc in (tuple(e["loc"]) for e in errors if e["type"] == "extra_forbidden")
        for key in _keys_at(model, loc[:-1])
        if did_you_mean(str(loc[-1]), _keys_at(model, loc[:-1])) == f" (did you mean {key}?)"
    }
    for e in errors:
        loc, ctx = tuple(e["loc"]), e.get("ctx", {})
        if e["type"] == "missing" and loc in misspelt:
            continue  # it is there, under the name that is told of as not known
        if e["type"] == "too_short" and any(len(o["loc"]) > len(loc) and o["loc"][: len(loc)] == loc for o in errors):
            continue  # it lacks only what is wrong inside it
        if e["type"] == "extra_forbidden":
            known = _keys_at(model, loc[:-1])
            hint = did_you_mean(str(loc[-1]), known) or (f"; known are {', '.join(known)}" if known else "")
            yield loc, f"there is no key {str(loc[-1])!r} here{hint}", True
        elif e["type"] in ("literal_error", "enum"):
            choices = [c.strip("'") for c in ctx["expected"].replace(" or ", ", ").split(", ")]
            yield loc, f"{_show(e['input'])} is none of {', '.join(choices)}{did_you_mean(str(e['input']), choices)}", False
        elif e["type"] == "value_error":
            yield loc, str(ctx["error"]), False
        elif described and e["type"] == "missing" and (about := _description(model, loc)):
            yield loc, f"this key is missing ({about.rstrip('.')})", False
        elif e["type"] in _SENTENCES:
            yield loc, _SENTENCES[e["type"]].format_map({**ctx, "input": _show(e["input"])}), False
        else:
            yield loc, f"{e['msg'][0].lower()}{e['msg'][1:]}, not {_show(e['input'])}", False


def kind(value: Any) -> str:
    """What a value is, in words."""
    if value is None:
        return "nothing"
    words = {list: "a list", dict: "a mapping", bool: "true or false", int: "a number", float: "a number", str: "text"}
    return words.get(type(value), "something else")


def _description(model: Any, loc: KeyPath) -> str:
    """What a model says of one of its keys."""
    field = getattr(model, "model_fields", {}).get(loc[0]) if len(loc) == 1 else None
    return field.description or "" if field else ""


def _keys_at(model: Any, loc: KeyPath) -> list[str]:
    """The keys that a pydantic model knows below `loc`."""
    for step in loc:
        if (chosen := _member(model, step)) is not None:
            model = chosen
            continue
        if isinstance(step, int) or not hasattr(model, "model_fields"):
            continue
        field = next((f for n, f in model.model_fields.items() if step in (n, f.alias)), None)
        model = field.annotation if field else _value_type(model)
        model = model if _members(model) else _value_type(model)
    return [f.alias or n for n, f in getattr(model, "model_fields", {}).items()]


def _member(annotation: Any, step: str | int) -> Any:
    """The model of a union that pydantic names in its path, because the discriminator chose it."""
    return next((m for m in _members(annotation) if getattr(m, "__name__", "") == step), None)


def _members(annotation: Any) -> list[Any]:
    """The models of a union, inside whatever holds it; none where there is no choice."""
    if get_origin(annotation) is Annotated:
        return _members(get_args(annotation)[0])
    inner = [get_args(a)[0] if get_origin(a) is Annotated else a for a in get_args(annotation)]
    found = [m for a in inner for m in (_members(a) or [a]) if hasattr(m, "model_fields")]
    return found if len(found) > 1 else []


def _value_type(annotation: Any) -> Any:
    """The model inside `list[Model]`, `dict[str, Model]`, `tuple[Model, ...]` or `Model | None`."""
    if hasattr(annotation, "model_fields"):
        return annotation
    inner = [_value_type(a) for a in getattr(annotation, "__args__", ()) if a is not Ellipsis]
    return next((a for a in inner if hasattr(a, "model_fields")), annotation)


def _show(value: Any) -> str:
    return kind(value) if isinstance(value, list | Mapping) or value is None else repr(value)
