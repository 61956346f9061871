"""What a model says of itself: licence, languages and purpose in its card, its prompt template, its shape.

The model may be gone by the time that something is published of it: then nothing is said.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qconvd.errors import QconvdError
from qconvd.publish import front_matter

HUB = "https://huggingface.co"
SIZE_LIMIT = 16 << 20
CARRIED = ("license", "license_name", "license_link", "language", "pipeline_tag")
"""Keys of the model's card that hold for everything made of it."""
LISTS = ("license", "language", "tags")
"""Keys that may have several values."""
VALUES = 1000
"""Values of a list, and characters of a value: no card means more."""
_CACHED = re.compile(r"models--([\w.-]+?)--([\w.-]+)/snapshots/([0-9a-f]{40})(?:/|$)")


@dataclass(frozen=True)
class Upstream:
    """A model as its own files describe it. `repo` and `commit` are the Hub's, empty where it did not come from there."""

    name: str
    repo: str = ""
    commit: str = ""
    card: Mapping[str, Any] = field(default_factory=dict)
    prompt: str = ""
    """The chat template, in Jinja."""
    config: Mapping[str, Any] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"{HUB}/{self.repo}" if self.repo else ""

    @property
    def architecture(self) -> str:
        names = self.config.get("architectures")
        return str(names[0]) if isinstance(names, list) and names else ""

    @property
    def generates(self) -> bool:
        """Whether it is a model that goes on with a text; others embed, classify or translate one."""
        task = self.card.get("pipeline_tag")
        if task:
            return task in ("text-generation", "image-text-to-text", "any-to-any")
        return not self.architecture or self.architecture.endswith(("CausalLM", "LMHeadModel", "ConditionalGeneration"))

    def cache_bytes(self, context: int) -> int | None:
        """Bytes of keys and values in 16 bits for so many tokens; None if the config does not tell."""
        c = self.config.get("text_config") if isinstance(self.config.get("text_config"), dict) else self.config
        assert isinstance(c, Mapping)
        try:
            layers, heads = int(c["num_hidden_layers"]), int(c["num_attention_heads"])
            width = int(c.get("head_dim") or int(c["hidden_size"]) // heads)
            kept = int(c.get("num_key_value_heads") or heads)
        except (KeyError, TypeError, ValueError, ZeroDivisionError):
            return None
        return 2 * 2 * layers * kept * width * context


def upstream(path: Path, name: str, *, locator: str = "", revision: str = "") -> Upstream:
    """What is known of the model at `path`, a folder or a lone file, that was taken from `locator` (`hub:owner/name`)."""
    repo, commit = _origin(path, locator, revision)
    folder = path if path.is_dir() else None
    card = _card(folder / "README.md") if folder else {}
    config = _json(folder / "config.json") if folder else {}
    prompt = _prompt(folder) if folder else ""
    if path.suffix == ".gguf" and path.is_file():
        card, prompt = _of_gguf(path)
    return Upstream(name, repo, commit, _plain(card), prompt, config)


def _origin(path: Path, locator: str, revision: str) -> tuple[str, str]:
    if locator.startswith("hub:"):
        repo, _, said = locator.removeprefix("hub:").partition("@")
        return repo, revision or (said if re.fullmatch("[0-9a-f]{40}", said) else "")
    found = _CACHED.search(str(path))
    return (f"{found[1]}/{found[2]}", found[3]) if found else ("", "")


def _plain(card: Mapping[str, Any]) -> dict[str, Any]:
    """What is used of a card, where it is text. Anything else is a slip of its author, which the Hub would refuse in our
    card, or made to harm: ten lines of YAML can hold a list that takes gigabytes once it is written out.
    """
    found: dict[str, Any] = {}
    for key in (*CARRIED, "library_name", "tags"):
        value = card.get(key)
        if isinstance(value, list) and key in LISTS:
            found[key] = [text for item in value[:VALUES] if (text := _word(item, key))]
        elif text := _word(value, key):
            found[key] = text
    return {key: value for key, value in found.items() if value}


def _word(value: Any, key: str) -> str:
    if key == "language" and value is False:
        return "no"  # Norwegian, to YAML
    return value if isinstance(value, str) and value.isprintable() and len(value) <= VALUES else ""


def _card(path: Path) -> dict[str, Any]:
    text = _text(path)
    try:
        return front_matter.read(front_matter.split(text)[0].replace("\t", "  "), str(path))
    except QconvdError:
        return {}  # the plan has told of it


def _prompt(folder: Path) -> str:
    """chat_template.jinja, which newer tokenizers have, before tokenizer_config.json; of several the default one."""
    if found := _text(folder / "chat_template.jinja"):
        return found
    held = _json(folder / "tokenizer_config.json").get("chat_template")
    if isinstance(held, list):
        named = {t.get("name"): t.get("template") for t in held if isinstance(t, dict)}
        held = named.get("default") or next(iter(named.values()), "")
    return held if isinstance(held, str) else ""


def _of_gguf(path: Path) -> tuple[dict[str, Any], str]:
    """A card's keys and the prompt template from a GGUF's metadata."""
    from qconvd.checkpoints.gguf import read_header

    try:
        held = read_header(path.parent, path.name).metadata
    except QconvdError:
        return {}, ""
    keys = {"license": "license", "license.name": "license_name", "license.link": "license_link", "languages": "language"}
    card = {ours: held[f"general.{theirs}"] for theirs, ours in keys.items() if held.get(f"general.{theirs}")}
    prompt = held.get("tokenizer.chat_template", "")
    return card, prompt if isinstance(prompt, str) else ""


def _json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(_text(path) or "{}")
    except (ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            raw = file.read(SIZE_LIMIT + 1)
    except OSError:
        return ""
    return raw.decode("utf-8", "replace") if len(raw) <= SIZE_LIMIT else ""
