"""The `general.*` keys: what the model is called, what it is based on, under which licence it comes.

From README.md's front matter (the model card), the model's name and generation_config.json, in the order of llama.cpp's
converter. docs/reference/gguf.md lists what is left out on purpose.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from qconvd.api import ModelInfo, QconvdError
from qconvd_gguf.families.base import Metadata
from qconvd_gguf.model_name import Counts, parts_of, size_label, title

HUB = "https://huggingface.co/"
SAMPLING = {"top_k": ("top_k", "i32"), "top_p": ("top_p", "f32"), "min_p": ("min_p", "f32"), "temperature": ("temp", "f32")}


def general_metadata(model: ModelInfo, arch: str, counts: Counts) -> tuple[Metadata, list[str]]:
    """The keys, and warnings. `counts` is of the weights of the GGUF file."""
    card, notes = _card(model)
    said = parts_of(model.name, counts.weights)
    keys: Metadata = [("general.architecture", "str", arch), ("general.type", "str", "model"), *_sampling(model)]
    texts = {
        "name": _text(card, "name", "model_name") or title(model.name),
        "author": _text(card, "author", "model_author", "model_creator"),
        "version": _text(card, "version", "model_version") or said.version,
        "organization": _text(card, "organization", "model_organization"),
        "finetune": _text(card, "finetune", "model_finetune") or said.finetune,
        "basename": _text(card, "basename", "model_basename") or said.basename,
        "description": _text(card, "description", "model_description"),
        "size_label": _text(card, "size_label", "model_size_label") or said.size_label or size_label(counts),
        "license": _text(card, "license"),
        "license.name": _text(card, "license_name"),
        "license.link": _text(card, "license_link"),
    }
    keys += [(f"general.{name}", "str", text) for name, text in texts.items() if text]
    keys += _base_models(card)
    for name, sources in (("tags", ("tags", "pipeline_tag")), ("languages", ("languages", "language"))):
        found = [str(item) for source in sources for item in _items(card.get(source))]
        if found:
            keys.append((f"general.{name}", "arr[str]", found))
    return keys, notes


def _card(model: ModelInfo) -> tuple[Mapping[str, Any], list[str]]:
    """The front matter of README.md; a broken one is a warning, as a model can do without."""
    if not model.has("README.md"):
        return {}, []
    import yaml

    try:
        text = model.read_bytes("README.md").decode()
        lines = text.splitlines()
        if not lines or lines[0] != "---" or "---" not in lines[1:]:
            return {}, []
        card = yaml.safe_load("\n".join(lines[1 : lines.index("---", 1)]).replace("\t", "  "))
    except (yaml.YAMLError, ValueError, LookupError, RecursionError, QconvdError) as error:
        # PyYAML lets out errors of Python's own, too: for the date 2023-99-99, or for a thousand brackets.
        return {}, [f"README.md's front matter cannot be read, so licence and origin are not in the file: {_one_line(error)}"]
    return (card, []) if isinstance(card, dict) else ({}, [])


def _sampling(model: ModelInfo) -> Metadata:
    if not model.has("generation_config.json"):
        return []
    data = model.read_json("generation_config.json")
    keys: Metadata = []
    for source, (name, kind) in SAMPLING.items():
        value = data.get(source) if isinstance(data, dict) else None
        if isinstance(value, int | float) and not isinstance(value, bool):
            keys.append((f"general.sampling.{name}", kind, int(value) if kind == "i32" else float(value)))
    return keys


def _base_models(card: Mapping[str, Any]) -> Metadata:
    found = card.get("base_model", card.get("base_models"))
    models = [str(item) for item in _items(found)]
    if not models:
        return []
    keys: Metadata = [("general.base_model.count", "u32", len(models))]
    for i, name in enumerate(models):
        key = f"general.base_model.{i}."
        hub = re.fullmatch(rf"(?:{HUB})?([^/:\s]+)/([^/:\s]+)", name)
        if hub:
            keys += [(key + "name", "str", title(hub[2])), (key + "organization", "str", title(hub[1]))]
            version = parts_of(hub[2], 0).version
            if version:
                keys.insert(-1, (key + "version", "str", version))
            keys.append((key + "repo_url", "str", f"{HUB}{hub[1]}/{hub[2]}"))
        elif re.match(r"(https?|ssh)://", name):
            keys.append((key + "repo_url", "str", name))
        else:
            keys.append((key + "name", "str", title(name)))
    return keys


def _text(card: Mapping[str, Any], *names: str) -> str:
    found = next((card[n] for n in names if card.get(n)), None)
    if isinstance(found, list):
        return ",".join(map(str, _items(found)))
    return str(found) if isinstance(found, str | int | float) else ""


def _items(value: Any) -> list[Any]:
    """The values of a list that are one word each: ten lines of YAML can hold a list that takes gigabytes as text."""
    if isinstance(value, list):
        return [item for item in value if isinstance(item, str | int | float)]
    return [value] if isinstance(value, str) and value else []


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
