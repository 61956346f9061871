"""Special tokens, which of them are added, what is normalized, and chat templates, for every kind of tokenizer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from qconvd.api import BadCheckpoint
from qconvd_gguf.families.base import Metadata
from qconvd_gguf.tokenizer.files import TokenizerFiles

KEYS = {
    "bos": "bos_token_id", "eos": "eos_token_id", "unk": "unknown_token_id", "sep": "seperator_token_id",
    "pad": "padding_token_id", "mask": "mask_token_id", "eot": "eot_token_id", "eom": "eom_token_id",
}  # fmt: skip
"""GGUF's key for each special token; the spelling of `seperator` is GGUF's."""
STANDS_FOR = {"bos": "cls", "eos": "sep"}


def special_tokens(files: TokenizerFiles, vocab_size: int, unknown: int | None, notes: list[str]) -> Metadata:
    """Ids of special tokens and whether readers add BOS, EOS and SEP. Appends to `notes` what GGUF cannot say.

    `unknown` is the unknown token's id unless the model's files name another.
    """
    around = _Surroundings.of(files)
    ids = _ids(files, vocab_size)
    if unknown is not None:
        ids.setdefault("unk", unknown)
    if len(around.before) == 1:
        ids.setdefault("bos", around.before[0])
    if len(around.after) == 1 and ids.get("eos") != around.after[0]:
        # Readers put EOS after a text; what the config calls EOS stays a token that ends generation.
        ids |= {"eos": around.after[0]} | ({"eot": ids["eos"]} if "eos" in ids else {})
    keys: Metadata = [(f"tokenizer.ggml.{KEYS[name]}", "u32", ids[name]) for name in KEYS if name in ids]
    flags = _flags(files, ids, around, notes)
    return keys + [(f"tokenizer.ggml.add_{name}_token", "bool", value) for name, value in flags]


def normalizer(files: TokenizerFiles) -> Metadata:
    """Whether readers lower-case a text and strip its accents, if the tokenizer says so."""
    found: dict[str, bool] = {}
    for part in _normalizers((files.json or {}).get("normalizer")):
        kind = part.get("type")
        if kind == "Lowercase":
            found["lowercase"] = True
        elif kind == "StripAccents":
            found["strip_accents"] = True
        elif kind == "BertNormalizer":
            found |= {name: part[name] for name in ("lowercase", "strip_accents") if isinstance(part.get(name), bool)}
    return [(f"tokenizer.ggml.normalizer.{n}", "bool", found[n]) for n in ("lowercase", "strip_accents") if n in found]


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
    """tokenizer_config.json names tokens, config.json gives ids; the first goes before the second.

    A model of BERT's kind calls its BOS and EOS `cls` and `sep`.
    """
    by_text = {token.text: number for number, token in reversed(files.added.items())}
    ids: dict[str, int] = {}
    for name in KEYS:
        text = files.named(name) or (files.named(STANDS_FOR[name]) if name in STANDS_FOR and files.json else None)
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


def _flags(files: TokenizerFiles, ids: dict[str, int], around: _Surroundings, notes: list[str]) -> Iterator[tuple[str, bool]]:
    """What the configuration says, else what the tokenizer does with a text."""
    for name, found in (("bos", around.before), ("eos", around.after)):
        said = files.settings.get(f"add_{name}_token")
        if isinstance(said, bool):
            yield name, said
        elif found:
            if found != [ids.get(name)]:
                notes.append(f"the tokenizer puts the tokens {found} around a text, which GGUF can only say of BOS and EOS")
            yield name, found == [ids.get(name)]
        elif files.json is not None and (name == "bos" or _has(files.json.get("post_processor"), "ByteLevel")):
            # Some readers add BOS unless they are told not to.
            yield name, False
    if around.between:
        # Readers end the first of two texts with EOS themselves, so that one separator is none if there is an EOS.
        last = around.between[-1] in (ids.get("sep"), ids.get("eos"))
        yield "sep", last and len(around.between) == (1 if not around.after else 2)


@dataclass(frozen=True)
class _Surroundings:
    """The special tokens that the tokenizer puts before a text, after it, and between two texts."""

    before: list[int]
    after: list[int]
    between: list[int]

    @staticmethod
    def of(files: TokenizerFiles) -> _Surroundings:
        if files.json is None:
            return _Surroundings([], [], [])
        one, two = files.tokenizer.encode("a"), files.tokenizer.encode("a", "a")
        whose = one.sequence_ids
        start, stop = _span(whose, 0)
        first, second = _span(two.sequence_ids, 0), _span(two.sequence_ids, 1)
        return _Surroundings(one.ids[:start], one.ids[stop:], two.ids[first[1] : second[0]])


def _span(whose: list[int | None], sequence: int) -> tuple[int, int]:
    """Where the tokens of a text begin and end among all."""
    at = [i for i, s in enumerate(whose) if s == sequence]
    return (at[0], at[-1] + 1) if at else (0, len(whose))


def _has(part: Any, kind: str) -> bool:
    return isinstance(part, Mapping) and (part.get("type") == kind or any(_has(p, kind) for p in part.get("processors") or []))


def _normalizers(part: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(part, Mapping):
        yield part
        for inner in part.get("normalizers") or []:
            yield from _normalizers(inner)


def _key(name: Any) -> str:
    return "".join(c if c.isascii() and (c.isalnum() or c in "_-") else "_" for c in str(name))
