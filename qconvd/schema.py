"""The JSON Schema of config.yaml, for editors: the sections' own, with what the installed formats take under `targets`."""

from __future__ import annotations

from typing import Any

from pydantic.json_schema import models_json_schema

from qconvd.config import Config
from qconvd.naming import BARE
from qconvd.plugins import plugins
from qconvd.targets import short_names


def schema() -> dict[str, Any]:
    """The whole schema as JSON data. It follows the installed plugins."""
    formats = plugins().formats
    models = [(Config, "validation"), *((f.Options, "validation") for f in formats.values())]
    refs, whole = models_json_schema(models, ref_template="#/$defs/{model}")  # type: ignore[arg-type]
    definitions = whole["$defs"]
    top = definitions.pop(refs[(Config, "validation")]["$ref"].rpartition("/")[2])
    options = {f.name: refs[(f.Options, "validation")] for f in formats.values()}
    definitions["Recipe"]["properties"]["targets"]["items"] = {"$ref": "#/$defs/Target"}
    definitions["Target"] = _target(options)
    for unused in ("FormatOptions", "NameParts"):
        definitions.pop(unused, None)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "qconvd configuration",
        "description": "config.yaml of qconvd",
        **{k: v for k, v in top.items() if k not in ("title", "description")},
        "$defs": dict(sorted(definitions.items())),
    }


def _target(options: dict[str, Any]) -> dict[str, Any]:
    """A short name, or one format (or short name) with text, options, or a list of these."""
    words = sorted({*short_names(), *BARE})
    aliases = {alias: options[f.name] for f in plugins().formats.values() for alias in f.aliases}
    one = {
        name: {"anyOf": [{"type": ["string", "integer"]}, ref, {"type": "null"}]} for name, ref in (options | aliases).items()
    }
    return {
        "description": "One format: by its short name, or with its options.",
        "anyOf": [
            {"type": "string", "enum": words},
            {
                "type": "object",
                "minProperties": 1,
                "maxProperties": 1,
                "additionalProperties": False,
                "properties": {
                    name: {"anyOf": [*each["anyOf"], {"type": "array", "minItems": 1, "items": each}]}
                    for name, each in sorted(one.items())
                },
            },
        ],
    }
