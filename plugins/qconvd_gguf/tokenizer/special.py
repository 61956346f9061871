"""Special tokens, whether BOS and EOS are added, and chat templates: what GGUF says of them, for every kind of tokenizer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from qconvd.api import BadCheckpoint
from qconvd_gguf.families.base import Metadata
from qconvd_gguf.tokenizer.files import TokenizerFiles

KEYS = {
    "bos": "bos_token_id", "eos": "eos_token_id", "unk": "unknown_token_id", "sep": "seperator_token_id",
    "pad": "padding_token_id", "cls": "cls_token_id", "mask": "mask_token_id",
}  # fmt: skip
"""GGUF's key for each special token; the spelling of `seperator` is GGUF's."""


def special_tokens(files: TokenizerFiles, vocab_size: int, notes: list[str]) -> Metadata:
    """Ids of special tokens and whether readers add BOS and EOS. Appends to `notes` what GGUF cannot say."""
    ids = _ids(files, vocab_size)
    keys: Metadata = [(f"tokenizer.ggml.{KEYS[name]}", "u32", number) for name, number in ids.items()]
    return keys + [(f"tokenizer.ggml.add_{name}_token", "bool", value) for name, value in _flags(files, ids, notes)]


def chat_template(files: TokenizerFiles) -> Metadata:
    """The chat template; named ones beside it. tokenizer_config.json goes before files, as in llama.cpp's converter."""
    found = files.settings.get("chat_template")
    templates = dict(files.templates)
    if isinstance(found, str):
        templates = {"default": found}
    elif isinstance(found, list):
        try:
            templates = {str(entry["name"]): str(entry["template"]) for entry in found}
        except (TypeError, KeyError) as error:
            where = f"{files.where}/tokenizer_config.json"
            raise BadCheckpoint("a chat template lacks its name or its text", where=where) from error
    default = templates.pop("default", None)
    keys: Metadata = [(f"tokenizer.chat_template.{_key(name)}", "str", text) for name, text in templates.items()]
    if templates:
        keys.insert(0, ("tokenizer.chat_templates", "arr[str]", [_key(name) for name in templates]))
    return [*keys, *([("tokenizer.chat_template", "str", default)] if default is not None else [])]


def _ids(files: TokenizerFiles, vocab_size: int) -> dict[str, int]:
    """tokenizer_config.json names tokens, config.json gives ids; the first goes before the second."""
    by_text = {token.text: number for number, token in reversed(files.added.items())}
    ids: dict[str, int] = {}
    for name in KEYS:
        text = files.named(name)
        number = by_text.get(text) if text is not None else None
        if number is None and text is not None and files.json is not None:
            number = files.tokenizer.token_to_id(text)
        if number is not None and number < vocab_size:
            ids[name] = number
    for name in KEYS:
        number = files.config.get(f"{name}_token_id")
        if isinstance(number, int) and not isinstance(number, bool) and 0 <= number < vocab_size:
            ids.setdefault(name, number)
    return ids


def _flags(files: TokenizerFiles, ids: dict[str, int], notes: list[str]) -> Iterator[tuple[str, bool]]:
    """What the configuration says, else what the tokenizer does with a text."""
    before, after = _surroundings(files)
    for name, around in (("bos", before), ("eos", after)):
        said = files.settings.get(f"add_{name}_token")
        if isinstance(said, bool):
            yield name, said
        elif around:
            if around != [ids.get(name)]:
                notes.append(f"the tokenizer puts the tokens {around} around a text, which GGUF can only say of BOS and EOS")
            yield name, around == [ids.get(name)]
        elif name == "bos" and files.json is not None:
            # Some readers add BOS unless they are told not to.
            yield name, False


def _surroundings(files: TokenizerFiles) -> tuple[list[int], list[int]]:
    if files.json is None:
        return [], []
    plain = files.tokenizer.encode("a", add_special_tokens=False).ids
    whole = files.tokenizer.encode("a").ids
    for start in range(len(whole) - len(plain) + 1):
        if whole[start : start + len(plain)] == plain:
            return whole[:start], whole[start + len(plain) :]
    return [], []


def _key(name: Any) -> str:
    return "".join(c if c.isascii() and (c.isalnum() or c in "_-") else "_" for c in str(name))
