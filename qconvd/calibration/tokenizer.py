"""A model's own tokenizer, without transformers where its files alone say everything."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from qconvd.calibration.errors import not_installed
from qconvd.checkpoints.base import ModelInfo
from qconvd.errors import QconvdError


class Tokenizer(Protocol):
    """Text to the ids of tokens; special tokens in the text become theirs."""

    start: tuple[int, ...]
    """What the model puts before every text (BOS); empty for many."""

    def ids(self, text: str) -> Sequence[int]:
        """The tokens of a text, without `start`."""
        ...


def tokenizer(model: ModelInfo) -> Tokenizer:
    """The model's tokenizer. Raises `QconvdError` if it cannot be read."""
    config = _config(model)
    try:
        if model.has("tokenizer.json"):
            return _Fast(model, config)
        if model.has("tokenizer.model"):
            return _SentencePiece(model, config)
        return _Transformers(model)
    except QconvdError:
        raise
    except ModuleNotFoundError as error:
        raise not_installed(error) from error
    except Exception as error:  # the libraries raise whatever they like
        what = f"its tokenizer cannot be read: {' '.join(str(error).split())[:200]}"
        raise QconvdError(what, where=str(model.path), fix="copy or download the tokenizer's files again") from error


def special(config: Mapping[str, Any], name: str) -> str | None:
    """A special token by its name in tokenizer_config.json (`bos_token`)."""
    token = config.get(name)
    token = token.get("content") if isinstance(token, Mapping) else token
    return token if isinstance(token, str) else None


def _config(model: ModelInfo) -> Mapping[str, Any]:
    found = model.read_json("tokenizer_config.json") if model.has("tokenizer_config.json") else {}
    return found if isinstance(found, Mapping) else {}


class _Fast:
    """tokenizer.json."""

    def __init__(self, model: ModelInfo, config: Mapping[str, Any]) -> None:
        from tokenizers import Tokenizer

        self._tokenizer: Any = Tokenizer.from_str(model.read_bytes("tokenizer.json").decode())
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        # What the file puts before a text, unless the config says otherwise.
        plain, whole = self._tokenizer.encode("a", add_special_tokens=False).ids, self._tokenizer.encode("a").ids
        found = whole[: len(whole) - len(plain)] if whole[len(whole) - len(plain) :] == plain else whole[:1]
        begin = self._tokenizer.token_to_id(special(config, "bos_token") or "")
        if config.get("add_bos_token") is False:
            found = []
        elif config.get("add_bos_token") is True and begin is not None:
            found = [begin]
        self.start = tuple(found)

    def ids(self, text: str) -> Sequence[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)


class _SentencePiece:
    """tokenizer.model alone."""

    def __init__(self, model: ModelInfo, config: Mapping[str, Any]) -> None:
        from sentencepiece import SentencePieceProcessor

        self._pieces: Any = SentencePieceProcessor(model_proto=model.read_bytes("tokenizer.model"))
        begin = int(self._pieces.bos_id())
        self.start: tuple[int, ...] = (begin,) if begin >= 0 and config.get("add_bos_token", True) else ()
        # Its control tokens are never found in text, and added ones are in no file of its own.
        self._special: dict[str, int] = {
            self._pieces.id_to_piece(i): i for i in range(self._pieces.get_piece_size()) if self._pieces.is_control(i)
        }
        for id, token in (config.get("added_tokens_decoder") or {}).items():
            if isinstance(token, Mapping) and isinstance(token.get("content"), str):
                self._special[token["content"]] = int(id)
        longest = sorted(filter(None, self._special), key=len, reverse=True)
        self._split = re.compile("(" + "|".join(map(re.escape, longest)) + ")") if longest else None

    def ids(self, text: str) -> Sequence[int]:
        found: list[int] = []
        for part in self._split.split(text) if self._split else [text]:
            if part in self._special:
                found.append(self._special[part])
            elif part:
                found += self._pieces.encode(part)
        return found


class _Transformers:
    """Other files (vocab.json with merges.txt), through a class of transformers; code beside the model is not run."""

    def __init__(self, model: ModelInfo) -> None:
        from transformers import AutoTokenizer

        self._tokenizer: Any = AutoTokenizer.from_pretrained(str(model.path), trust_remote_code=False, local_files_only=True)
        plain, whole = self._tokenizer.encode("a", add_special_tokens=False), self._tokenizer.encode("a")
        self.start = tuple(whole[: len(whole) - len(plain)] if whole[len(whole) - len(plain) :] == plain else whole[:1])

    def ids(self, text: str) -> Sequence[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False))
