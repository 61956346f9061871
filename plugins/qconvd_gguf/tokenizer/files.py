"""The files that a tokenizer is made of, read once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any

from qconvd.api import BadCheckpoint, ModelInfo, Unsupported

SENTENCEPIECE = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
"""What a SentencePiece file is called, in most models, in T5 and its like, and in XLM-RoBERTa."""

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""llama.cpp's token types."""
UNUSED_SCORE, ADDED_SCORE = -10000.0, -1000.0
"""llama.cpp's scores for ids that no token has, and for added tokens."""
SPACE = "\u2581"
"""What stands for a space in tokens."""


@dataclass(frozen=True)
class Added:
    """A token that is matched before the tokenizer proper sees the text."""

    text: str
    special: bool
    normalized: bool

    @property
    def control(self) -> bool:
        """Whether it is a control token: said to be one, or spelled like one."""
        return self.special or _looks_special(self.text)

    @property
    def entry(self) -> tuple[str, int]:
        """Text and type in a vocabulary whose tokens are pieces of text: a space is one, but for control tokens."""
        return (self.text, CONTROL) if self.control else (self.text.replace(SPACE, " "), USER_DEFINED)


@dataclass
class TokenizerFiles:
    """What was found; missing files are None or empty."""

    where: str
    config: Mapping[str, Any]
    """config.json."""
    json: Mapping[str, Any] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    """tokenizer_config.json."""
    sentencepiece: bytes | None = None
    sentencepiece_name: str = ""
    extra: Mapping[str, int] = field(default_factory=dict)
    """added_tokens.json."""
    templates: Mapping[str, str] = field(default_factory=dict)
    """Chat templates in files of their own, by name."""

    @staticmethod
    def of(model: ModelInfo) -> TokenizerFiles:
        files = TokenizerFiles(str(model.path), model.config)
        files.json = _object(model, "tokenizer.json") if model.has("tokenizer.json") else None
        files.settings = _object(model, "tokenizer_config.json") if model.has("tokenizer_config.json") else {}
        files.sentencepiece_name = next((name for name in SENTENCEPIECE if model.has(name)), "")
        files.sentencepiece = model.read_bytes(files.sentencepiece_name) if files.sentencepiece_name else None
        files.extra = _object(model, "added_tokens.json") if model.has("added_tokens.json") else {}
        if any(type(number) is not int or number < 0 for number in files.extra.values()):
            raise BadCheckpoint("holds something else than token ids", where=str(model.path / "added_tokens.json"))
        files.templates = _templates(model)
        return files

    @property
    def json_path(self) -> str:
        return f"{self.where}/tokenizer.json"

    @property
    def sentencepiece_path(self) -> str:
        return f"{self.where}/{self.sentencepiece_name}"

    @property
    def fairseq(self) -> bool:
        """Whether the ids are those of the SentencePiece file moved by one, as XLM-RoBERTa has them."""
        return self.sentencepiece_name == "sentencepiece.bpe.model"

    @cached_property
    def tokenizer(self) -> Any:
        """tokenizer.json as the `tokenizers` library runs it. Raises `BadCheckpoint` if it cannot."""
        import json

        from tokenizers import Tokenizer

        try:
            tokenizer = Tokenizer.from_str(json.dumps(self.json))
        except BaseException as error:  # the library raises bare Exception, and its panics are not even that
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise
            raise BadCheckpoint(f"the tokenizers library cannot read it: {error}", where=self.json_path) from error
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer

    @cached_property
    def added(self) -> dict[int, Added]:
        """Added tokens by id, from every file that names some; tokenizer_config.json has the last word, as in transformers."""
        found: dict[int, Added] = {}
        try:
            for entry in (self.json or {}).get("added_tokens") or []:
                found[int(entry["id"])] = _added(entry)
            for number, entry in (self.settings.get("added_tokens_decoder") or {}).items():
                found[int(number)] = _added(entry)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise BadCheckpoint(f"an added token of the tokenizer makes no sense: {error!r}", where=self.where) from error
        if any(number < 0 for number in found):
            raise BadCheckpoint("an added token of the tokenizer has a negative id", where=self.where)
        named = {text for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask") if (text := self.named(name))}
        return {i: Added(t.text, t.special or t.text in named, t.normalized) for i, t in sorted(found.items())}

    def named(self, name: str) -> str | None:
        """The text of a special token that tokenizer_config.json names (`bos`, `eos`, …)."""
        entry = self.settings.get(f"{name}_token")
        text = entry.get("content") if isinstance(entry, Mapping) else entry
        return text if isinstance(text, str) else None


def _looks_special(text: str) -> bool:
    """Whether a token is a control token although nobody says so: llama.cpp's converter knows these spellings."""
    brackets = (("<|", "|>"), ("<｜", "｜>"), ("<unused", ">"))
    return text in ("<pad>", "<mask>", "<2mass>", "[@BOS@]") or any(
        text.startswith(a) and text.endswith(b) for a, b in brackets
    )


def filled(size: int) -> tuple[list[str], list[int]]:
    """Tokens and types of a vocabulary in which no id is used yet."""
    return [f"[PAD{i}]" for i in range(size)], [UNUSED] * size


def fitting_vocab(files: TokenizerFiles, vocab_size: int) -> dict[str, int]:
    """tokenizer.json's tokens and their ids, added ones included. Raises `Unsupported` if the embeddings lack one."""
    vocab: dict[str, int] = files.tokenizer.get_vocab(with_added_tokens=True)
    highest = max([*vocab.values(), *files.added])
    if highest >= vocab_size:
        what = f"the tokenizer has a token {highest}, but the embeddings have {vocab_size} rows"
        raise Unsupported(what, where=files.where, fix="take tokenizer and weights from the same model")
    return vocab


def _added(entry: Mapping[str, Any]) -> Added:
    return Added(str(entry["content"]), bool(entry.get("special")), bool(entry.get("normalized", True)))


def _object(model: ModelInfo, name: str) -> Mapping[str, Any]:
    data = model.read_json(name)
    if not isinstance(data, dict):
        raise BadCheckpoint("is no JSON object", where=str(model.path / name))
    return data


def _templates(model: ModelInfo) -> dict[str, str]:
    templates = {}
    if model.has("chat_template.jinja"):
        templates["default"] = _text(model, "chat_template.jinja")
        for file in model.files:
            path = PurePosixPath(file.path)
            if str(path.parent) == "additional_chat_templates" and path.suffix == ".jinja":
                templates[path.stem] = _text(model, file.path)
    elif model.has("chat_template.json"):
        template = _object(model, "chat_template.json").get("chat_template")
        if isinstance(template, str):
            templates["default"] = template
    return templates


def _text(model: ModelInfo, name: str) -> str:
    try:
        return model.read_bytes(name).decode()
    except UnicodeDecodeError as error:
        raise BadCheckpoint(f"is no UTF-8 text: {error}", where=str(model.path / name)) from error
